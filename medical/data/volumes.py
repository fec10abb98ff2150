"""3-D volumes as 2-D pictures (LVM-Med, section 3): NIfTI and npy; DICOM is in `dicom_series`.

An index lists the slices that show something, so that a set of volumes is a list of pictures, each
read when it is wanted. Making it reads every volume once; the decoded slices can be unpacked to
memory-mapped files at the same time, since a compressed NIfTI file has to be decoded whole for any
of its slices.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from crossband.medical.data.slices import (
    Look,
    Slice,
    checked_window,
    shows_something,
    to_grey_levels,
    value_range,
)
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.files import atomic_path

Axis = Literal["auto", "axial", "coronal", "sagittal"]
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".npy")
# Volumes all the same, but not read here.
FOREIGN_VOLUMES = (".mha", ".mhd", ".nrrd", ".nhdr", ".mgz", ".mgh", ".img", ".hdr", ".npz")
_PATIENT_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}  # of an array from left, back and below
_NPY_AXES = {"axial": 0, "coronal": 1, "sagittal": 2}
_THICK = 1.5  # slices this much thicker than their pixels were acquired as slices
_CHANNELS = 4  # sequences of a study; a volume of more is a series over time: its first is taken


def is_volume(path: Path) -> bool:
    """Whether a file is a volume, by its suffix."""
    return path.name.lower().endswith(VOLUME_SUFFIXES)


def check_axis(axis: str) -> None:
    """Raise a ConfigError for an axis that is not known."""
    if axis not in get_args(Axis):
        raise ConfigError(f"The axis {axis!r} is not known: give {', '.join(get_args(Axis))}.")


def index_volume(
    path: str | Path,
    *,
    axis: Axis = "auto",
    window: Sequence[float] = (),
    unpack: str | Path | None = None,
) -> list[Slice]:
    """Return the slices of a volume that show something.

    Args:
        path: NIfTI of 2 to 5 axes (of up to four channels all are taken, of more, a series over
            time, the first), or npy of (D, H, W) or (H, W).
        axis: Across which to slice; `auto`: as it was acquired, that is across the axis of the
            largest spacing (npy: the first axis), axial where spacings are alike.
        window: Centre and width of the values, for CT in HU; default: the 0.5th to the 99.5th
            percentile of the volume.
        unpack: Folder to decode the slices into, for fast reading; a volume that is there already,
            with the same axis and window and unchanged since, is not read again. File names do not
            tell the volume's.

    Raises:
        ConfigError: an unknown axis, or a window that cannot be.
        DataError: the file cannot be read, or has nothing to show.
    """
    path = Path(path)
    limits = checked_window(window, "volumes")
    check_axis(axis)
    unpacked = _unpacked_file(path, axis, limits, Path(unpack)) if unpack else None
    if unpacked and unpacked.is_file():
        return [Slice(unpacked, index) for index in range(len(open_volume(unpacked).array))]
    volume = open_volume(path)
    found: list[Slice] = []
    pictures: list[np.ndarray] = []
    for channel, values in volume.channels():
        low_high = limits or guarded(path, value_range, values)
        if low_high is None:
            continue
        across = volume.across(axis)
        look = volume.look(across)
        for index, plane in enumerate(np.moveaxis(values, across, 0)):
            item = Slice(path, index, *low_high, across, channel)
            picture = look.picture(to_grey_levels(plane, *low_high))
            if shows_something(picture):
                found.append(item)
                pictures.append(picture)
    if not found:
        raise DataError(f"{path} shows nothing in any slice: leave it out, or widen the window.")
    if unpacked is None:
        return found
    with atomic_path(unpacked) as temporary, temporary.open("wb") as file:
        np.save(file, np.stack(pictures))
    return [Slice(unpacked, index) for index in range(len(pictures))]


def read_slice(item: Slice) -> np.ndarray:
    """Read one slice of a NIfTI or npy file, uint8 (H, W).

    NIfTI is turned to how it is looked at: the front above, or the head, and the patient's right
    (sagittal: the front) on the left; pixels are made square.

    Raises:
        DataError: the file cannot be read.
    """
    volume = open_volume(item.path)
    values = guarded(item.path, volume.plane, item)
    return volume.look(item.axis).picture(to_grey_levels(values, item.low, item.high))


class NpyVolume:
    """An array (D, H, W) that is not read as a whole.

    Attributes:
        array: Of three axes.
        shape: Of the array.
        file_shape: As the file has it: (D, H, W) or (H, W).
    """

    def __init__(self, array: np.ndarray) -> None:
        """Take an array (D, H, W) or (H, W)."""
        self.file_shape = array.shape
        self.array = array if array.ndim == 3 else array[None]
        self.shape = self.array.shape

    def channels(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield numbers and values of the channels, (D, H, W): there is one."""
        yield 0, self.array

    def across(self, axis: Axis) -> int:
        """Return the axis of the array that is sliced."""
        return _NPY_AXES.get(axis, 0)

    def plane(self, item: Slice) -> np.ndarray:
        """Return the values of a slice."""
        return np.asarray(np.moveaxis(self.array, item.axis, 0)[item.index])

    def look(self, across: int) -> Look:
        """Return how planes become pictures: as they are."""
        return Look()


