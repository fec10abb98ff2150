"""The thermal channel of MFNet: 9 classes, 784, 392 and 393 images."""

_base_ = "./unip_ll-fpn_upernet.py"

data_root = "{{$CROSSBAND_DATA_ROOT:data/mfnet}}"
layout = dict(layout="mfnet")
train_dataloader = dict(dataset=layout)
val_dataloader = dict(dataset=layout)
test_dataloader = dict(dataset=layout)
model = dict(decode_head=dict(num_classes=9), auxiliary_head=dict(num_classes=9))

# mmengine's schedules end one step early: these are mmseg's `poly` of power 1 with linear
# warm-up over 1000 steps, at every step as `crossband infrared train` has it.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=9800, val_interval=700)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=1000 + 1, by_epoch=False),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=0, end=9800 + 1, by_epoch=False),
]
default_hooks = dict(
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=700, max_keep_ckpts=2)
)
