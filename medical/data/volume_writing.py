"""Where the voxels of a volume lie in the patient, masks that lie there, and decoded slices."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crossband.medical.data.dicom import quiet_pydicom
from crossband.medical.data.volumes import NiftiVolume, guarded, is_volume, open_volume
from crossband.shared.errors import ConfigError, CrossbandError, DataError
from crossband.shared.files import atomic_path

if TYPE_CHECKING:
    from pydicom import Dataset

    from crossband.medical.data.dicom_series import DicomFile

_GEOMETRY = [
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SpacingBetweenSlices", "SliceThickness"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
_GROUPS = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
_UNEVEN = 0.25  # of the distance of slices, by which a distance may differ from the others
_TURNED = 1e-3  # by which the direction cosines of slices may differ
_SAME = 1e-3  # of a voxel, by which the affines of a volume and its mask may differ
# Of a NIfTI header: where voxels lie. The others are of the values, or words that may name people.
_PLACE = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)


@dataclass(frozen=True)
class Grid:
    """The voxels of a volume.

    Attributes:
        shape: Of three axes.
        file_shape: As the file has them: a file of two axes is one slice.
        affine: From voxels to the right, front and head (RAS+), float64 (4, 4), or None where the
            file does not tell.
        header: Of a NIfTI file.
    """

    shape: tuple[int, ...]
    file_shape: tuple[int, ...]
    affine: np.ndarray | None = None
    header: Any = None

    def difference(self, other: Grid) -> str | None:
        """Return how another grid differs, in words, or None if it is the same."""
        if self.shape != other.shape:
            return f"the shapes {self.shape} and {other.shape}"
        if self.affine is not None and other.affine is not None:
            shift = np.abs(_between(self.affine, other.affine) - np.eye(4)).max()
            if not shift <= _SAME:
                return f"affines that differ by {shift:.3g} voxels"
        return None

    def aligned(self, values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, Grid]:
        """Return an array turned to this grid's order and directions of axes, and its grid.

        Nothing is resampled.

        Args:
            values: (X, Y, Z).
            affine: Of `values`, (4, 4).
        """
        import nibabel

        if self.affine is None:
            return values, Grid(values.shape, values.shape)
        turns = nibabel.io_orientation(_between(self.affine, affine))
        if np.isnan(turns).any():
            return values, Grid(values.shape, values.shape, affine)
        turned = nibabel.apply_orientation(values, turns)
        affine = affine @ nibabel.orientations.inv_ornt_aff(turns, values.shape)
        return turned, Grid(turned.shape, turned.shape, affine)


def read_onto(mask: Path, grid: Grid) -> np.ndarray:
    """Read the values of a mask on the voxels of its volume, of `grid.shape`.

    A NIfTI mask whose axes have another order or direction is turned, by the affines. A npy mask
    has the shape of the volume, and nothing to turn it by.

    Args:
        mask: NIfTI or npy.
        grid: Of the volume.

    Raises:
        DataError: the mask cannot be read, or lies on another grid.
    """
    if not is_volume(mask):
        raise DataError(f"The mask {mask} of a volume is not NIfTI or npy: convert it.")
    volume = open_volume(mask)
    if isinstance(volume, NiftiVolume):
        if any(size > 1 for size in volume.rest):
            raise DataError(
                f"The mask {mask} has the shape {volume.image.shape}: give one of three axes that "
                "holds class ids."
            )
        values = guarded(mask, np.asanyarray, volume.image.dataobj).reshape(volume.shape)
        values, own = grid.aligned(values, volume.image.affine)
    else:
        values, own = np.asarray(volume.array), Grid(volume.shape, volume.shape)
    if difference := grid.difference(own):
        raise DataError(
            f"The mask {mask} is not of its volume's grid, they have {difference}: resample it to "
            "the volume."
        )
    return values


def write_volume(ids: np.ndarray, path: Path, grid: Grid) -> None:
    """Write class ids of a volume.

    NIfTI files get the affine of the volume, its sform and qform with their codes, and its units,
    and nothing else of its header: descriptions may name patients.

    Args:
        ids: uint8 (X, Y, Z).
        path: `.nii.gz` or `.nii`, or `.npy`.
        grid: Of the volume.

    Raises:
        ConfigError: another suffix, or NIfTI for a volume without an affine.
        CrossbandError: the file cannot be written.
    """
    name = path.name.lower()
    values = np.ascontiguousarray(ids, np.uint8).reshape(grid.file_shape)
    if name.endswith(".npy"):
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, values)
        return
    if not name.endswith((".nii", ".nii.gz")):
        raise ConfigError(f"{path}: masks of volumes are written as .nii.gz, .nii or .npy.")
    if grid.affine is None:
        raise ConfigError(
            f"{path}: the volume does not tell where it lies, which NIfTI needs: write .npy."
        )
    data = _nifti(values, grid).to_bytes()
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(data, 6, mtime=0) if name.endswith(".gz") else data)


class Shelf:
    """Arrays in memory while they fit a budget, and else in memory-mapped files.

    The files lie in a temporary folder (`TMPDIR`) that nobody else can read; it is removed with the
    object or at exit. Copies of the object in worker processes read the same files.

    Args:
        cache_gb: Budget in GB.
    """

    def __init__(self, cache_gb: float) -> None:
        """Start empty."""
        self._left = cache_gb * 2**30
        self._kept: list[tuple[np.ndarray, ...] | tuple[Path, ...]] = []
        self._opened: dict[int, tuple[np.ndarray, ...]] = {}
        self._folder: Path | None = None

    def add(self, arrays: tuple[np.ndarray, ...]) -> int:
        """Keep some arrays; return their number.

        Raises:
            CrossbandError: the temporary folder cannot be written.
        """
        number, size = len(self._kept), sum(array.nbytes for array in arrays)
        if size <= self._left:
            self._left -= size
            self._kept.append(arrays)
            return number
        if self._folder is None:
            self._folder = _temporary_folder()
            weakref.finalize(self, _remove, self._folder, os.getpid())
        paths = tuple(self._folder / f"{number}-{place}.npy" for place in range(len(arrays)))
        for path, array in zip(paths, arrays, strict=True):
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.save(file, array)
        self._kept.append(paths)
        return number

    def get(self, number: int) -> tuple[np.ndarray, ...]:
        """Return the arrays of a number; not to be changed."""
        if number not in self._opened:
            self._opened[number] = tuple(
                np.load(item, "r") if isinstance(item, Path) else item
                for item in self._kept[number]
            )
        return self._opened[number]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what every process opens for itself."""
        return self.__dict__ | {"_opened": {}}


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="crossband-slices-"))
    except OSError as error:
        raise CrossbandError(
            f"No temporary folder can be made ({error.strerror or error}): set TMPDIR to one."
        ) from error