class NiftiVolume:
    """An image whose affine says where the patient's axes are.

    Attributes:
        image: nibabel's image.
        shape: Of its first three axes; missing ones are 1.
        file_shape: As the file has them.
        spacing: Along the three axes, in the unit of the file.

    Raises:
        DataError: an affine that makes no sense.
    """

    def __init__(self, image: Any, path: Path) -> None:
        """Look at the header."""
        import nibabel

        self.image, self.path = image, path
        self.rest = image.shape[3:]
        self.file_shape = image.shape[:3]
        self.shape = (*image.shape, 1, 1)[:3]
        self.spacing = [float(step) for step in (*image.header.get_zooms(), 1, 1)[:3]]
        turns = guarded(path, nibabel.io_orientation, image.affine)
        if np.isnan(turns).any():
            raise DataError(f"{path} has an affine that makes no sense: write its header again.")
        # Patient's axis (from left, from behind, from below) of each axis, and its direction.
        self.patient_axis, self.direction = turns[:, 0].astype(int), turns[:, 1]

    def channels(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield numbers and values of the channels, float32 (X, Y, Z); of a series its first.

        Raises:
            DataError: the file is damaged.
        """
        values = guarded(self.path, self.image.get_fdata, "unchanged", np.float32)
        values = values.reshape(*self.shape, -1)
        for channel in range(values.shape[3] if values.shape[3] <= _CHANNELS else 1):
            yield channel, values[..., channel]

    def across(self, axis: Axis) -> int:
        """Return the axis of the array that is sliced."""
        if 1 in self.shape:  # a single slice
            return 2 - self.shape[::-1].index(1)
        thickest = int(np.argmax(self.spacing))
        if axis == "auto" and self.spacing[thickest] > _THICK * min(self.spacing):
            return thickest
        wanted = _PATIENT_AXES["axial" if axis == "auto" else axis]
        return int(np.flatnonzero(self.patient_axis == wanted)[0])

    def plane(self, item: Slice) -> np.ndarray:
        """Return the values of a slice, float32, without reading the others."""
        if self.image.ndim == 2:
            return np.asarray(self.image.dataobj, np.float32)
        place: list[Any] = [slice(None)] * 3
        place[item.axis] = item.index
        place += np.unravel_index(item.channel, self.rest) if self.rest else ()
        return np.asarray(self.image.dataobj[tuple(place)], np.float32)

    def look(self, across: int) -> Look:
        """Return how planes become pictures: rows from above or the front, columns from the right.

        Columns of sagittal planes run from the front.
        """
        left = [axis for axis in range(3) if axis != across]
        flips = (bool(self.direction[left[0]] > 0), bool(self.direction[left[1]] > 0))
        transposed = bool(self.patient_axis[left[0]] < self.patient_axis[left[1]])
        rows, columns = left[::-1] if transposed else left
        return Look(flips, transposed, self.spacing[rows], self.spacing[columns])


def open_volume(path: Path) -> NpyVolume | NiftiVolume:
    """Open a NIfTI or npy file; its values are read when they are wanted.

    Raises:
        DataError: the file is no volume.
    """
    if path.suffix.lower() == ".npy":
        array = guarded(path, np.load, path, "r")
        if array.ndim not in (2, 3) or array.dtype.kind not in "iuf" or not array.size:
            raise DataError(
                f"{path} holds an array of shape {array.shape} and type {array.dtype}: volumes are "
                "numbers (D, H, W)."
            )
        return NpyVolume(array)
    import nibabel

    image = guarded(path, nibabel.load, path)
    if not isinstance(image, nibabel.spatialimages.SpatialImage) or not 2 <= image.ndim <= 5:
        raise DataError(f"{path} is no image of 2 to 5 axes: leave it out.")
    if image.get_data_dtype().kind not in "iuf":
        raise DataError(f"{path} holds {image.get_data_dtype()} and not numbers: leave it out.")
    return NiftiVolume(image, path)


def guarded(path: Path, function: Any, *arguments: Any) -> Any:
    """Call a reader; what it raises becomes one sentence.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return function(*arguments)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: copy it again.") from error
    except (OSError, EOFError, ValueError, zlib.error, MemoryError) as error:
        raise DataError(
            f"{path} is damaged or no volume ({type(error).__name__}): copy it again."
        ) from error
    except Exception as error:  # nibabel's own kinds
        raise DataError(f"{path} is no volume ({type(error).__name__}): copy it again.") from error


def _unpacked_file(
    path: Path, axis: Axis, limits: tuple[float, float] | None, folder: Path
) -> Path | None:
    """Return where a volume is unpacked to; it changes with all that its pictures depend on."""
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    key = (str(path.resolve()), state.st_size, state.st_mtime_ns, axis, limits)
    return folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.npy"
