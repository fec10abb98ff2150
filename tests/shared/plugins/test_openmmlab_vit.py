"""A plain ViT with our necks inside mmseg's and mmdet's models."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

for library in ("mmengine", "mmcv", "mmseg", "mmdet"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: extra openmmlab", allow_module_level=True)

import crossband.shared.plugins.openmmlab  # noqa: E402, F401, I001 - before mmseg
from mmseg.registry import MODELS  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402
from mmengine.config import ConfigDict  # noqa: E402
from mmengine.structures import PixelData  # noqa: E402

from crossband.shared.layers.pos_embed import resample_pos_embed  # noqa: E402

VIT = {
    "type": "crossband.ViT", "img_size": 64, "embed_dim": 24, "depth": 3, "num_heads": 3,
    "out_indices": (-1,),
}  # fmt: skip


def segmenter(neck: dict[str, Any], channels: list[int], head: dict[str, Any]) -> Any:
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope("mmseg"):
        return MODELS.build(ConfigDict({
            "type": "EncoderDecoder",
            "data_preprocessor": {"type": "SegDataPreProcessor", "size": (64, 64)},
            "backbone": VIT,
            "neck": neck,
            "decode_head": {
                "in_channels": channels, "channels": 16, "num_classes": 2, "dropout_ratio": 0.0,
                "norm_cfg": {"type": "BN"}, "align_corners": False,
                "loss_decode": {"type": "CrossEntropyLoss"}, **head,
            },
            "train_cfg": {}, "test_cfg": {"mode": "whole"},
        }))  # fmt: skip


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 64, 64, generator=generator)
    image[..., 32:] += 2.0
    label = (torch.arange(64) >= 32).long().expand(64, 64)[None]
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for _ in image]
    for sample in samples:
        sample.set_metainfo({"img_shape": (64, 64), "ori_shape": (64, 64), "pad_shape": (64, 64)})
    return {"inputs": list(image), "data_samples": samples}


@pytest.mark.parametrize(
    "neck, channels, head",
    [
        ("LLFPN", [24] * 4, {"type": "UPerHead", "in_index": [0, 1, 2, 3], "pool_scales": (1, 2)}),
        (
            "SimpleFeaturePyramid",
            [8] * 4,
            {"type": "SegformerHead", "in_index": [0, 1, 2, 3]},
        ),
    ],
)
def test_segmenters_learn_and_predict(neck: str, channels: list[int], head: dict) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"type": f"crossband.{neck}", "channels": 24}
    if neck == "SimpleFeaturePyramid":
        options["out_channels"] = 8
    model = segmenter(options, channels, head)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        data = model.data_preprocessor(batch(), True)
        loss = sum(v for k, v in model(**data, mode="loss").items() if "loss" in k)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    model.eval()
    with torch.no_grad():
        found = model(**model.data_preprocessor(batch(), False), mode="predict")
    prediction = found[0].pred_sem_seg.data[0]
    assert prediction.shape == (64, 64)
    assert (prediction[:, 32:] == 1).float().mean() > 0.8


def test_a_detector_takes_the_pyramid() -> None:
    from mmdet.registry import MODELS as DETECTORS
    from mmengine.registry import DefaultScope

    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = DETECTORS.build(ConfigDict({
            "type": "RetinaNet",
            "data_preprocessor": {"type": "DetDataPreprocessor"},
            "backbone": VIT,
            "neck": {"type": "crossband.SimpleFeaturePyramid", "channels": 24, "out_channels": 16},
            "bbox_head": {
                "type": "RetinaHead", "num_classes": 2, "in_channels": 16, "stacked_convs": 1,
                "feat_channels": 16,
                "anchor_generator": {
                    "type": "AnchorGenerator", "octave_base_scale": 4, "scales_per_octave": 1,
                    "ratios": [1.0], "strides": [4, 8, 16, 32],
                },
            },
            "train_cfg": {
                "assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4,
                             "min_pos_iou": 0.0, "ignore_iof_thr": -1},
                "allowed_border": -1, "pos_weight": -1, "debug": False,
            },
            "test_cfg": {"nms_pre": 100, "score_thr": 0.0, "max_per_img": 5,
                         "nms": {"type": "nms", "iou_threshold": 0.5}},
        }))  # fmt: skip
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    sample = DetDataSample(metainfo={
        "img_shape": (64, 64), "ori_shape": (64, 64), "batch_input_shape": (64, 64),
        "scale_factor": (1.0, 1.0),
    })  # fmt: skip
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1]))
    data = model.data_preprocessor(
        {"inputs": [torch.rand(3, 64, 64) * 255], "data_samples": [sample]}, True
    )
    losses = model(**data, mode="loss")
    total = sum(v if torch.is_tensor(v) else sum(v) for v in losses.values())
    total.backward()
    assert total.isfinite() and all(
        p.grad is not None for n, p in model.named_parameters() if n.startswith("neck.")
    )
    with torch.no_grad():
        found = model.eval()(**data, mode="predict")
    assert len(found[0].pred_instances) <= 5


def test_blocks_can_be_frozen() -> None:
    model = MODELS.build({**VIT, "frozen_stages": 2})
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith("blocks.2.") for name in trained)


def test_tables_of_others_are_square_and_those_of_our_runs_are_not(tmp_path: Path) -> None:
    source = MODELS.build({**VIT, "img_size": 32})
    path, long = tmp_path / "x.pth", {**VIT, "img_size": (16, 64)}
    wanted = resample_pos_embed(source.pos_embed, (2, 2), (1, 4))
    for meta, table in (({}, wanted), ({"cfg": "type='crossband.ViT'"}, source.pos_embed)):
        torch.save({"state_dict": source.state_dict(), "meta": meta}, path)
        init = {"type": "Pretrained", "checkpoint": str(path)}
        model = MODELS.build({**long, "init_cfg": init})
        model.init_weights()
        torch.testing.assert_close(model.pos_embed, table)
