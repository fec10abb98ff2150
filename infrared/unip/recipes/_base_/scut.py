"""SCUT-Seg: 10 classes, 1,345 and 665 images. It has no split test."""

_base_ = "./unip_ll-fpn_upernet.py"

data_root = "{{$CROSSBAND_DATA_ROOT:data/scut}}"
layout = dict(layout="scut")
# 1,345 = 168 x 8 + 1, and batch norms need two.
train_dataloader = dict(dataset=layout, drop_last=True)
val_dataloader = dict(dataset=layout)
test_dataloader = dict(dataset=dict(split="val", **layout))
model = dict(decode_head=dict(num_classes=10), auxiliary_head=dict(num_classes=10))

# mmengine's schedules end one step early: these are mmseg's `poly` of power 1 with linear
# warm-up over 1700 steps, at every step as `crossband infrared train` has it.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=16800, val_interval=800)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=1700 + 1, by_epoch=False),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=0, end=16800 + 1, by_epoch=False),
]
default_hooks = dict(
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=800, max_keep_ckpts=2)
)
