from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

for library in ("mmengine", "mmcv", "mmseg", "mmdet", "cv2"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: extra openmmlab", allow_module_level=True)

import cv2  # noqa: E402
from mmdet.registry import MODELS as MMDET  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402
from openmmlab_tester import SMALL, run, script  # noqa: E402

import crossband.shared.plugins.openmmlab  # noqa: E402, F401


def detector(name: str) -> Any:
    """Return a stock config of mmdet's with a small backbone of ours and small heads."""
    configs = Path(importlib.util.find_spec("mmdet").origin).parent / ".mim" / "configs"
    model = Config.fromfile(configs / name).model
    model.backbone = {"type": "crossband.UniRepLKNet", **SMALL}
    if name.startswith("detr"):
        model.backbone["out_indices"] = (3,)
        model.neck.update(in_channels=[32], out_channels=32)
        model.num_queries = model.test_cfg.max_per_img = 8
        model.positional_encoding.num_feats = 16
        for part, attentions in (
            ("encoder", ["self_attn_cfg"]),
            ("decoder", ["self_attn_cfg", "cross_attn_cfg"]),
        ):
            model[part].num_layers = 1
            for attention in attentions:
                model[part].layer_cfg[attention].update(embed_dims=32, num_heads=4)
            model[part].layer_cfg.ffn_cfg.update(embed_dims=32, feedforward_channels=32)
        model.bbox_head.embed_dims = 32
        return model
    model.neck.update(in_channels=[8, 16, 24, 32], out_channels=16)
    if "bbox_head" in model:
        model.neck.update(start_level=0)
        model.bbox_head.update(in_channels=16, feat_channels=16)
        return model
    model.rpn_head.update(in_channels=16, feat_channels=16)
    model.train_cfg.rpn_proposal.update(nms_pre=200, max_per_img=100)
    model.test_cfg.rpn.update(nms_pre=200, max_per_img=100)
    model.roi_head.bbox_roi_extractor.out_channels = 16
    model.roi_head.bbox_head.update(in_channels=16, fc_out_channels=32)
    if "mask_head" in model.roi_head:
        model.roi_head.mask_roi_extractor.out_channels = 16
        model.roi_head.mask_head.update(in_channels=16, conv_out_channels=16, num_convs=1)
    return model


@pytest.mark.parametrize(
    "name",
    [
        "_base_/models/faster-rcnn_r50_fpn.py",
        "_base_/models/mask-rcnn_r50_fpn.py",
        "_base_/models/retinanet_r50_fpn.py",
        "detr/detr_r50_8xb2-150e_coco.py",
    ],
)
def test_detectors(name: str) -> None:
    """Losses, gradients and predictions of stock detectors, without compiled operators."""
    from mmdet.testing import demo_mm_inputs

    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MMDET.build(detector(name))
        shapes = [(3, 96, 128), (3, 128, 96)]
        batch = demo_mm_inputs(2, image_shapes=shapes, num_classes=80, with_mask="mask" in name)
        data = model.data_preprocessor(batch, training=True)
        model.train()
        losses = model.loss(data["inputs"], data["data_samples"])
        loss, _ = model.parse_losses(losses)
        loss.backward()
        assert loss.isfinite() and len(losses) >= 2
        for key, parameter in model.backbone.named_parameters():
            if parameter.grad is not None:
                assert parameter.grad.isfinite().all(), key
        reached = [p for p in model.backbone.parameters() if p.grad is not None]
        assert len(reached) > 0.8 * len(list(model.backbone.parameters()))
        model.eval()
        with torch.no_grad():
            data = model.data_preprocessor(batch, training=False)
            found = model.predict(data["inputs"], data["data_samples"])
    assert len(found) == 2
    for sample in found:
        boxes = sample.pred_instances.bboxes
        assert boxes.shape[1] == 4 and boxes.isfinite().all()
        assert sample.pred_instances.scores.diff().le(0).all() or "retinanet" not in name


DETECTION = """
_base_ = "BASE"
custom_imports = dict(imports=["crossband.shared.plugins.openmmlab"])
default_scope = "mmdet"
randomness = dict(seed=1)
model = dict(
    backbone=dict(_delete_=True, type="crossband.UniRepLKNet", depths=(1, 1, 1, 1),
                  dims=(8, 16, 24, 32), kernel_sizes=((3,), (3,), (3,), (3,))),
    neck=dict(in_channels=[8, 16, 24, 32], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(bbox_roi_extractor=dict(out_channels=16),
                  bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes=2)))
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(96, 96), keep_ratio=True),
    dict(type="PackDetInputs",
         meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"))]
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="CocoDataset", ann_file="DATA/boxes.json", pipeline=pipeline,
                 data_prefix=dict(img="DATA/images/"),
                 metainfo=dict(classes=("disc", "square"))))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="CocoDataset", ann_file="DATA/boxes.json", pipeline=pipeline,
                 data_prefix=dict(img="DATA/images/"), test_mode=True,
                 metainfo=dict(classes=("disc", "square"))))
val_evaluator = dict(type="CocoMetric", ann_file="DATA/boxes.json", metric="bbox")
test_dataloader, test_evaluator = val_dataloader, val_evaluator
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=1)
val_cfg, test_cfg = dict(type="ValLoop"), dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3))
custom_hooks = [dict(type="crossband.RunFolderHook", select="coco/bbox_mAP_50")]
env_cfg = dict(dist_cfg=dict(backend="gloo"))
"""


@pytest.mark.slow
def test_mmdets_own_script(data: Path, tmp_path: Path) -> None:
    images, boxes = [], []
    for index in range(16):
        images.append({"id": index, "file_name": f"{index:02d}.png", "width": 48, "height": 48})
        mask = cv2.imread(str(data / "masks" / f"{index:02d}.png"), cv2.IMREAD_UNCHANGED)
        for kind in (1, 2):
            if (mask == kind).any():
                x, y, width, height = cv2.boundingRect((mask == kind).astype("u1"))
                box = {"id": len(boxes), "image_id": index, "category_id": kind, "iscrowd": 0}
                boxes.append(box | {"bbox": [x, y, width, height], "area": width * height})
    kinds = [{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}]
    content = {"images": images, "annotations": boxes, "categories": kinds}
    (data / "boxes.json").write_text(json.dumps(content))
    library = Path(importlib.util.find_spec("mmdet").origin).parent / ".mim"
    base = library / "configs" / "_base_" / "models" / "faster-rcnn_r50_fpn.py"
    config = tmp_path / "config.py"
    config.write_text(DETECTION.replace("BASE", str(base)).replace("DATA", str(data)))
    script("train.py", config, "--work-dir", tmp_path / "run", library="mmdet")
    checkpoint = tmp_path / "run" / "epoch_1.pth"
    # This script imports detectors before it reads the config.
    launcher = ["-m", "crossband.shared.plugins.mmcv_ext", "mmdet:test"]
    text = run(*launcher, config, checkpoint, "--work-dir", tmp_path / "test")
    assert "coco/bbox_mAP" in text
    trained = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert trained["best"]["metric"] == "val_coco/bbox_mAP_50"
    tested = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert tested["test"]["coco/bbox_mAP_50"] == trained["best"]["val_coco/bbox_mAP_50"]
