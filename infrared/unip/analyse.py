"""Measures a ViT's attention layer by layer: `crossband infrared analyse`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from crossband.infrared.catalog import MEAN, STD
from crossband.infrared.data.images import batches, gather, shortened, spread, still_images
from crossband.infrared.data.pool import PoolImages
from crossband.infrared.unip.analysis import (
    LayerFacts,
    choose_layer,
    cka_matrix,
    measure,
    pattern,
)
from crossband.infrared.unip.config import AnalyseConfig
from crossband.infrared.unip.looking import places, query_maps
from crossband.infrared.unip.plots import (
    fourier_curves,
    grey,
    layer_curves,
    query_attention,
    similarity,
)
from crossband.infrared.unip.vit_files import OpenedViT, open_vit
from crossband.shared.cli.output import format_table, print_json
from crossband.shared.devices import select_device
from crossband.shared.environment import machine
from crossband.shared.errors import ConfigError
from crossband.shared.files import json_text, write_text
from crossband.shared.reports.html import Report

_DRAWN_LAYERS = 6


@dataclass(frozen=True)
class Analysis:
    """What was found out about a network.

    Attributes:
        layers: Measured.
        patterns: Of each layer.
        similarity: CKA of all pairs of layers, (L, L).
        chosen: Layer nearest to the target, counted from 1.
    """

    layers: list[LayerFacts]
    patterns: list[str]
    similarity: Tensor
    chosen: int

    def rows(self) -> list[dict[str, Any]]:
        """Return a row of a table for each layer."""
        return [
            {
                "layer": layer.number,
                "nmi": layer.nmi,
                "distance_px": layer.distance,
                "pattern": name,
                "cka_to_last": float(self.similarity[layer.number - 1, -1]),
            }
            for layer, name in zip(self.layers, self.patterns, strict=True)
        ]


def run(config: AnalyseConfig) -> None:
    """Measure, print the table, write report.html and metrics.json."""
    if config.pictures < 0 or config.cka_tokens < 2:
        raise ConfigError(
            f"--pictures {config.pictures} must be at least 0, --cka_tokens {config.cka_tokens} "
            "at least 2."
        )
    if config.precision != "32":
        raise ConfigError(f"--precision {config.precision}: attention is measured in 32 bits.")
    pattern(0.0, config.local_above, config.global_below)  # wrong values are told before the work
    places(config.queries, (1, 1))
    opened = open_vit(config.weights, config.model)
    pool = gather(config.data)
    channels = opened.model.patch_embed.proj.in_channels
    images = still_images(config.data, pool, config.size, config.images, channels)
    count = len(images)
    if not config.quiet and not config.json:
        print("\n".join([opened.report, f"images: {count}", *shortened(pool.notes)]), flush=True)
    opened.model.to(select_device(config.device))
    found = analyse(config, opened, images)
    outcome = {
        "weights": config.weights,
        "layers": found.rows(),
        "chosen_layer": found.chosen,
        "protocol": {
            "images": count,
            "data": list(config.data.root),
            "size": config.size,
            "normalisation": {"mean": list(MEAN), "std": list(STD)},
            "nmi_target": config.nmi_target,
            "thresholds": {"local above": config.local_above, "global below": config.global_below},
            "cka_tokens": config.cka_tokens,
            "network": opened.arguments,
            "machine": machine(),
        },
    }
    folder = Path(config.out)
    write_text(folder / "metrics.json", json_text(outcome) + "\n")
    report = _report(config, opened, images, found, outcome).write(folder / "report.html")
    if config.json:
        print_json({"report": str(report), **outcome})
        return
    rows = found.rows()
    print(format_table(list(rows[0]), [tuple(row.values()) for row in rows]))
    print(
        f"layer {found.chosen} of {len(rows)}, counted from 1, is nearest to an NMI of "
        f"{config.nmi_target:g}\nreport: {report}"
    )


def analyse(config: AnalyseConfig, opened: OpenedViT, images: PoolImages) -> Analysis:
    """Measure the layers of a network on images of one size."""
    model, count = opened.model, len(images)
    device = model.pos_embed.device
    per_image = max(1, -(-config.cka_tokens // count))
    layers, features = measure(
        model, batches(images, config.batch_size, device), tokens_per_image=per_image
    )
    names = [pattern(layer.nmi, config.local_above, config.global_below) for layer in layers]
    chosen = choose_layer([layer.nmi for layer in layers], config.nmi_target)
    return Analysis(layers, list(names), cka_matrix(features), chosen)


def drawn_layers(depth: int, chosen: int) -> list[int]:
    """Return the layers to draw: the chosen one and others, evenly spread."""
    layers = {*spread(range(1, depth + 1), _DRAWN_LAYERS - 1), chosen}
    return sorted(layers)


def _report(
    config: AnalyseConfig,
    opened: OpenedViT,
    images: PoolImages,
    found: Analysis,
    outcome: dict[str, Any],
) -> Report:
    protocol = outcome["protocol"]
    report = Report(
        f"Attention of {Path(config.weights).name}",
        f"{protocol['images']} images of {config.size} x {config.size} pixels from "
        f"{', '.join(protocol['data'])}; mean {MEAN[0]:g}, std {STD[0]:g}. {opened.report}. "
        f"{protocol['machine']}.",
    )
    report.heading("Layers")
    report.text(
        f"Layer {found.chosen}, counted from 1, is nearest to an NMI of {config.nmi_target:g}: the "
        "one to distil by UNIP."
    )
    report.figure(
        layer_curves(found.layers, found.patterns, config.nmi_target, found.chosen),
        f"NMI above {config.local_above:g} is called local, below {config.global_below:g} global. "
        "Distances between patches, weighted by attention.",
    )
    report.table(found.rows(), "Means over images and heads; class token left out.")
    report.heading("Where queries look")
    depth = len(found.layers)
    layers = drawn_layers(depth, found.chosen)
    size = opened.model.patch_size
    for index in spread(range(protocol["images"]), config.pictures):
        image = images[index]["image"].to(opened.model.pos_embed.device)
        maps, patches = query_maps(opened.model, image[None], config.queries, layers)
        titled = {
            f"layer {number}{' (chosen)' if number == found.chosen else ''}": value
            for number, value in maps.items()
        }
        name = images.paths[index].name
        report.figure(query_attention(grey(image), titled, patches, size), f"{name}; queries at x")
    report.heading("Likeness of layers")
    report.figure(
        similarity(found.similarity),
        f"Linear CKA of the outputs on at least {config.cka_tokens} patches; with fewer patches "
        "than channels it is overestimated.",
    )
    report.heading("Frequencies")
    report.figure(fourier_curves(found.layers), "Diagonal of the spectrum of each layer's output.")
    return report
