"""Backbones by name, and the adapters of their golden numbers. Torch-free."""

from __future__ import annotations

from typing import Any

from crossband.shared.registry import IMAGENET_MEAN, IMAGENET_STD, ModelEntry

_HERE = "crossband.shared.backbones"
_PRETRAINING = "crossband.shared.pretraining"
_DVPT = "crossband.shared.tuning.dvpt"


def _entry(family: str, module: str, name: str, size: int, **details: Any) -> ModelEntry:
    return ModelEntry(
        name=name,
        target=f"{_HERE}.{module}:{family}Classifier",
        backbone=f"{_HERE}.{module}:{family}",
        task="classification",
        input_shape=(3, size, size),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        official=f"{_HERE}.official:from_official",
        **details,
    )


def _transnext(
    size: str,
    dims: tuple[int, ...],
    depths: tuple[int, ...],
    file: str,
    *,
    name: str = "",
    side: int = 224,
    accuracy: str,
    **arguments: Any,
) -> ModelEntry:
    return _entry(
        "TransNeXt",
        "transnext",
        name or f"transnext_{size}",
        side,
        summary=f"aggregated attention, {side} px; published top-1 on ImageNet-1k {accuracy}",
        paper="Shi 2024, TransNeXt, arXiv 2311.17132",
        licence="Apache-2.0 (our code; the authors' weights too)",
        weights=f"{file} of the account DaiShiResearch",
        arguments={"embed_dims": dims, "depths": depths, **arguments},
    )


def _unireplknet(
    size: str,
    dim: int,
    depths: tuple[int, ...],
    file: str,
    accuracy: str,
    *,
    pattern: tuple[int, ...] = (13,),
    side: int = 224,
) -> ModelEntry:
    deep = depths[2]
    kernels = (
        (3,) * depths[0],
        (13,) * depths[1],
        (pattern * deep)[:deep],
        (13,) * depths[3],
    )
    return _entry(
        "UniRepLKNet",
        "unireplknet",
        f"unireplknet_{size}",
        side,
        summary=f"13 x 13 kernels that re-parameterise; published top-1 {accuracy} at {side} px",
        paper="Ding et al. 2024, UniRepLKNet, arXiv 2311.15599",
        licence="Apache-2.0 (our code; the authors' weights too)",
        weights=f"{file} of the account DingXiaoH, repository UniRepLKNet",
        arguments={
            "depths": depths,
            "dims": (dim, 2 * dim, 4 * dim, 8 * dim),
            "kernel_sizes": kernels,
        },
    )


def _hornet(
    size: str,
    dim: int,
    kind: str,
    accuracy: str,
    *,
    side: int = 224,
    filters: tuple[tuple[int, int] | None, ...] = (None, None, (14, 8), (7, 4)),
) -> ModelEntry:
    arguments: dict[str, Any] = {"base_dim": dim}
    if kind != "7x7":
        arguments["filter_sizes"] = filters
    return _entry(
        "HorNet",
        "hornet",
        f"hornet_{size}_{kind}",
        side,
        summary=f"recursive gated convolution; published top-1 on ImageNet-1k {accuracy}",
        paper="Rao et al. 2022, HorNet, arXiv 2207.14284",
        licence="Apache-2.0 (our code); the authors' weights MIT",
        weights="the authors' cloud drive, which is not always reachable",
        arguments=arguments,
    )


def _vit(
    name: str, dim: int, depth: int, heads: int, *, head: dict | None = None, **arguments: Any
) -> ModelEntry:
    clip = name.startswith("clip")
    return ModelEntry(
        name=name,
        target=f"{_HERE}.vit:ViTClassifier",
        backbone=f"{_HERE}.vit:ViT",
        task="classification",
        input_shape=(3, 224, 224),
        mean=(0.48145466, 0.4578275, 0.40821073) if clip else IMAGENET_MEAN,
        std=(0.26862954, 0.26130258, 0.27577711) if clip else IMAGENET_STD,
        official=f"{_HERE}.vit_keys:from_official",
        summary=f"plain ViT, {dim} channels, {depth} blocks, {heads} heads",
        paper="Radford et al. 2021, CLIP, arXiv 2103.00020"
        if clip
        else "Dosovitskiy et al. 2021, ViT, arXiv 2010.11929",
        licence="Apache-2.0 (our code); weights: see who trained them",
        weights="timm, MAE, DINO, iBOT, UNIP and CLIP files load, see shared/backbones/vit_keys.py",
        arguments={"embed_dim": dim, "depth": depth, "num_heads": heads, **arguments},
        head=head or {},
    )


