"""UNIP-B, LL-FPN and UPerHead on the data of `_base_/mfnet.py`."""

_base_ = "./_base_/mfnet.py"
model = dict(
    backbone=dict(variant="base"),
    neck=dict(channels=768),
    decode_head=dict(in_channels=[768] * 4, channels=768),
    auxiliary_head=dict(in_channels=768),
)
