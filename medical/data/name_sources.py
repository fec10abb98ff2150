"""What lists and folders name, for comparisons: names, and files where they are there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crossband.medical.data.pairs import is_mask
from crossband.medical.data.radiographs import is_radiograph_file
from crossband.medical.data.records import counted
from crossband.medical.data.split_lists import LIST_SUFFIXES, Listed, bare_name, read_names
from crossband.medical.data.volumes import is_volume
from crossband.medical.privacy import Names
from crossband.shared.errors import DataError

_SHORT = 5  # letters and digits of a name that may be anybody's
_NUMBER = 10  # digits of a number that is nobody else's
# With a number behind them, names that many sets have.
_GENERIC = frozenset(
    (
        *("image", "images", "img", "im", "case", "slice", "frame", "scan", "patient", "subject"),
        *("sub", "file", "pic", "picture", "photo", "sample", "data", "test", "train", "training"),
        *("val", "valid", "volume", "vol", "mask", "label", "study", "series", "ct", "mr", "mri"),
        *("xray", "cxr", "id", "page", "view"),
    )
)
# Of folders and lists that do not tell the set.
_ANY_PLACE = _GENERIC | frozenset(
    (
        *("masks", "labels", "input", "inputs", "validation", "testing", "files", "datasets"),
        *("dataset", "home", "mnt", "root", "tmp", "png", "jpg", "jpeg", "dicom", "nifti"),
        *("list", "lists", "imagestr", "imagests", "raw", "original", "names", "index", "my"),
    )
)


@dataclass(frozen=True)
class Source:
    """A name, and its file where that is there.

    Attributes:
        name: As the list writes it, or within the folder that was given, with `/`.
        set: Of the data set: the list's or the folder's own name.
        where: Its place in the list, as `test.txt:12`; empty without a list.
        path: The file, or None.
    """

    name: str
    set: str
    where: str = ""
    path: Path | None = None

    @property
    def key(self) -> str:
        """The name without folders, suffix and capitals."""
        return bare_name(self.name).casefold()

    def shown(self, names: Names) -> str:
        """Return what it may be called; a name in a list is called by its place there."""
        if names.keep:
            return self.name
        if self.path is None:
            return self.where
        place = f" ({self.where})" if self.where else ""
        return names.image(self.path, self.name) + place


def find_sources(inputs: Sequence[str], *, wanted: str, notes: list[str]) -> list[Source]:
    """Read lists, and find the files of folders; a folder without images is one of lists.

    Args:
        inputs: Lists, images, volumes, or folders.
        wanted: Of lists with splits: `test` takes that part alone, `train` all but that.
        notes: Gets a sentence on whatever was left out.

    Raises:
        DataError: something that is not there, or holds no names and no images.
    """
    found: list[Source] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            found += _of_folder(path, wanted, notes)
        elif not path.is_file():
            raise DataError(f"{path} does not exist: give a list of names, an image or a folder.")
        elif path.suffix.lower() in LIST_SUFFIXES:
            folder = path.resolve().parent.name
            name = path.stem if tells_set(path.stem) else folder
            found += _of_list(path, name, path.name, wanted, notes)
        elif _is_image(path):
            found.append(Source(path.name, path.resolve().parent.name, path=path))
        else:
            raise DataError(
                f"{path} is no list ({', '.join(LIST_SUFFIXES)}) and no image: give one of them."
            )
    return found


def is_generic(name: str) -> bool:
    """Whether many sets have files of a name: short ones, small numbers, `image_001`, `case 7`.

    Args:
        name: Without folders and suffix.
    """
    words = _words(name)
    digits = sum(map(str.isdigit, name))
    if not words:
        return digits < _NUMBER
    few = len("".join(words)) + digits < _SHORT
    return few or (digits < _NUMBER and _GENERIC.issuperset(words))


def tells_set(name: str) -> bool:
    """Whether the name of a folder or list says which set it is of: `Kvasir`, but not `images`."""
    return not _ANY_PLACE.issuperset(_words(name))


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", name.casefold())


def _of_folder(root: Path, wanted: str, notes: list[str]) -> list[Source]:
    name = root.resolve().name
    files = list(_walk(root))
    images = [path for path in files if _is_image(path)]
    kept = [path for path in images if not is_mask(path.relative_to(root))]
    if kept:
        if len(kept) < len(images):
            notes.append(f"{name}: {counted(len(images) - len(kept), 'mask')} left out")
        return [Source(path.relative_to(root).as_posix(), name, path=path) for path in kept]
    found: list[Source] = []
    for path in files:
        if path.suffix.lower() not in LIST_SUFFIXES:
            continue
        own = path.parent == root
        title = path.name if own else f"{path.parent.name}/{path.name}"
        found += _of_list(path, path.stem if own else path.parent.name, title, wanted, notes)
    if not found:
        raise DataError(f"{root} holds no images and no lists of names: give a folder that does.")
    return found


def _of_list(path: Path, name: str, title: str, wanted: str, notes: list[str]) -> list[Source]:
    entries = read_names(path)
    kept = [entry for entry in entries if (entry.split == "test") == (wanted == "test")]
    if any(entry.split for entry in entries) and 0 < len(kept) < len(entries):
        part = "of test" if wanted == "test" else "of other splits than test"
        notes.append(f"{title}: {counted(len(kept), 'name')} {part} taken")
        entries = kept
    return [
        Source(entry.name, name, f"{title}:{entry.line}", _file(path.parent, entry))
        for entry in entries
    ]


def _file(folder: Path, entry: Listed) -> Path | None:
    for path in (folder / entry.name, Path(entry.name)):
        try:
            if path.is_file():
                return path
        except OSError:  # no name that a file could have
            continue
    return None


def _is_image(path: Path) -> bool:
    return is_volume(path) or is_radiograph_file(path)


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))
