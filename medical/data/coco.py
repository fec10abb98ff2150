"""Boxes in json files: COCO's, and Kvasir-SEG's `kavsir_bboxes.json`.

| files | splits |
|---|---|
| `annotations/instances_{train,val,test}*.json`, images anywhere below the folder | by name |
| `{train,valid,test}/*.json` with the images beside them | by folder |
| one json beside the images or in `annotations/` | none |
| Kvasir-SEG (Jha et al., MMM 2020): `kavsir_bboxes.json` (sic) and `images/` | none |
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossband.medical.config import SourceConfig
from crossband.medical.data.records import Collection, Record, counted
from crossband.medical.data.tables import Files, walk
from crossband.medical.detection.data import Boxes, Marked
from crossband.shared.errors import ConfigError, DataError, did_you_mean

_FOLDERS = ("annotations", "train", "val", "valid", "test")
_SPLIT = re.compile(r"(?:^|[^a-z])(train|valid|val|test)(?:ing|ation)?(?:[^a-z]|$)", re.I)


def detect(root: Path) -> bool:
    """Whether a folder holds json files of boxes."""
    return any(True for _ in _files(root))


def read(root: Path, config: SourceConfig) -> Marked:
    """Read its boxes; those of crowds are left out.

    Args:
        root: Folder.
        config: Options; `labels` chooses classes, in that order.

    Raises:
        ConfigError: a class that is not there.
        DataError: no json of boxes, one that is not as it should be, or an image in two of them.
    """
    sheets = list(_files(root))
    if not sheets:
        raise DataError(
            f"{root} holds no json file of boxes (in the form of COCO, or kavsir_bboxes.json): "
            "give one beside the images or in annotations/."
        )
    reader = _Reader(root)
    for path, content in sheets:
        try:
            reader.take(path, content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{path} is not as COCO's or Kvasir's files are ({type(error).__name__}: "
                f"{error}): export it again."
            ) from error
    classes = _choose(reader.drawn_classes(), config, root)
    return reader.marked(classes)


class _Reader:
    """Gathers the images and boxes of several files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[Path, Files] = {}
        self.records: dict[str, Record] = {}
        self.rows: dict[str, list[tuple[list[float], str]]] = {}
        self.names: dict[str, None] = {}  # of the classes, in order
        self.crowds = self.bad = 0

    def take(self, path: Path, content: dict[str, Any]) -> None:
        if "images" not in content:
            self._take_kvasir(path, content)
            return
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        self.names |= dict.fromkeys(names.values())
        known = {}
        for entry in content["images"]:
            known[entry["id"]] = self._image(path, str(entry["file_name"]))
        for entry in content.get("annotations", ()):
            if entry.get("iscrowd"):
                self.crowds += 1
                continue
            x, y, width, height = map(float, entry["bbox"])
            box = [x, y, x + width, y + height]
            self._box(known[entry["image_id"]], box, names[entry["category_id"]])

    def _take_kvasir(self, path: Path, content: dict[str, Any]) -> None:
        for stem, entry in content.items():
            name = self._image(path, stem)
            for box in entry["bbox"]:
                corners = [float(box[key]) for key in ("xmin", "ymin", "xmax", "ymax")]
                self.names[str(box["label"])] = None
                self._box(name, corners, str(box["label"]))

    def _image(self, path: Path, file: str) -> str:
        folder = self.root if path.parent.name == "annotations" else path.parent
        files = self.files.setdefault(folder, Files(folder, walk(folder)))
        found = files.find(file)
        name = found.relative_to(self.root).as_posix() if found.is_file() else file
        if name in self.records:
            raise DataError(
                f"{self.root}: an image is listed in two json files of boxes, or twice in one: "
                "take it out of all but one."
            )
        split = _split_of(path, self.root)
        self.records[name] = Record(found, name, split=split)
        self.rows[name] = []
        return name

    def _box(self, name: str, corners: list[float], label: str) -> None:
        if corners[2] > corners[0] and corners[3] > corners[1]:
            self.rows[name].append((corners, label))
        else:
            self.bad += 1

    def drawn_classes(self) -> tuple[str, ...]:
        """Return the classes that have a box, in the order of the files."""
        drawn = {label for rows in self.rows.values() for _, label in rows}
        return tuple(name for name in self.names if name in drawn)

    def marked(self, classes: tuple[str, ...]) -> Marked:
        numbers = {name: k for k, name in enumerate(classes)}
        boxes, other = {}, 0
        for name, rows in self.rows.items():
            kept = [(corners, numbers[label]) for corners, label in rows if label in numbers]
            other += len(rows) - len(kept)
            boxes[name] = Boxes.of([c for c, _ in kept], [k for _, k in kept])
        collection = Collection(self.root, "coco", classes, False, list(self.records.values()))
        for count, what in (
            (other, "of other classes left out"),
            (self.crowds, "of crowds left out"),
            (self.bad, "left out, of no area"),
        ):
            if count:
                number = f"{count} boxes" if count > 1 else "1 box"
                collection.notes.append(f"{number} {what}")
        empty = sum(not len(found) for found in boxes.values())
        if empty:
            collection.notes.append(f"{counted(empty, 'image')} without a box")
        return Marked(collection, classes, boxes)


def _files(root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the json files that hold boxes, with what is in them."""
    paths = [*root.glob("*.json"), *(p for name in _FOLDERS for p in root.glob(f"{name}/*.json"))]
    found = []
    for path in sorted(paths):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if _holds_boxes(content):
            found.append((path, content))
    instances = [pair for pair in found if "instances" in pair[0].name]
    yield from instances or found


def _holds_boxes(content: Any) -> bool:
    if not isinstance(content, dict) or not content:
        return False
    if "images" in content:
        drawn = content.get("annotations")
        return bool(drawn) and isinstance(drawn, list) and "bbox" in drawn[0]
    first = next(iter(content.values()))
    return isinstance(first, dict) and isinstance(first.get("bbox"), list)


def _split_of(path: Path, root: Path) -> str | None:
    """Return the split that a file's name or its folder tells."""
    words = [path.stem] if path.parent == root else [path.stem, path.parent.name]
    for word in words:
        if found := _SPLIT.search(word):
            return {"valid": "val"}.get(found[1].lower(), found[1].lower())
    return None


def _choose(there: tuple[str, ...], config: SourceConfig, root: Path) -> tuple[str, ...]:
    for name in config.labels:
        if name not in there:
            hint = did_you_mean(name, there) or f" There are: {', '.join(there) or 'none'}."
            raise ConfigError(f"--data.labels: {root} has no class {name!r} with boxes.{hint}")
    return tuple(config.labels) or there
