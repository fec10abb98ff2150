"""Volumes whose slices a 2-D network segments, and the way back to a mask of the whole volume.

A `Scan` shows its slices as pre-training shows them (`crossband.medical.data.volumes`) and puts
class ids of such pictures back onto the voxels of the file. `SlicePairs` are the slices of many
volumes, with their masks, to train on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from crossband.medical.data.dicom_series import read_series
from crossband.medical.data.masks import MaskClasses
from crossband.medical.data.records import Record
from crossband.medical.data.slices import (
    Look,
    checked_window,
    shows_something,
    to_grey_levels,
    value_range,
)
from crossband.medical.data.volume_writing import Grid, Shelf, read_onto, write_volume
from crossband.medical.data.volumes import (
    Axis,
    NpyVolume,
    check_axis,
    guarded,
    is_volume,
    open_volume,
)
from crossband.medical.privacy import Names
from crossband.shared.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

_COLOURS = 3  # channels of a picture
_MM = {"meter": 1000.0, "micron": 0.001}  # of the units of NIfTI; others are mm


class Scan:
    """A volume in memory, as the pictures of its slices.

    Arrays of its voxels have three axes, in the order of the file: (X, Y, Z) of NIfTI, (D, H, W) of
    npy, (column, row, slice) of a DICOM series. A file of two axes is one slice.

    Args:
        channels: The slices, uint8 (N, R, C), of one or three channels, or one of colours
            (N, R, C, 3).
        across: Axis of the array that is sliced.
        look: How planes become pictures.
        grid: The voxels.
        spacing: See below.

    Attributes:
        across: Axis of the array that is sliced.
        shape: Of the array.
        spacing: Distance of voxels along each axis in mm, or None where the file does not tell.
        affine: From voxels to the right, front and head (RAS+), float64 (4, 4), in the unit of the
            file; or None.
        look: How planes become pictures.
        suffix: Of the files that `save` is best given: `.nii.gz`, or `.npy` without an affine.
    """

    def __init__(
        self,
        channels: Sequence[np.ndarray],
        across: int,
        look: Look,
        grid: Grid,
        spacing: tuple[float, float, float] | None,
    ) -> None:
        """Keep the parts."""
        self._channels, self.look, self._grid = list(channels), look, grid
        self.across, self.spacing = across, spacing
        self.shape, self.affine = grid.shape, grid.affine
        self.suffix = ".npy" if grid.affine is None else ".nii.gz"

    def __len__(self) -> int:
        """Return the number of slices, empty ones too."""
        return self.shape[self.across]

    @property
    def plane_shape(self) -> tuple[int, int]:
        """Rows and columns of a slice of the array: its axes but for `across`, in order."""
        rows, columns = (size for axis, size in enumerate(self.shape) if axis != self.across)
        return rows, columns

    @property
    def picture_shape(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.look.size(self.plane_shape)

    @property
    def turned_shape(self) -> tuple[int, int]:
        """Rows and columns of a slice as it is looked at, before its pixels are made square."""
        rows, columns = self.plane_shape
        return (columns, rows) if self.look.transposed else (rows, columns)

    def picture(self, index: int) -> np.ndarray:
        """Return a slice as it is looked at, in square pixels, uint8 (H, W) or (H, W, 3)."""
        pictures = [self.look.picture(channel[index]) for channel in self._channels]
        return pictures[0] if len(pictures) == 1 else np.stack(pictures, -1)

    def mask_picture(self, truth: np.ndarray, index: int) -> np.ndarray:
        """Return a slice of class ids as `picture` shows it, uint8 (H, W).

        Args:
            truth: uint8, of `shape`.
            index: Of the slice.
        """
        plane = np.moveaxis(truth, self.across, 0)[index]  # `take` would copy all of the array
        return _nearest(self.look.turned(plane), self.picture_shape)

    def fullest(self, ids: np.ndarray) -> int:
        """Return the slice with most labels; of class ids without any the middle one.

        Args:
            ids: uint8, of `shape`.
        """
        counts = (ids > 0).sum(tuple(axis for axis in range(3) if axis != self.across))
        return int(counts.argmax()) if counts.any() else len(self) // 2

    def restore(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        """Return class ids of the voxels, uint8 of `shape`, from those of all pictures.

        Args:
            ids: uint8 (H, W) each, of `picture_shape`, in order.

        Raises:
            ValueError: not one for each slice, or another size.
        """
        if len(ids) != len(self) or {item.shape for item in ids} != {self.picture_shape}:
            raise ValueError(f"{len(self)} pictures of {self.picture_shape} are to be given.")
        planes = [self.look.turned_back(_nearest(item, self.turned_shape)) for item in ids]
        return np.stack(planes, self.across)

    def to_plane(self, logits: Tensor) -> Tensor:
        """Return logits of a picture on the voxels of its slice, (K, *plane_shape).

        The argmax is best taken of these; `np.stack(planes, scan.across)` makes a volume of them.

        Args:
            logits: (K, H, W), of the whole picture in any size; resized bilinearly.
        """
        return to_plane(logits, self.turned_shape, self.look.transposed, self.look.flips)

    def truth(self, mask: str | Path, classes: MaskClasses) -> np.ndarray:
        """Read a mask of this volume: class ids, uint8 of `shape`.

        Args:
            mask: NIfTI or npy; see `volume_writing.read_onto`.
            classes: Of its values.

        Raises:
            DataError: the mask cannot be read, lies elsewhere, or has a value that is no class.
        """
        return classes.ids(read_onto(Path(mask), self._grid), mask)

    def save(self, ids: np.ndarray, path: str | Path) -> None:
        """Write class ids of the voxels, uint8 of `shape`; see `volume_writing.write_volume`.

        Raises:
            ConfigError: a suffix other than `.nii.gz`, `.nii` and `.npy`, or NIfTI without affine.
            CrossbandError: the file cannot be written.
        """
        write_volume(ids, Path(path), self._grid)


def open_scan(
    path: str | Path,
    *,
    axis: Axis = "auto",
    window: Sequence[float] = (),
    sequences: Sequence[str | Path] = (),
) -> Scan:
    """Read a volume.

    Args:
        path: NIfTI, npy (D, H, W), or a folder that holds one DICOM series. The first three of up
            to four channels of a NIfTI file become colours; of more, a series over time, the first
            is taken.
        axis: Across which to slice; `auto`: as acquired. DICOM is always taken as acquired.
        window: Centre and width of the values; default: the 0.5th to the 99.5th percentile of the
            volume, or of each of its channels and sequences.
        sequences: One or two others of the same grid, as further channels. The third of two
            channels repeats the second.

    Raises:
        ConfigError: an axis or window that cannot be, or more than two further sequences.
        DataError: a file cannot be read or shows nothing, or the grids differ.
    """
    check_axis(axis)
    checked_window(window, "volumes")
    if len(sequences) >= _COLOURS:
        raise ConfigError(f"{len(sequences) + 1} sequences are given: {_COLOURS} at most.")
    path = Path(path)
    scan = _read(path, axis, window)
    if not sequences:
        return scan
    channels = list(scan._channels)
    others = [(other, _read(other, axis, window, scan)) for other in map(Path, sequences)]
    for other, second in others:
        if difference := scan._grid.difference(second._grid):
            raise DataError(
                f"{other} is not of the grid of {path}: they have {difference}; resample it."
            )
        channels += second._channels
    if len(channels) != len(sequences) + 1 or any(channel.ndim > 3 for channel in channels):
        raise DataError(f"{path} and its sequences have channels of their own: give one each.")
    return Scan(_colours(channels), scan.across, scan.look, scan._grid, scan.spacing)


def _read(path: Path, axis: Axis, window: Sequence[float], first: Scan | None = None) -> Scan:
    """Read a volume; a further sequence is sliced as the first one."""
    if path.is_dir():
        return _dicom(path, window)
    if not is_volume(path):
        raise DataError(
            f"{path} is no volume that is read: give .nii, .nii.gz, .npy or the folder of a DICOM "
            "series."
        )
    volume = open_volume(path)
    across = first.across if first else volume.across(axis)
    limits = checked_window(window, "volumes")
    channels: list[np.ndarray] = []
    empty = True
    for number, values in volume.channels():
        if number == _COLOURS:
            break
        low_high = limits or guarded(path, value_range, values)
        planes = np.moveaxis(values, across, 0)
        grey = np.zeros(planes.shape, np.uint8)
        if low_high is not None:
            empty = False
            for place, plane in enumerate(planes):
                grey[place] = to_grey_levels(plane, *low_high)
        channels.append(grey)
    if empty:
        raise DataError(f"{path} shows nothing in any slice: leave it out, or widen the window.")
    if isinstance(volume, NpyVolume):
        grid = Grid(volume.shape, volume.file_shape)
        return Scan(_colours(channels), across, volume.look(across), grid, None)
    header, affine = volume.image.header, np.array(volume.image.affine, float)
    grid = Grid(volume.shape, volume.file_shape, affine, header)
    unit = _MM.get(guarded(path, header.get_xyzt_units)[0], 1.0)
    x, y, z = (unit * step for step in volume.spacing)
    return Scan(_colours(channels), across, volume.look(across), grid, (x, y, z))


def _dicom(folder: Path, window: Sequence[float]) -> Scan:
    series = guarded(folder, read_series, folder, window)
    planes = series.planes
    if series.affine is None:  # slices, rows, columns, as of an array
        shape = planes.shape[:3]
        return Scan([planes], 0, Look(), Grid(shape, shape), None)
    planes, shape = planes.swapaxes(1, 2), planes.shape[2::-1]
    x, y, z = np.linalg.norm(series.affine[:3, :3], axis=0).tolist()
    return Scan([planes], 2, Look(transposed=True), Grid(shape, shape, series.affine), (x, y, z))


def _colours(channels: list[np.ndarray]) -> list[np.ndarray]:
    """Repeat the second of two channels."""
    return [*channels, channels[1]] if len(channels) == 2 else channels


def to_plane(
    logits: Tensor, shape: tuple[int, int], transposed: bool, flips: Sequence[bool]
) -> Tensor:
    """Return logits of a picture on the voxels of its slice; see `Scan.to_plane`.

    Args:
        logits: (K, H, W).
        shape: `Scan.turned_shape`.
        transposed: Of `Scan.look`.
        flips: Of `Scan.look`.
    """
    from crossband.shared.layers.resize import resize

    plane = resize(logits[None], shape)[0]
    if transposed:
        plane = plane.transpose(1, 2)
    return plane.flip([axis + 1 for axis in (0, 1) if flips[axis]])


def _nearest(ids: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if ids.shape == shape:
        return np.ascontiguousarray(ids)
    size = (shape[1], shape[0])
    return np.asarray(Image.fromarray(ids).resize(size, Image.Resampling.NEAREST))


class SlicePairs:
    """Slices of volumes with their masks.

    Every volume is decoded once; see `Shelf` for where its slices are kept. Those that show nothing
    and have no label are left out.

    Args:
        records: Of volumes; those with several masks have them laid over each other.
        classes: Of the masks.
        axis: Across which to slice.
        window: Centre and width of the values.
        cache_gb: Memory for the slices in GB; the others go to memory-mapped files.
        names: What files are called in `skipped`; default: as they are.

    Attributes:
        records: Of each slice, that of its volume.
        labelled: Of each slice, whether it shows a class other than the background, bool (N,).
        skipped: What could not be read, and why; a sentence each.

    Raises:
        ConfigError: an axis or window that cannot be.
        DataError: no volume can be read; it shows no names but those given by `names`.
        CrossbandError: the temporary folder cannot be written.
    """

    def __init__(
        self,
        records: Sequence[Record],
        classes: MaskClasses,
        *,
        axis: Axis = "auto",
        window: Sequence[float] = (),
        cache_gb: float = 2.0,
        names: Names | None = None,
    ) -> None:
        """Decode the volumes."""
        check_axis(axis)
        checked_window(window, "volumes")
        self.records: list[Record] = []
        self.skipped: list[str] = []
        self._shelf = Shelf(cache_gb)
        self._places: list[tuple[int, int]] = []  # volume and slice within
        labelled: list[bool] = []
        first = ""
        for record in records:
            try:
                pictures, masks = _pairs(record, classes, axis, window)
            except DataError as error:
                files = (record.path, record.mask, *record.more_masks, *record.sequences)
                self.skipped.append((names or Names(keep=True)).error(error, *files))
                first = first or (names or Names(keep=False)).error(error, *files)
                continue
            number = self._shelf.add((pictures, masks))
            self._places += [(number, place) for place in range(len(masks))]
            self.records += [record] * len(masks)
            labelled += (masks > 0).any((1, 2)).tolist()
        if not self.records:
            why = f"; the first: {first}" if first else ": give some."
            raise DataError(f"None of {len(records)} volumes with masks can be read{why}")
        self.labelled = np.array(labelled, np.bool_)

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self._places)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a slice, uint8 (H, W[, 3]), and its class ids, uint8 (H, W); not to be changed."""
        number, place = self._places[index]
        pictures, masks = self._shelf.get(number)
        return np.asarray(pictures[place]), np.asarray(masks[place])


def _pairs(
    record: Record, classes: MaskClasses, axis: Axis, window: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures and masks, (N, H, W[, 3]) and (N, H, W), of what shows something."""
    if record.mask is None:
        raise DataError(f"{record.path} has no mask: give volumes with masks only.")
    scan = open_scan(record.path, axis=axis, window=window, sequences=record.sequences)
    truth = scan.truth(record.mask, classes)
    for path in record.more_masks:
        truth = np.maximum(truth, scan.truth(path, classes))
    pictures, masks = [], []
    for index in range(len(scan)):
        picture, mask = scan.picture(index), scan.mask_picture(truth, index)
        if mask.any() or shows_something(picture):
            pictures.append(picture)
            masks.append(mask)
    if not masks:
        raise DataError(f"{record.path} shows nothing in any slice: leave it out.")
    return np.stack(pictures), np.stack(masks)