def _sam(name: str, summary: str, weights: str, licence: str, **arguments: Any) -> ModelEntry:
    return ModelEntry(
        name=name,
        target=f"{_HERE}.sam:SAMEncoder",
        backbone=f"{_HERE}.sam:SAMEncoder",
        task="features",
        input_shape=(3, 1024, 1024),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        official=f"{_HERE}.sam:from_official",
        summary=summary,
        paper="Kirillov et al. 2023, Segment Anything, arXiv 2304.02643",
        licence=licence,
        weights=weights,
        arguments=arguments,
    )


def _mae(
    name: str,
    encoder: tuple[int, int, int],
    decoder: tuple[int, int, int],
    weights: str = "none published",
    *,
    side: int = 224,
    student: bool = False,
    **arguments: Any,
) -> ModelEntry:
    dim, depth, heads = encoder
    decoder_dim, decoder_depth, decoder_heads = decoder
    own = " of our choice" if name == "mae_vit_tiny" else ""
    return ModelEntry(
        name=name,
        target=f"{_PRETRAINING}.g2sd:G2SDStudent" if student else f"{_PRETRAINING}.mae:MAE",
        task="pre-training",
        input_shape=(3, side, side),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        official=f"{_PRETRAINING}.mae:from_official",
        summary=f"masked autoencoder{' that learns from a larger one' if student else ''}, ViT of "
        f"{dim} channels and {depth} blocks, decoder{own} of {decoder_dim} and {decoder_depth}",
        paper="Huang et al. 2023, G2SD, arXiv 2302.14771"
        if student
        else "He et al. 2022, MAE, arXiv 2111.06377",
        licence="Apache-2.0 (our code); weights: see who trained them"
        if student
        else "Apache-2.0 (our code); MAE's weights CC BY-NC 4.0",
        weights=weights,
        arguments={
            **{"img_size": side, "embed_dim": dim, "depth": depth, "num_heads": heads},
            **{"decoder_embed_dim": decoder_dim, "decoder_depth": decoder_depth},
            "decoder_num_heads": decoder_heads,
            **arguments,
        },
    )


def _multimae(
    name: str, target: str, summary: str, weights: str = "none published", **arguments: Any
) -> ModelEntry:
    return ModelEntry(
        name=name,
        target=f"{_PRETRAINING}.{target}",
        task="segmentation" if name.startswith("multivit") else "pre-training",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        official=f"{_PRETRAINING}.multimae_keys:from_official",
        summary=summary,
        paper="Bachmann et al. 2022, MultiMAE, arXiv 2204.01678",
        licence="Apache-2.0 (our code); the authors' weights CC BY-NC 4.0",
        weights=weights,
        arguments=arguments,
    )


def _dvpt(name: str, target: str, side: int, base: str, weights: str, task: str) -> ModelEntry:
    """Describe a frozen network with prompts; values of images are 0 to 1, to segment 0 to 255."""
    return ModelEntry(
        name=name,
        target=f"{_DVPT}.{target}",
        task=task,
        input_shape=(3, side, side),
        mean=(0.0, 0.0, 0.0),
        std=(1 / 255 if task == "segmentation" else 1.0,) * 3,
        official=f"{_DVPT}.official:from_official",
        summary=f"{base} with the dynamic prompts of the released code, {side} px",
        paper="He et al. 2025, DVPT, arXiv 2307.09787",
        licence="Apache-2.0 (our own code; the authors' is for academic use only); weights: see "
        "who trained them",
        weights=f"DVPT's: none published; to start from: {weights}",
    )


