"""Models of the domain by name, and the adapters of its golden numbers. Torch-free."""

from __future__ import annotations

from typing import Any

from crossband.shared.registry import ModelEntry

_HERE = "crossband.infrared"
_PAPER = "Zhang et al. 2025, UNIP, ICLR 2025"
_WEIGHTS = "the authors' hub (casiatao), Apache-2.0; see docs/weights.md"
# Mean and standard deviation of InfMix, and of all three channels.
MEAN, STD = (0.3801,) * 3, (0.1871,) * 3
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}


def _entry(name: str, target: str, summary: str, **details: Any) -> ModelEntry:
    return ModelEntry(
        name=name,
        target=target,
        summary=summary,
        paper=_PAPER,
        licence="Apache-2.0 (our code)",
        weights=_WEIGHTS,
        mean=MEAN,
        std=STD,
        **details,
    )


def _pretraining(size: str) -> ModelEntry:
    return _entry(
        f"unip_{size}",
        f"{_HERE}.unip.model:UNIPViT",
        f"ViT-{size[0].upper()}/16 in pre-training, last block of 16 heads (teacher MAE-L)",
        task="pre-training",
        arguments={**SIZES[size], "last_heads": 16},
        official="crossband.shared.backbones.vit_keys:from_official",
        input_shape=(3, 224, 224),
        backbone="crossband.shared.backbones.vit:ViT",
    )


def _segmentor(size: str) -> ModelEntry:
    return _entry(
        f"unip_{size}_upernet",
        "crossband.shared.heads.vit_segmentor:ViTSegmentor",
        f"ViT-{size[0].upper()}/16, LL-FPN, UPerHead and an auxiliary FCNHead, 512 x 512",
        task="segmentation",
        arguments={**SIZES[size], "num_classes": 21},
        official=f"{_HERE}.unip.official:from_official",
        input_shape=(3, 512, 512),
    )


def _probe(size: str) -> ModelEntry:
    depth = SIZES[size]["depth"]
    return _entry(
        f"unip_{size}_linear",
        f"{_HERE}.unip.model:UNIPProbe",
        f"frozen ViT-{size[0].upper()}/16 and one 1x1 convolution on four blocks",
        task="segmentation",
        arguments={
            **SIZES[size],
            "num_classes": 21,
            "out_indices": [depth // 3 - 1, depth // 2 - 1, 2 * depth // 3 - 1, depth - 1],
        },
        input_shape=(3, 512, 512),
    )


def _rival(name: str, target: str, summary: str, paper: str, **details: Any) -> ModelEntry:
    return ModelEntry(
        name=name,
        target=f"{_HERE}.baselines.{target}",
        task="segmentation",
        summary=f"rival: {summary}",
        paper=paper,
        licence="Apache-2.0 (our wrapper)",
        input_shape=(3, 512, 512),
        **details,
    )


_SMP = "segmentation_models:SMPSegmentor"
_MMSEG = "openmmlab:MMSegSegmentor"
RIVALS = (
    _rival(
        *("unet", _SMP, "U-Net with any timm encoder", "Ronneberger et al. 2015"),
        arguments={"decoder": "unet", "num_classes": 21},
    ),
    _rival(
        *("upernet", _SMP, "UPerNet with any timm encoder", "Xiao et al. 2018"),
        arguments={"decoder": "upernet", "num_classes": 21},
    ),
    _rival(
        *("segformer_b0", _MMSEG, "mmseg's SegFormer-B0", "Xie et al. 2021"),
        arguments={"variant": "segformer_b0", "num_classes": 21},
    ),
    _rival(
        *("deeplabv3plus_r18", _MMSEG, "mmseg's DeepLabV3+ on ResNet-18", "Chen et al. 2018"),
        arguments={"variant": "deeplabv3plus_r18", "num_classes": 21},
    ),
)
MODELS: tuple[ModelEntry, ...] = (
    *(_pretraining(size) for size in ("tiny", "small", "base")),
    *(_segmentor(size) for size in SIZES),
    *(_probe(size) for size in SIZES),
    *RIVALS,
)
CONFORMANCE = {
    "unip_distillation": f"{_HERE}.unip.conformance:distillation",
    "unip_segmentor": f"{_HERE}.unip.conformance:segmentor",
    "attention_analysis": f"{_HERE}.unip.conformance:attention_analysis",
}
LOADERS = {"infrared segmentation": f"{_HERE}.segment:Segmenter"}
