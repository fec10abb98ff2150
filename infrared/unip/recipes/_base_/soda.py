"""SODA: 21 classes, 1,168 and 1,000 images. It has no split val, so test is validated on."""

_base_ = "./unip_ll-fpn_upernet.py"

data_root = "{{$CROSSBAND_DATA_ROOT:data/soda}}"
layout = dict(layout="soda", val="test")
train_dataloader = dict(dataset=layout)
val_dataloader = dict(dataset=layout)
test_dataloader = dict(dataset=layout)
model = dict(decode_head=dict(num_classes=21), auxiliary_head=dict(num_classes=21))

# mmengine's schedules end one step early: these are mmseg's `poly` of power 1 with linear
# warm-up over 1500 steps, at every step as `crossband infrared train` has it.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=14400, val_interval=800)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=1500 + 1, by_epoch=False),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=0, end=14400 + 1, by_epoch=False),
]
default_hooks = dict(
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=800, max_keep_ckpts=2)
)
