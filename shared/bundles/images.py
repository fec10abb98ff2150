"""The images that a bundle is run on: found, and read once before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from crossband.shared.bundles.folder import GIVEN, Bundle
from crossband.shared.bundles.quiet import quiet_monai
from crossband.shared.bundles.safety import is_ours
from crossband.shared.errors import DataError

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".nii", ".nii.gz", ".dcm", ".mha", ".mhd"),
    *(".nrrd", ".npy"),
)


class Loader(Protocol):
    """What a domain reads images with, the first transform of its bundles."""

    def reads(self, path: Path) -> bool:
        """Whether a file is of a kind that is read."""

    def name(self, path: Path) -> str:
        """Return what an image is called; without identifiers unless the user asks for them."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Replace the path under `image`."""


class MonaiLoader:
    """Reads images with MONAI's readers, and calls them by their paths."""

    def reads(self, path: Path) -> bool:
        """Whether a file has one of the suffixes."""
        return path.name.lower().endswith(SUFFIXES)

    def name(self, path: Path) -> str:
        """Return the path."""
        return str(path)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Read the file."""
        from monai.transforms import LoadImage

        return data | {"image": LoadImage(image_only=True)(str(data["image"]))}


def loader_of(bundle: Bundle, settings: dict[str, Any] | None = None) -> Loader:
    """Return what inference.json reads images with: a domain's own transform, or MONAI's."""
    content = bundle.configs[bundle.config_file("inference").name]
    steps = content.get("preprocessing")
    steps = steps.get("transforms") if isinstance(steps, dict) else None
    first = steps[0] if isinstance(steps, list) and steps else None
    if not isinstance(first, dict) or not is_ours(str(first.get("_target_"))):
        return MonaiLoader()
    from monai.bundle import ConfigParser

    with quiet_monai():
        parser = ConfigParser(content)
        parser.update(pairs={name: str(bundle.root) for name in GIVEN} | (settings or {}))
        return parser.get_parsed_content("preprocessing::transforms::0")


def find_images(
    inputs: Sequence[str | Path], reads: Callable[[Path], bool] | None = None
) -> list[Path]:
    """Find medical images among files and in folders, all levels, hidden files left out.

    Args:
        inputs: Files, taken as they are, and folders.
        reads: Whether a file in a folder is an image; default: by its suffix.

    Raises:
        DataError: an input that does not exist, or no image.
    """
    reads = reads or MonaiLoader().reads
    found: list[Path] = []
    for item in map(Path, inputs):
        if item.is_dir():
            visible = (path for path in item.rglob("*") if path.is_file() and path.name[0] != ".")
            found += sorted(path for path in visible if reads(path))
        elif item.is_file():
            found.append(item)
        else:
            raise DataError(f"{item} does not exist: give images or folders of them.")
    if not found:
        raise DataError(
            f"There is no image in {', '.join(map(str, inputs))} ({', '.join(SUFFIXES)})."
        )
    return found


def readable_images(
    paths: Sequence[Path], loader: Loader | None = None
) -> tuple[list[Path], dict[Path, str], list[str]]:
    """Read every image once.

    Returns:
        The good ones, why others are not, and what should be known of the good ones.
    """
    loader = loader or MonaiLoader()
    good: list[Path] = []
    broken: dict[Path, str] = {}
    notes: list[str] = []
    for path in paths:
        name = loader.name(path)
        if not path.stat().st_size:
            broken[path] = f"{name} is empty (0 bytes): copy it again."
            continue
        try:
            with quiet_monai():
                image = loader({"image": path})["image"]
            good.append(path)
            notes += [f"{name}: {note}" for note in getattr(image, "meta", {}).get("notes", ())]
        except DataError as error:
            broken[path] = str(error)
        except Exception as error:  # readers raise many kinds on damaged files
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            reason = reason.replace(str(path), name)[:100]
            broken[path] = f"{name} cannot be read ({reason}): copy or convert it again."
    return good, broken, notes
