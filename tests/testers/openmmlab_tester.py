"""What tests of the plugin for OpenMMLab share: a small config, and how runs are started."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SMALL = {
    "depths": (1, 1, 1, 1),
    "dims": (8, 16, 24, 32),
    "kernel_sizes": ((3,), (3,), (3,), (3,)),
    "drop_path_rate": 0.2,
}
CONFIG = """
custom_imports = dict(imports=["crossband.shared.plugins.openmmlab"])
default_scope = "mmseg"
randomness = dict(seed=3)
norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", mean=[100.0] * 3, std=[60.0] * 3,
                           size=(48, 48), seg_pad_val=255),
    backbone=dict(type="crossband.UniRepLKNet", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32),
                  kernel_sizes=((3,), (3,), (3,), (3,)), drop_path_rate=0.2),
    decode_head=dict(type="UPerHead", in_channels=[8, 16, 24, 32], in_index=[0, 1, 2, 3],
                     pool_scales=(1, 2), channels=16, dropout_ratio=0.1, num_classes=3,
                     norm_cfg=norm_cfg, align_corners=False,
                     loss_decode=dict(type="CrossEntropyLoss", avg_non_ignore=True)),
    auxiliary_head=dict(type="FCNHead", in_channels=24, in_index=2, channels=8, num_convs=1,
                        num_classes=3, norm_cfg=norm_cfg, align_corners=False,
                        loss_decode=dict(type="CrossEntropyLoss", loss_weight=0.4)),
    train_cfg=dict(), test_cfg=dict(mode="whole"))
train_pipeline = [
    dict(type="crossband.LoadThermalImage", value_range=(0, 255)),
    dict(type="LoadAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs")]
test_pipeline = [
    dict(type="crossband.LoadThermalImage", value_range=(0, 255)),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs")]
data = dict(type="crossband.FolderSegDataset", data_root="DATA")
train_dataloader = dict(batch_size=4, num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(ann_file="train.txt", pipeline=train_pipeline, **data))
val_dataloader = dict(batch_size=1, num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(ann_file="val.txt", pipeline=test_pipeline, **data))
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3))
param_scheduler = [dict(type="PolyLR", eta_min=0, power=0.9, begin=0, end=40, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=6, val_interval=3)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=3))
custom_hooks = [dict(type="crossband.RunFolderHook", select="mIoU"),
                dict(type="crossband.ReseedHook")]
log_processor = dict(by_epoch=False)
env_cfg = dict(dist_cfg=dict(backend="gloo"))
visualizer = dict(type="SegLocalVisualizer", vis_backends=[])
"""


def script(name: str, *arguments: str | Path, library: str = "mmseg") -> str:
    """Run a tool of the library itself, by its path, and return what it says."""
    tools = Path(importlib.util.find_spec(library).origin).parent / ".mim" / "tools"
    return run(str(tools / name), *arguments)


def run(*arguments: str | Path) -> str:
    """Run Python in a process of its own."""
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def train(config: Path, folder: Path, **options: Any) -> Any:
    """Train in this process; return the runner."""
    from mmengine.config import Config
    from mmengine.runner import Runner

    settings = Config.fromfile(config)
    settings.work_dir = str(folder)
    settings.merge_from_dict({"experiment_name": folder.name, **options})
    settings.log_level = "ERROR"
    runner = Runner.from_cfg(settings)
    runner.train()
    return runner


def weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a file that mmengine wrote."""
    from mmengine.runner.checkpoint import CheckpointLoader

    content = CheckpointLoader.load_checkpoint(str(path), "cpu")
    return content["state_dict"]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two state dicts are bitwise equal."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
