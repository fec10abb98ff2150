"""SIRST-V2 at 512 pixels; not a data set of the paper. 100 epochs of 200 images."""

_base_ = "./unip_ll-fpn_upernet.py"

data_root = "{{$CROSSBAND_DATA_ROOT:data/sirst_v2}}"
layout = dict(layout="sirst")
train_dataloader = dict(dataset=layout)
val_dataloader = dict(dataset=layout)
test_dataloader = dict(dataset=layout)
model = dict(decode_head=dict(num_classes=2), auxiliary_head=dict(num_classes=2))

# mmengine's schedules end one step early: these are mmseg's `poly` of power 1 with linear
# warm-up over 250 steps, at every step as `crossband infrared train` has it.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=2500, val_interval=250)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=250 + 1, by_epoch=False),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=0, end=2500 + 1, by_epoch=False),
]
default_hooks = dict(
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=250, max_keep_ckpts=2)
)
