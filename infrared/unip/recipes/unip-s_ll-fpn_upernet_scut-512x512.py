"""UNIP-S, LL-FPN and UPerHead on the data of `_base_/scut.py`."""

_base_ = "./_base_/scut.py"
