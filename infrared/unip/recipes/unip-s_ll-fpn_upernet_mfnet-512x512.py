"""UNIP-S, LL-FPN and UPerHead on the data of `_base_/mfnet.py`."""

_base_ = "./_base_/mfnet.py"
