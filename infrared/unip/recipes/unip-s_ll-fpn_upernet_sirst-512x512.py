"""UNIP-S, LL-FPN and UPerHead on the data of `_base_/sirst.py`."""

_base_ = "./_base_/sirst.py"