def _remove(folder: Path, owner: int) -> None:
    """Remove a folder, but not from a worker that was forked."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _nifti(values: np.ndarray, grid: Grid) -> Any:
    import nibabel

    if grid.header is None:  # DICOM: mm in the scanner's axes
        image = nibabel.Nifti1Image(values, grid.affine)
        image.set_sform(grid.affine, "scanner")
        sheared = not np.allclose(image.get_qform(), grid.affine, atol=1e-3)
        image.set_qform(None if sheared else grid.affine, "unknown" if sheared else "scanner")
        image.header.set_xyzt_units("mm")
        return image
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(values.shape)
    for name in _PLACE:
        header[name] = grid.header[name]
    header["pixdim"][:4] = grid.header["pixdim"][:4]
    return nibabel.Nifti1Image(values, header.get_best_affine(), header)


def _between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the affine from voxels of the other grid to voxels of the one."""
    return np.linalg.solve(one, other)


def series_affine(files: Sequence[DicomFile], folder: Path) -> np.ndarray | None:
    """Return the affine of a series, from (column, row, slice) to mm (RAS+), float64 (4, 4).

    DICOM counts mm to the patient's left and back; slices that are shifted along their planes (a
    tilted gantry) give a sheared affine. A single slice is as thick as its header says.

    Args:
        files: In the order of the slices.
        folder: What errors name.

    Returns:
        None where a header lacks a position, directions or the distances of pixels.

    Raises:
        DataError: slices of different directions, or unevenly spaced.
    """
    found = [place for file in files for place in _places(file, folder)]
    if not found or any(place is None for place in found):
        return None
    origins = np.array([place[0] for place in found if place])
    turns = np.array([place[1] for place in found if place])
    pixels = np.array([place[2] for place in found if place])
    if np.abs(turns - turns[0]).max() > _TURNED or not np.allclose(pixels, pixels[0], rtol=1e-3):
        raise DataError(
            f"{folder} holds slices of different directions or distances of pixels: keep those of "
            "one volume in it."
        )
    along_row, along_column = turns[0]
    normal = np.cross(along_row, along_column)
    if len(found) == 1:
        step = normal * pixels[0][2]
    else:
        gaps = np.diff(origins @ normal)
        middle = float(np.median(gaps))
        if not abs(middle) > 0 or np.abs(gaps - middle).max() > _UNEVEN * abs(middle):
            raise DataError(
                f"{folder}: its slices are not evenly spaced, so one is missing or there are "
                "several volumes: copy the series again, or keep one volume in it."
            )
        step = (origins[-1] - origins[0]) / (len(found) - 1)
    affine = np.eye(4)
    affine[:3, 0] = along_row * pixels[0][1]
    affine[:3, 1] = along_column * pixels[0][0]
    affine[:3, 2] = step
    affine[:3, 3] = origins[0]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _places(file: DicomFile, folder: Path) -> list[tuple[np.ndarray, ...] | None]:
    """Return origin (3,), directions (2, 3) and distances (rows, columns, slices) of each frame."""
    import pydicom

    try:
        with quiet_pydicom():
            header = pydicom.dcmread(
                file.path, stop_before_pixels=True, specific_tags=list(_GEOMETRY)
            )
            if file.frames == 1 and "PerFrameFunctionalGroupsSequence" not in header:
                return [_place([header])]
            shared = header.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
            frames = header.get("PerFrameFunctionalGroupsSequence") or []
            groups = [
                [
                    *(frame[name].value[0] for name in _GROUPS if name in frame),
                    *(shared[0][name].value[0] for name in _GROUPS if name in shared[0]),
                ]
                for frame in frames
            ]
            return [_place(group) for group in groups] or [None]
    except Exception as error:  # pydicom raises many kinds on elements that make no sense
        raise DataError(
            f"{folder} holds headers whose geometry makes no sense ({type(error).__name__}): "
            "export the series again."
        ) from error


def _place(parts: Sequence[Dataset]) -> tuple[np.ndarray, ...] | None:
    def first(*keywords: str) -> Any:
        return next((part.get(word) for word in keywords for part in parts if part.get(word)), None)

    origin, turn = first("ImagePositionPatient"), first("ImageOrientationPatient")
    pixel, thick = first("PixelSpacing"), first("SpacingBetweenSlices", "SliceThickness")
    if not (origin and turn and pixel):
        return None
    distances = np.array([*map(float, pixel), abs(float(thick or 1))])
    if not (distances > 0).all():
        return None
    return np.array(origin, float).reshape(3), np.array(turn, float).reshape(2, 3), distances
