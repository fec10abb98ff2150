"""Options of `analyse`. Torch-free: `--help` reads this and no more."""

from __future__ import annotations

from dataclasses import dataclass

from crossband.infrared.config import FramesConfig
from crossband.shared.config import RunOptions, option


@dataclass(kw_only=True)
class AnalyseConfig(RunOptions):
    """Options of `analyse`."""

    weights: str = option(help="file of a ViT: ours, timm's, MAE's, DINO's, iBOT's, UNIP's")
    model: str | None = option(None, "its size, as vit_large; default: as the file's shapes say")
    data: FramesConfig = option(factory=FramesConfig)
    size: int = option(224, "side that images are resized to, pixels")
    images: int = option(100, "images to look at, evenly spread over the files; 0: all")
    batch_size: int = option(8, "images per pass", advanced=True)
    nmi_target: float = option(0.09, "NMI that the chosen layer comes nearest")
    local_above: float = option(0.25, "NMI above which a layer is called local", advanced=True)
    global_below: float = option(0.03, "NMI below which a layer is called global", advanced=True)
    cka_tokens: int = option(1024, "patches that layers are compared on", advanced=True)
    queries: list[float] = option(
        factory=lambda: [0.5, 0.5, 0.25, 0.25],
        help="places of the queries in pictures, as parts: row column row column ...",
        advanced=True,
    )
    pictures: int = option(3, "images whose attention is drawn", advanced=True)
    out: str = option("analysis", "folder for report.html and metrics.json")
