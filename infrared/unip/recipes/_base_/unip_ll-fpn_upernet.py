"""UNIP with LL-FPN and UPerHead, fine-tuned as in the paper: what all configs have in common.

100 epochs at batch 8 (two GPUs of 4, or one of 8), AdamW with layer decay 0.85, linear warm-up,
then linearly to zero, crops of 512, slide inference. Runs by mmseg's own scripts, from anywhere:

    python <site-packages>/mmseg/.mim/tools/train.py CONFIG --cfg-options data_root=FOLDER \
        model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=UNIP.pth
"""

custom_imports = dict(
    imports=["crossband.shared.plugins.openmmlab", "crossband.infrared.openmmlab"]
)
default_scope = "mmseg"
randomness = dict(seed=0)
env_cfg = dict(cudnn_benchmark=False, dist_cfg=dict(backend="nccl"))
sync_bn = "torch"  # batch norms of several GPUs are joined; those of one, and of a CPU, are plain

crop_size = (512, 512)
norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[96.9255] * 3,
        std=[47.8976] * 3,
        bgr_to_rgb=True,
        size=crop_size,
        test_cfg=dict(size=crop_size),  # images smaller than a window are filled up
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type="crossband.UNIPBackbone",
        variant="small",
        img_size=512,
        out_indices=(11,),  # LL-FPN: the last block alone
        layer_scale_init=1.0,
        drop_path_rate=0.1,
    ),
    neck=dict(type="crossband.LLFPN", channels=384),
    decode_head=dict(
        type="UPerHead",
        in_channels=[384] * 4,
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=384,
        dropout_ratio=0.1,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels=384,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="slide", crop_size=crop_size, stride=(341, 341)),
)

# The same as the defaults of `crossband infrared train`.
data = dict(
    type="crossband.InfraredSegDataset",
    channel="thermal",
    scale=dict(short_side=512, long_side=2048),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="crossband.EpochSampler"),
    dataset=dict(
        **data,
        split="train",
        crop=512,
        ratio=(0.5, 2.0),
        cat_max_ratio=0.75,
        flips="horizontal",
        photometric=True,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**data, split="val", test_mode=True),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**data, split="test", test_mode=True),
)
# For mmseg.apis.inference_model.
test_pipeline = [
    dict(type="crossband.LoadFrame"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    dict(type="PackSegInputs"),
]
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="crossband.LayerDecay",
    # The authors' code means to spare positions and class token of weight decay and does not
    # (docs/openmmlab.md); False is what it means.
    paramwise_cfg=dict(decay_rate=0.85, decay_positions=True),
)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="SegVisualizationHook"),
)
custom_hooks = [
    dict(type="crossband.InfraredRunFolderHook", select="mIoU"),
    dict(type="crossband.StepSeedHook"),
]
log_processor = dict(by_epoch=False)
log_level = "INFO"
visualizer = dict(
    type="crossband.CommonRootVisualizer", vis_backends=[dict(type="LocalVisBackend")]
)
