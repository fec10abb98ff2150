"""Models of the domain by name, and what reads its checkpoints. Torch-free."""

from __future__ import annotations

from typing import Any

from crossband.shared.registry import IMAGENET_MEAN, IMAGENET_STD, ModelEntry

_HERE = "crossband.medical"
_PAPER = (
    "Xiao et al. 2023, Delving into Masked Autoencoders for Multi-Label Thorax Disease "
    "Classification, WACV 2023"
)
_LVM_MED = (
    "Nguyen et al. 2023, LVM-Med: Learning Large-Scale Self-Supervised Vision Models for Medical "
    "Imaging via Second-order Graph Matching, NeurIPS 2023, arXiv 2306.11925"
)
_WEIGHTS = "the authors' repository medical_mae, Apache-2.0; see docs/weights.md"
_UNET = "crossband.shared.heads.unet:BackboneUNet"
# Of ChestX-ray14's pixels in 0..1, the same for all three channels.
MEAN, STD = (0.5056,) * 3, (0.252,) * 3
NIH = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
    *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening"),
    "Hernia",
)
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "patch_size": 14},
}
# Masked autoencoder of each size, as the paper pairs encoder and decoder.
AUTOENCODERS = {
    "tiny": "mae_vit_tiny",
    "small": "mae_vit_small_dec512d2b",
    "base": "mae_vit_base_dec512d8b",
    "large": "mae_vit_large_dec512d8b",
    "huge": "mae_vit_huge_dec512d8b",
}


def _entry(name: str, summary: str, **details: Any) -> ModelEntry:
    return ModelEntry(
        name=name,
        summary=summary,
        paper=_PAPER,
        licence="Apache-2.0 (our code)",
        mean=MEAN,
        std=STD,
        input_shape=(3, 224, 224),
        **details,
    )


def _classifier(size: str) -> ModelEntry:
    patch = SIZES[size].get("patch_size", 16)
    return _entry(
        f"chest_mae_vit_{size}",
        f"ViT-{size[0].upper()}/{patch}, mean of the patches, 14 findings",
        target="crossband.shared.backbones.vit:ViTClassifier",
        task="classification",
        arguments={**SIZES[size], "global_pool": "avg", "num_classes": len(NIH)},
        official=f"{_HERE}.chest_mae.official:from_official",
        weights=_WEIGHTS,
    )


def _segmentor(size: str) -> ModelEntry:
    return _entry(
        f"chest_mae_vit_{size}_upernet",
        f"ViT-{size[0].upper()}/16, LL-FPN and UPerHead, convolutions at full resolution beside it",
        target="crossband.shared.heads.vit_segmentor:ViTSegmentor",
        task="segmentation",
        arguments={
            **SIZES[size],
            "img_size": 224,
            "num_classes": 2,
            "channels": 64,
            "detail": 32,
            "auxiliary": False,
            "layer_scale_init": None,
        },
    )


def _unet(size: str) -> ModelEntry:
    return _entry(
        f"chest_mae_vit_{size}_unet",
        f"U-Net at half resolution with a ViT-{size[0].upper()}/16 as its deepest level",
        target="crossband.shared.heads.vit_unet:ViTUNet",
        task="segmentation",
        arguments={**SIZES[size], "num_classes": 2},
    )


def _cnn(encoder: str) -> ModelEntry:
    return _entry(
        f"cnn_mae_{encoder}",
        f"masked pre-training of {encoder} in a U-Net",
        target="crossband.shared.pretraining.cnn_mae:CNNMAE",
        task="pre-training",
        arguments={"encoder": encoder},
        weights=_WEIGHTS,
    )


def _lvm_med(name: str, summary: str, file: str, target: str, **details: Any) -> ModelEntry:
    return ModelEntry(
        name=f"lvm_med_{name}",
        summary=summary,
        target=target,
        task="features",
        paper=_LVM_MED,
        licence="Apache-2.0 (our code); the authors' weights CC BY-NC-ND 2.0",
        weights=f"{file}; see docs/weights.md",
        official=f"{_HERE}.lvm_med.official:from_official",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        **details,
    )


def _lvm_med_vit(size: str, file: str, **arguments: Any) -> ModelEntry:
    encoder = "crossband.shared.backbones.sam:SAMEncoder"
    return _lvm_med(
        f"vit_{size}",
        f"SAM's ViT-{size[0].upper()}/16 without a table of positions, pre-trained by matching",
        file,
        encoder,
        backbone=encoder,
        input_shape=(3, 1024, 1024),
        arguments={"use_abs_pos": False, **arguments},
    )


