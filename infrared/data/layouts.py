"""Labelled data sets of infrared images where they lie: one function per layout on disk.

| layout | folders |
|---|---|
| `folder` | `images/ masks/ classes.txt`, lists `train.txt val.txt test.txt` (else all is train) |
| `sirst` | `images/ labels/` or `masks/`, perhaps with a folder per split; masks 0 and 1 or 255 |
| `soda` | `JPEGImages/ SegmentationClassPNG/ train_infrared.txt test_infrared.txt` |
| `mfnet` | `thermal_imgs/ labels/`, or `images/` of four channels; `train.txt val.txt test.txt` |
| `scut` | `images/ labels/ train.txt val.txt` |
| `msrs` | `train/ test/` with `ir/ Segmentation_labels/`, or `ir/ pseudo/` alone |
| `pst900` | `train/ test/` with `thermal/ labels/` |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from crossband.infrared.data import classes as names
from crossband.infrared.data.frames import holds_thermal, is_frame_file
from crossband.shared.errors import DataError

IGNORE = 255
_MASKS = ("labels", "masks", "mask", "annotations")


@dataclass(frozen=True)
class Item:
    """An image and its mask.

    Attributes:
        name: For messages and results.
        image: File.
        mask: File of class ids, or None.
    """

    name: str
    image: Path
    mask: Path | None


@dataclass
class Labelled:
    """A data set.

    Attributes:
        root: Its folder.
        layout: How it lies there.
        classes: Names by id.
        splits: Items by split.
        binary: Masks are 0 for background, anything else for the target.
        lonely: Images without a mask, masks without an image, listed names without a file.
    """

    root: Path
    layout: str
    classes: tuple[str, ...]
    splits: dict[str, list[Item]]
    binary: bool = False
    lonely: list[str] = field(default_factory=list)


def find(root: str | Path, layout: str = "auto") -> Labelled:
    """Find the images and masks of a data set.

    Args:
        root: Its folder.
        layout: One of the table above; `auto` looks at the folders and the masks.

    Raises:
        DataError: no such folder, an unknown layout, or no pair in it.
    """
    root = Path(root)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}: give the folder of a data set as --data.root.")
    inner = root / "InfraredSemanticLabel"
    root = inner if inner.is_dir() else root
    chosen = _detect(root) if layout == "auto" else layout
    if chosen not in _LAYOUTS:
        raise DataError(
            f"{root} has no known layout: put images in images/, masks of class ids (PNG) in "
            "masks/ and the names of the classes in classes.txt, or name the --data.layout."
        )
    found = _LAYOUTS[chosen](root)
    if not any(item.mask for items in found.splits.values() for item in items):
        raise DataError(
            f"{root} (layout {chosen}) holds no image with a mask of the same name: "
            f"{found.lonely[0] if found.lonely else 'its folders are empty'}."
        )
    return found


def read_mask(item: Item, count: int, *, binary: bool) -> np.ndarray:
    """Return the class ids of an item, uint8 (H, W); 255 is ignored.

    Raises:
        DataError: unreadable, of colours, or an id that is no class.
    """
    assert item.mask is not None
    try:
        with Image.open(item.mask) as image:
            if image.mode not in ("L", "P", "1", "I;16", "I"):
                bands = np.asarray(image.convert("RGB"))
                if (bands != bands[..., :1]).any():
                    raise DataError(
                        f"{item.mask} is a picture in colours, not a mask of class ids: write one "
                        "channel (or a palette) whose values are the ids."
                    )
                ids = bands[..., 0]
            else:
                ids = np.asarray(image).astype(np.int64)
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        reason = str(error).strip() or type(error).__name__
        raise DataError(f"{item.mask} cannot be read ({reason[:80]}): copy it again.") from error
    if binary:
        return (ids > 0).astype(np.uint8)
    wrong = np.unique(ids[(ids >= count) & (ids != IGNORE)])
    if wrong.size:
        shown = ", ".join(str(int(value)) for value in wrong[:5])
        raise DataError(
            f"{item.mask} has pixels of class {shown}, but there are {count} classes (0 to "
            f"{count - 1}; {IGNORE} is ignored): correct the mask or the list of classes."
        )
    return ids.astype(np.uint8)


def _detect(root: Path) -> str:
    has = {path.name for path in root.iterdir() if path.is_dir()}
    if {"JPEGImages", "SegmentationClassPNG"} <= has:
        return "soda"
    if "thermal_imgs" in has:
        return "mfnet"
    inside = {path.name for split in ("train", "test") for path in (root / split).glob("*")}
    if {"thermal", "labels"} <= inside:
        return "pst900"
    if "ir" in inside or {"ir", "pseudo"} <= has or {"ir", "Segmentation_labels"} <= has:
        return "msrs"
    if (root / "classes.txt").is_file():
        return "folder"
    if "images" not in has or not has & set(_MASKS):
        return "unknown"
    images = _files(root / "images")
    if images and _four_channels(images[0]):
        return "mfnet"
    ids = _ids(_files(_mask_folder(root)))
    if ids <= {0, 1} or ids <= {0, 255}:
        return "sirst"
    listed = "labels" in has and (root / "train.txt").is_file()
    return "scut" if listed and max(ids - {IGNORE}) < len(names.SCUT) else "unknown"


def _four_channels(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.mode == "RGBA" and holds_thermal(np.asarray(image)[..., 3])
    except Exception:  # damaged: `data check` names it
        return False


def _ids(masks: list[Path]) -> set[int]:
    """Return the ids in a few masks, spread over the list."""
    found = {0}
    for path in masks[:: max(1, len(masks) // 12)]:
        try:
            with Image.open(path) as image:
                found |= set(np.unique(np.asarray(image)).tolist())
        except Exception:  # damaged: `data check` names it
            continue
    return found


def _folder(root: Path) -> Labelled:
    path = root / "classes.txt"
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}): write the names of the classes "
            "there, one a line, in the order of their ids."
        ) from error
    found = tuple(line for line in lines if line)
    if len(found) == 2 and _ids(_files(_mask_folder(root))) == {0, IGNORE}:
        raise DataError(
            f"The masks of {root} hold 0 and {IGNORE} only, and {IGNORE} means ignored: write 1 "
            f"for the {found[1]}, or read them by --data.layout sirst, which takes anything but 0 "
            "as the target."
        )
    return _plain(root, "folder", found)


def _sirst(root: Path) -> Labelled:
    return _plain(root, "sirst", names.SIRST, binary=True)


def _scut(root: Path) -> Labelled:
    return _plain(root, "scut", names.SCUT)


def _mfnet(root: Path) -> Labelled:
    images = "thermal_imgs" if (root / "thermal_imgs").is_dir() else "images"
    return _plain(root, "mfnet", names.MFNET, images=images)


def _plain(
    root: Path,
    layout: str,
    classes: tuple[str, ...],
    *,
    images: str = "images",
    binary: bool = False,
) -> Labelled:
    """Images and masks in two folders, with lists of names or a folder per split."""
    masks = _mask_folder(root)
    known = {path.stem for path in _files(root / images)}
    lists = {
        path.stem: path
        for path in sorted(root.glob("*.txt"))
        if path.stem != "classes" and _is_list(path, known)
    }
    inner = [path.name for path in sorted((root / images).iterdir()) if path.is_dir()]
    splits, lonely = {}, []
    if inner:
        for split in inner:
            wanted = _lines(lists[split]) if split in lists else None
            splits[split], more = _pair(root / images / split, masks / split, wanted)
            lonely += more
    elif lists:
        for split, path in lists.items():
            splits[split], more = _pair(root / images, masks, _lines(path))
            lonely += more
    else:
        splits["train"], lonely = _pair(root / images, masks)
    for theirs in ("trainval", "train_full"):
        if theirs in splits and "train" not in splits:
            splits["train"] = splits.pop(theirs)
    return Labelled(root, layout, classes, splits, binary, sorted(set(lonely)))


def _is_list(path: Path, images: set[str]) -> bool:
    """Whether a text file names images; others lie beside data sets too (README.txt)."""
    return any(name in images or Path(name).stem in images for name in _lines(path))


def _soda(root: Path) -> Labelled:
    splits, lonely = {}, []
    for split in ("train", "test"):
        wanted = _lines(root / f"{split}_infrared.txt")
        splits[split], more = _pair(root / "JPEGImages", root / "SegmentationClassPNG", wanted)
        lonely += more
    return Labelled(root, "soda", names.SODA, splits, lonely=lonely)


def _msrs(root: Path) -> Labelled:
    if (root / "ir").is_dir():
        masks = root / ("pseudo" if (root / "pseudo").is_dir() else "Segmentation_labels")
        items, lonely = _pair(root / "ir", masks)
        return Labelled(root, "msrs", names.MFNET, {"train": items}, lonely=lonely)
    return _by_split(root, "msrs", names.MFNET, "ir", "Segmentation_labels")


def _pst900(root: Path) -> Labelled:
    return _by_split(root, "pst900", names.PST900, "thermal", "labels")


def _by_split(
    root: Path, layout: str, classes: tuple[str, ...], images: str, masks: str
) -> Labelled:
    splits, lonely = {}, []
    for split in ("train", "val", "test"):
        if (root / split / images).is_dir():
            splits[split], more = _pair(root / split / images, root / split / masks)
            lonely += more
    return Labelled(root, layout, classes, splits, lonely=lonely)


_LAYOUTS: dict[str, Callable[[Path], Labelled]] = {
    "folder": _folder,
    "sirst": _sirst,
    "soda": _soda,
    "mfnet": _mfnet,
    "scut": _scut,
    "msrs": _msrs,
    "pst900": _pst900,
}


def _pair(
    images: Path, masks: Path, wanted: list[str] | None = None
) -> tuple[list[Item], list[str]]:
    """Match images and masks by name; return items, and what has no partner."""
    pictures = {path.stem: path for path in _files(images)}
    labels = {path.stem.removesuffix("_pixels0"): path for path in _files(masks)}
    lonely = []
    if wanted is None:
        stems = list(pictures)
        lonely += [f"{labels[stem]} has no image" for stem in labels.keys() - pictures.keys()]
    else:  # a list may name files as well as stems
        stems = [name if name in pictures else Path(name).stem for name in wanted]
    items = []
    for stem in stems:
        if stem not in pictures:
            lonely.append(f"{stem} is listed, but {images} has no such image")
            continue
        if stem not in labels:
            lonely.append(f"{pictures[stem]} has no mask in {masks}")
        items.append(Item(stem, pictures[stem], labels.get(stem)))
    return items, sorted(lonely)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and is_frame_file(path)
    ) or sorted(path for inner in folder.iterdir() if inner.is_dir() for path in _files(inner))


def _mask_folder(root: Path) -> Path:
    return next((root / name for name in _MASKS if (root / name).is_dir()), root / _MASKS[0])


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    return [line.split()[0] for line in text.splitlines() if line.strip()]
