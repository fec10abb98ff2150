"""UNIP-T, LL-FPN and UPerHead on the data of `_base_/mfnet.py`."""

_base_ = "./_base_/mfnet.py"
model = dict(
    backbone=dict(variant="tiny"),
    neck=dict(channels=192),
    decode_head=dict(in_channels=[192] * 4, channels=192),
    auxiliary_head=dict(in_channels=192),
)
