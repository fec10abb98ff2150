"""UNIP-S, LL-FPN and UPerHead on the data of `_base_/soda.py`."""

_base_ = "./_base_/soda.py"
