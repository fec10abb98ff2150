"""`crossband medical predict --boxes boxes.csv`: masks of what the boxes hold, and overlays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossband.medical.config import PredictConfig
from crossband.medical.data.radiographs import read_radiograph
from crossband.medical.pictures import mask_sentence, stem_of, write_mask
from crossband.medical.privacy import Names
from crossband.medical.prompted import boxes
from crossband.medical.prompted.segmenter import PromptedSegmenter
from crossband.shared.checkpoints import read_config
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.prediction import predict_each


def predict(config: PredictConfig, paths: Sequence[Path], names: Names) -> int | None:
    """Write a mask of class ids (PNG) and an overlay of each image that has a box.

    Args:
        config: Options.
        paths: The images.
        names: What they are called.

    Raises:
        ConfigError: no boxes, or options of findings.
        DataError: boxes that cannot be read, or of none of the images.
    """
    out = Path(config.out if config.out != PredictConfig.out else "masks")
    if out.suffix.lower() == ".csv":
        raise ConfigError(f"--out {config.out}: masks are written to a folder.")
    if config.heatmaps:
        raise ConfigError("--heatmaps are of findings: these weights give masks.")
    table = boxes.needed(config.boxes, read_config(config.weights)["classes"])
    given, unused = table.assign([(path, None) for path in paths], names)
    if not any(map(len, given)):
        raise DataError(
            f"No row of {config.boxes} is of one of the images: its column 'image' holds paths, "
            "file names, or what images are called in results."
        )
    if unused and not config.quiet and not config.json:
        print(f"passed over {unused} row(s) of {config.boxes}: their images were not given")
    segmenter = PromptedSegmenter.load(
        config.weights, device=config.device, precision=config.precision
    )
    window = config.window or segmenter.config["reading"]["window"]
    taken: dict[str, str] = {}

    def run(job: tuple[Path, boxes.Boxes]) -> dict[str, Any]:
        path, own = job
        shown = names.image(path)
        if not len(own):
            raise DataError(f"{shown} has no box in {config.boxes}.")
        try:
            image = read_radiograph(path, window, colours=segmenter.colours)
        except DataError as error:
            raise DataError(names.error(error, path)) from None
        ids = segmenter.outline(image.pixels, own.corners, own.kinds)
        stem = stem_of(shown, taken)
        written = write_mask(out, stem, image, ids, segmenter.classes, segmenter.palette)
        return {"input": shown, **written, "boxes": len(own)}

    return predict_each(
        list(zip(paths, given, strict=True)),
        run,
        name=lambda job: names.image(job[0]),
        describe=mask_sentence,
        options=config,
        folder=out,
    )
