"""Models of the domain by name, and the adapters of its golden numbers. Torch-free."""

from __future__ import annotations

from typing import Any

from crossband.shared.registry import ModelEntry

_VARIANTS = (
    "full", "fac_st", "fac_ts", "binary_ts", "binary_st", "triplet_tst", "triplet_sts",
    "quadruplet_tsst", "quadruplet_stts",
)  # fmt: skip

# Published sizes: (T, C, H, W), patch, transformers in all (triplets differ on small grids),
# SwiGLU width / dim, dropout, attention dropout, drop path. Weather fields other than t2m share
# its settings.
_T2M = (4, 8, 6, 2, 0.1, 0.1, 0.25)
_SIZES: dict[str, tuple[str, tuple[int, int, int, int], tuple]] = {
    "mmnist": ("Moving MNIST, 10 frames to 10", (10, 1, 64, 64), (8, 24, 24, 4, 0.0, 0.0, 0.0)),
    "taxibj": ("TaxiBJ traffic, 4 to 4", (4, 2, 32, 32), (4, 8, 6, 4, 0.1, 0.1, 0.1)),
    "human": ("Human3.6M video, 4 to 4", (4, 3, 256, 256), (8, 12, 12, 4, 0.1, 0.1, 0.1)),
    "t2m": ("WeatherBench temperature 5.625 deg, 12 h to 12 h", (12, 1, 32, 64), _T2M),
    "r": ("WeatherBench humidity 5.625 deg, 12 h to 12 h", (12, 1, 32, 64), _T2M),
    "tcc": ("WeatherBench cloud cover 5.625 deg, 12 h to 12 h", (12, 1, 32, 64), _T2M),
    "uv10": ("WeatherBench wind 5.625 deg, 12 h to 12 h", (12, 2, 32, 64), _T2M),
}
_TRANSFORMERS_PER_BLOCK = {"full": 1, "fac": 2, "binary": 2, "triplet": 3, "quadruplet": 4}


def _entry(name: str, summary: str, **details: Any) -> ModelEntry:
    return ModelEntry(
        name=name,
        target="crossband.spatiotemporal.predformer.model:PredFormer",
        task="forecasting",
        summary=summary,
        paper="Tang et al. 2024, PredFormer, arXiv 2410.04733",
        licence="Apache-2.0 (our code)",
        official="crossband.spatiotemporal.predformer.official:from_official",
        **details,
    )


def _published(variant: str, data: str) -> ModelEntry:
    what, shape, (patch, total, triplet_total, ratio, drop, attn_drop, path) = _SIZES[data]
    family = variant.split("_")[0]
    transformers = triplet_total if family == "triplet" else total
    history, channels, height, width = shape
    arguments = {
        "variant": variant,
        "history": history,
        "in_channels": channels,
        "height": height,
        "width": width,
        "patch_size": patch,
        "mlp_ratio": ratio,
        "depth": transformers // _TRANSFORMERS_PER_BLOCK[family],
        "dropout": drop,
        "attn_dropout": attn_drop,
        "drop_path": path,
    }
    name = f"predformer_{variant}_{data}"
    return _entry(name, f"{variant}: {what}", arguments=arguments, input_shape=shape)


MODELS: tuple[ModelEntry, ...] = (
    _entry("predformer", "fac_ts, the best on t2m; any size", arguments={"variant": "fac_ts"}),
    *(_entry(f"predformer_{v}", f"{v}; any size", arguments={"variant": v}) for v in _VARIANTS),
    *(_published(variant, data) for data in _SIZES for variant in _VARIANTS),
)
CONFORMANCE = {
    "predformer": "crossband.spatiotemporal.predformer.conformance:run",
    "spatiotemporal_metrics": "crossband.spatiotemporal.conformance:run",
}
LOADERS = {"forecasting": "crossband.spatiotemporal.forecast:Forecaster"}