_CLIP = {
    "pre_norm": True,
    "patch_bias": False,
    "act": "quick_gelu",
    "norm_eps": 1e-5,
    "head": {"num_classes": 512, "head_bias": False},
}
_MICRO, _TINY, _BASE = (48, 96, 192, 384), (72, 144, 288, 576), (96, 192, 384, 768)
_SHALLOW, _SMALL = (2, 2, 15, 2), (5, 5, 22, 5)
_LITTLE = (2, 2, 6, 2)
_DEEP = (3, 3, 27, 3)
_FILTERS_384 = (None, None, (24, 13), (12, 7))
_22K = "unknown (published for ImageNet-22k)"
_T, _S, _B, _L = (192, 12, 3), (384, 12, 6), (768, 12, 12), (1024, 24, 16)
_RGB_DEPTH = {"rgb": 3, "depth": 1}
_LABELS = {"channels": 133, "labels": True, "stride": 4}
_RGB_THERMAL = {"rgb": 3, "thermal": 1}
_DRIVE = "the authors' drive folder, which is not always reachable"
_XRAY = "medical_mae of the account lambert-x (chest X-rays)"

MODELS: tuple[ModelEntry, ...] = (
    _transnext("micro", _MICRO, _SHALLOW, "transnext_micro_224_1k.pth", accuracy="82.5"),
    _transnext("tiny", _TINY, _SHALLOW, "transnext_tiny_224_1k.pth", accuracy="84.0"),
    _transnext("small", _TINY, _SMALL, "transnext_small_224_1k.pth", accuracy="84.7"),
    _transnext("base", _BASE, (5, 5, 23, 5), "transnext_base_224_1k.pth", accuracy="84.8"),
    _transnext(
        "small",
        _TINY,
        _SMALL,
        "transnext_small_384_1k_ft_1k.pth",
        name="transnext_small_384",
        side=384,
        accuracy="86.0",
    ),
    _transnext(
        "base",
        _BASE,
        (5, 5, 23, 5),
        "transnext_base_384_1k_ft_1k.pth",
        name="transnext_base_384",
        side=384,
        accuracy="86.2",
    ),
    _transnext(
        "micro",
        _MICRO,
        _SHALLOW,
        "transnext_micro_AAAA_256_1k.pth",
        name="transnext_micro_aaaa",
        side=256,
        accuracy="82.6",
        sr_ratios=(16, 8, 4, 2),
        pretrain_size=256,
    ),
    _unireplknet("a", 40, _LITTLE, "the file of size A", "77.0"),
    _unireplknet("f", 48, _LITTLE, "the file of size F", "78.6"),
    _unireplknet("p", 64, _LITTLE, "the file of size P", "80.2"),
    _unireplknet("n", 80, (2, 2, 8, 2), "the file of size N", "81.6"),
    _unireplknet(
        "t",
        80,
        (3, 3, 18, 3),
        "unireplknet_t_in1k_224_acc83.21.pth",
        "83.2",
        pattern=(13, 3),
    ),
    _unireplknet(
        "s", 96, _DEEP, "unireplknet_s_in22k_pretrain.pth and others", "83.9", pattern=(13, 3, 3)
    ),
    _unireplknet(
        "b",
        128,
        _DEEP,
        "unireplknet_b_in22k_to_in1k_384_acc87.40.pth",
        "87.4",
        pattern=(13, 3, 3),
        side=384,
    ),
    _unireplknet("l", 192, _DEEP, "the file of size L", "87.9", pattern=(13, 3, 3), side=384),
    _unireplknet("xl", 256, _DEEP, "the file of size XL", "88.0", pattern=(13, 3, 3), side=384),
    _hornet("tiny", 64, "7x7", "82.8"),
    _hornet("tiny", 64, "gf", "83.0"),
    _hornet("small", 96, "7x7", "83.8"),
    _hornet("small", 96, "gf", "84.0"),
    _hornet("base", 128, "7x7", "84.2"),
    _hornet("base", 128, "gf", "84.3"),
    _hornet("base", 128, "gf_img384", "unknown", side=384, filters=_FILTERS_384),
    _hornet("large", 192, "7x7", _22K),
    _hornet("large", 192, "gf", _22K),
    _hornet("large", 192, "gf_img384", _22K, side=384, filters=_FILTERS_384),
    _vit("vit_tiny_patch16", 192, 12, 3),
    _vit("vit_small_patch16", 384, 12, 6),
    _vit("vit_base_patch16", 768, 12, 12),
    _vit("vit_large_patch16", 1024, 24, 16),
    _vit("clip_vit_base_patch16", 768, 12, 12, **_CLIP),
    _vit("clip_vit_base_patch32", 768, 12, 12, patch_size=32, **_CLIP),
    _sam(
        "sam_vit_base",
        "image encoder of Segment Anything, windows of 14",
        "sam_vit_b_01ec64.pth",
        "Apache-2.0 (our code; the authors' weights too)",
    ),
    _mae("mae_vit_tiny", _T, (128, 4, 4)),
    _mae("mae_vit_small_dec128d2b", _S, (128, 2, 16)),
    _mae("mae_vit_small_dec512d2b", _S, (512, 2, 16), _XRAY),
    _mae("mae_vit_small_dec512d2b_448", _S, (512, 2, 16), side=448),
    _mae("mae_vit_small_dec512d8b", _S, (512, 8, 16)),
    _mae("mae_vit_base_dec512d2b", _B, (512, 2, 16)),
    _mae("mae_vit_base_dec512d8b", _B, (512, 8, 16), f"mae_pretrain_vit_base_full.pth; {_XRAY}"),
    _mae("mae_vit_large_dec512d8b", _L, (512, 8, 16), "mae_pretrain_vit_large_full.pth"),
    _mae("mae_vit_huge_dec512d8b", (1280, 32, 16), (512, 8, 16), patch_size=14),
    _mae("g2sd_vit_tiny_dec128d4b", _T, (128, 4, 4), _DRIVE, student=True),
    _mae("g2sd_vit_small_dec256d4b", _S, (256, 4, 8), _DRIVE, student=True),
    _multimae(
        "multimae_vit_base",
        "multimae:MultiMAE",
        "masked autoencoder of colour, depth and label maps",
        "the files of the account EPFL-VILAB, repository MultiMAE",
        modalities={**_RGB_DEPTH, "semseg": _LABELS},
        outputs=("rgb", "depth", "semseg", "norm_rgb"),
    ),
    _multimae(
        "multimae_vit_tiny",
        "multimae:MultiMAE",
        "masked autoencoder of colour and thermal images, of our size",
        modalities=_RGB_THERMAL,
        outputs=("rgb", "thermal"),
        **{"embed_dim": 192, "num_heads": 3, "decoder_embed_dim": 128, "decoder_num_heads": 4},
    ),
    _multimae(
        "multivit_base",
        "multimae_heads:MultiViT",
        "MultiMAE's encoder of colour and depth with a head for classes or values",
        modalities=_RGB_DEPTH,
    ),
    _multimae(
        "multivit_tiny",
        "multimae_heads:MultiViT",
        "encoder of colour and thermal images with a head for classes or values, of our size",
        modalities=_RGB_THERMAL,
        head_options={"embed_dim": 1024, "depth": 2},
        **{"embed_dim": 192, "num_heads": 3},
    ),
    _dvpt(
        "dvpt_clip_vit_base",
        "clip:DVPTCLIP",
        288,
        "CLIP's ViT-B/16",
        "the visual tower of OpenAI's ViT-B/16, as plain tensors",
        "features",
    ),
    _dvpt(
        "dvpt_swin_base",
        "swin:DVPTSwin",
        224,
        "Swin-B",
        "swin_base_patch4_window7_224_22k.pth",
        "features",
    ),
    _dvpt(
        "dvpt_segformer_b4",
        "segformer:DVPTSegFormer",
        512,
        "SegFormer-B4",
        "segformerb4_512x512ade160k.pth",
        "segmentation",
    ),
)
CONFORMANCE = {
    "transnext": f"{_HERE}.conformance:transnext",
    "unireplknet": f"{_HERE}.conformance:unireplknet",
    "unireplknet_trainstep": f"{_HERE}.conformance:unireplknet_trainstep",
    "dilated_reparam": f"{_HERE}.conformance:dilated_reparam",
    "hornet": f"{_HERE}.conformance:hornet",
    "vit_classifier": f"{_HERE}.vit_conformance:vit_classifier",
    "sam_encoder": f"{_HERE}.vit_conformance:sam_encoder",
    "mae": f"{_PRETRAINING}.conformance:mae",
    "g2sd": f"{_PRETRAINING}.conformance:g2sd",
    "multimae": f"{_PRETRAINING}.conformance:multimae",
    "multimae_head": f"{_PRETRAINING}.conformance:multimae_head",
    "mae_recipe": f"{_PRETRAINING}.conformance:mae_recipe",
    "dvpt": f"{_DVPT}.conformance:dvpt",
}