def _around_encoder(
    name: str, summary: str, target: str, task: str = "segmentation", **arguments: Any
) -> ModelEntry:
    return ModelEntry(
        name=f"lvm_med_{name}",
        summary=summary,
        target=target,
        task=task,
        paper=_LVM_MED,
        licence="Apache-2.0 (our code)",
        input_shape=(3, 224, 224),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        arguments=arguments,
    )


MODELS: tuple[ModelEntry, ...] = (
    *(_classifier(size) for size in SIZES),
    *(_segmentor(size) for size in ("tiny", "small", "base", "large")),
    *(_unet(size) for size in ("tiny", "small", "base", "large")),
    *(_cnn(encoder) for encoder in ("densenet121", "resnet50")),
    _lvm_med(
        "resnet50",
        "ResNet-50 pre-trained by matching; pooled features, or classes",
        "lvmmed_resnet.torch",
        f"{_HERE}.lvm_med.encoder:ResNet50",
        backbone=f"{_HERE}.lvm_med.encoder:ResNet50Backbone",
        input_shape=(3, 224, 224),
    ),
    _lvm_med_vit("base", "lvmmed_vit.pth"),
    _lvm_med_vit(
        "huge",
        "the authors' ViT-H, trained on LIVECell after SAM",
        embed_dim=1280,
        depth=32,
        num_heads=16,
        global_attn_indexes=(7, 15, 23, 31),
    ),
    _around_encoder(
        "resnet50_unet",
        "U-Net of segmentation_models_pytorch on LVM-Med's ResNet-50",
        _UNET,
        backbone="lvm_med_resnet50",
        num_classes=2,
    ),
    _around_encoder(
        "vit_base_unet",
        "U-Net at half resolution with LVM-Med's (SAM's) ViT-B as its deepest level",
        "crossband.shared.heads.vit_unet:SAMUNet",
        encoder={"use_abs_pos": False},
        num_classes=2,
    ),
    _around_encoder(
        "vit_base_classifier",
        "classes from the mean of the last map of LVM-Med's (SAM's) ViT-B",
        "crossband.shared.heads.pooled:PooledClassifier",
        task="classification",
        backbone="lvm_med_vit_base",
        num_classes=4,
    ),
    ModelEntry(
        name="backbone_unet",
        summary="U-Net of segmentation_models_pytorch on any backbone of ours or of timm",
        target=_UNET,
        task="segmentation",
        paper="Ronneberger et al. 2015, U-Net, MICCAI 2015, arXiv 1505.04597",
        licence="Apache-2.0 (our code)",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    ModelEntry(
        name="lvm_med_sam_vit_base",
        summary="all of Segment Anything on ViT-B, or on LVM-Med's encoder: masks from boxes",
        target="crossband.shared.promptable.model:SAM",
        task="prompted segmentation",
        paper=f"Kirillov et al. 2023, Segment Anything, ICCV 2023; {_LVM_MED}",
        licence="Apache-2.0 (our code)",
        weights="sam_vit_b_01ec64.pth, Apache-2.0; see docs/weights.md",
        input_shape=(3, 1024, 1024),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    ModelEntry(
        name="lvm_med",
        summary="pre-training of any backbone by second-order graph matching",
        target=f"{_HERE}.lvm_med.model:LVMMed",
        task="pre-training",
        paper=_LVM_MED,
        licence="Apache-2.0 (our code)",
        arguments={"backbone": "resnet50"},
    ),
)
CONFORMANCE: dict[str, str] = {
    "graph_matching_solver": "crossband.shared.matching.conformance:solver",
    "lvm_med_matching_loss": f"{_HERE}.lvm_med.conformance:draft_loss",
    "lvm_med_imle": f"{_HERE}.lvm_med.conformance:paper_loss",
    "lvm_med_local_affinity": f"{_HERE}.lvm_med.conformance:local_parts",
}
LOADERS = {
    "medical classification": f"{_HERE}.reader:Reader",
    "medical segmentation": f"{_HERE}.segmenter:Segmenter",
    "medical prompted segmentation": f"{_HERE}.prompted.segmenter:PromptedSegmenter",
    "medical detection": f"{_HERE}.detection.detector:Detector",
}
BUNDLES = {
    "medical classification": f"{_HERE}.bundles.writing:write",
    "medical segmentation": f"{_HERE}.bundles.writing:write",
}
