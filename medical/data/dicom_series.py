"""Slices of DICOM series (CT, MR, PET, ...) and frames of DICOM files, one file at a time.

A folder that holds one series can be read as a volume too, with its place in the patient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crossband.medical.data.dicom import padding_of, quiet_pydicom
from crossband.medical.data.radiographs import DICOM_SUFFIXES, has_dicom_magic
from crossband.medical.data.slices import (
    Slice,
    checked_window,
    shows_something,
    to_grey_levels,
    value_range,
)
from crossband.medical.data.volume_writing import series_affine
from crossband.shared.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

# Read one by one as radiographs (`crossband.medical.data.dicom`), unless they hold several frames.
_RADIOGRAPHS = ("CR", "DX", "RG", "OT", "")
_HEADER = [
    *("Modality", "SeriesInstanceUID", "InstanceNumber", "NumberOfFrames", "Rows"),
    *("ImagePositionPatient", "ImageOrientationPatient"),
]
_PIXELS = [
    *("NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("PlanarConfiguration", "PixelData", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("RedPaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData"),
    *("GreenPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData"),
    *("BluePaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableData"),
]
_LIMIT_SLICES = 16  # slices of a series that its range of values is taken of


class NoImageError(DataError):
    """A DICOM file that holds something else than an image."""


@dataclass(frozen=True)
class DicomFile:
    """What a header says of where an image belongs.

    Attributes:
        path: The file.
        series: The series' identifier; never shown.
        position: Along the normal of the slices in mm, or the number in the series.
        frames: Images in the file.
        radiograph: One image, of a radiograph.
    """

    path: Path
    series: str
    position: float
    frames: int
    radiograph: bool


def look_at(path: Path) -> DicomFile:
    """Read where an image belongs.

    Raises:
        DataError: no DICOM file, or none with an image.
    """
    import pydicom

    try:
        with quiet_pydicom():
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_HEADER))
            modality = str(header.get("Modality") or "").strip().upper()
            frames = int(header.get("NumberOfFrames") or 1)
            series = str(header.get("SeriesInstanceUID") or path.parent)
            position, rows = _position(header), int(header.get("Rows") or 0)
    except Exception as error:  # pydicom raises many kinds on damaged files
        raise DataError(
            f"{path} is damaged or no DICOM file ({type(error).__name__}): copy it again."
        ) from error
    if not rows:
        raise NoImageError(f"{path} is a DICOM file without an image: leave it out.")
    single = frames == 1 and modality in _RADIOGRAPHS
    return DicomFile(path, series, position, frames, single)


def index_series(
    files: Iterable[DicomFile],
    *,
    window: Sequence[float] = (),
    skipped: Callable[[Path, DataError], None],
) -> list[Slice]:
    """Return the slices of a series, or the frames of a file, that show something, in order.

    They are taken as acquired.

    Args:
        files: Of one series.
        window: Centre and width of the rescaled values, in HU for CT; default: the 0.5th to the
            99.5th percentile of the series.
        skipped: Called with each file that cannot be read, and why; the others remain.

    Raises:
        ConfigError: a window that cannot be.
        DataError: nothing is left.
    """
    files = sorted(files, key=lambda file: (file.position, file.path.name))
    places = [(file.path, frame) for file in files for frame in range(file.frames)]
    limits = checked_window(window, "DICOM series") or _limits(places)
    found: list[Slice] = []
    broken: set[Path] = set()
    for path, frame in places:
        item = Slice(path, frame, *limits) if limits else Slice(path, frame)
        if path in broken:
            continue
        try:
            if limits and shows_something(read_dicom_slice(item)):
                found.append(item)
        except DataError as error:
            broken.add(path)
            skipped(path, error)
    found = [item for item in found if item.path not in broken]
    if not found:
        raise DataError(f"{files[0].path} and its series show nothing: leave them out.")
    return found


@dataclass(frozen=True)
class Series:
    """A DICOM series as a volume.

    Attributes:
        planes: uint8 (N, H, W), or RGB (N, H, W, 3); as `read_dicom_slice` gives them.
        affine: From (column, row, slice) to mm to the right, front and head (RAS+), float64
            (4, 4), or None where the files do not tell.
    """

    planes: np.ndarray
    affine: np.ndarray | None


def read_series(folder: Path, window: Sequence[float] = ()) -> Series:
    """Read the series that a folder holds.

    Files that are no images (reports, contours) are passed over. Errors name the folder and no
    file, since callers know what the folder may be called.

    Args:
        folder: Holds the files of one series, or one file of several frames, on its first level.
        window: As for `index_series`.

    Raises:
        ConfigError: a window that cannot be.
        DataError: no series or several, a file that cannot be read, slices of different sizes or
            directions, unevenly spaced ones, or nothing to see.
    """
    files = _files_of(folder)
    affine = series_affine(files, folder)
    places = [(file.path, frame) for file in files for frame in range(file.frames)]
    limits = checked_window(window, "DICOM series") or _limits(places)
    if limits is None:
        raise DataError(f"{folder} shows nothing in any slice: leave it out.")
    planes: list[np.ndarray] = []
    for number, (path, frame) in enumerate(places, 1):
        try:
            planes.append(read_dicom_slice(Slice(path, frame, *limits)))
        except DataError as error:
            raise DataError(
                f"{folder}: slice {number} of {len(places)} is damaged, or compressed in a way "
                "that nothing installed decodes: copy the series again, or export it uncompressed."
            ) from error
        if planes[-1].shape != planes[0].shape:
            raise DataError(
                f"{folder} holds slices of different sizes: keep those of one volume in it."
            )
    return Series(np.stack(planes), affine)


def read_dicom_slice(item: Slice) -> np.ndarray:
    """Read one image of a DICOM file, uint8 (H, W), or RGB (H, W, 3) where it has colours.

    Raises:
        DataError: it cannot be decoded.
    """
    values, inverted = _values(item.path, item.index)
    if values.ndim == 3:
        return values
    grey = to_grey_levels(values, item.low, item.high)
    return np.where(np.isnan(values), 0, 255 - grey).astype(np.uint8) if inverted else grey


def _limits(places: Sequence[tuple[Path, int]]) -> tuple[float, float] | None:
    """Return the range of values of some slices; colours have their own."""
    step = max(1, len(places) // _LIMIT_SLICES)
    samples = []
    for path, frame in places[step // 2 :: step]:
        try:
            values, _ = _values(path, frame)
        except DataError:
            continue  # said when its turn comes
        if values.ndim == 3:
            return 0.0, 255.0
        samples.append(values.ravel()[:: max(1, values.size // 2**16)])
    return value_range(np.concatenate(samples)) if samples else (0.0, 255.0)


def _values(path: Path, frame: int) -> tuple[np.ndarray, bool]:
    """Return rescaled values (H, W), padding being NaN, or colours, uint8 (H, W, 3).

    And whether high values are dark.
    """
    import pydicom
    from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

    try:
        with quiet_pydicom():
            header = pydicom.dcmread(path, specific_tags=list(_PIXELS))
            kind = header.PhotometricInterpretation
            stored = pixel_array(header, index=frame)
            if kind == "PALETTE COLOR":
                stored = apply_color_lut(stored, header)
                header.BitsStored = 8 * stored.dtype.itemsize
            if stored.ndim == 3:
                white = float(2 ** int(header.BitsStored) - 1)
                return to_grey_levels(stored, 0.0, white), False
            padding = padding_of(header, stored)
            values = np.array(apply_modality_lut(stored, header), np.float32)
    except Exception as error:  # the decoders raise many kinds
        raise DataError(
            f"{path} is damaged, or compressed in a way that nothing installed decodes "
            f"({type(error).__name__}): copy it again, or export it uncompressed."
        ) from error
    if padding is not None:
        values[padding] = np.nan
    return values, kind == "MONOCHROME1"


def _position(header: Dataset) -> float:
    """Return the place along the normal of the slices, or the number in the series."""
    place, turn = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
    if place and turn:
        rows, columns = np.array(turn, float).reshape(2, 3)
        return float(np.dot(np.cross(rows, columns), np.array(place, float)))
    return float(header.get("InstanceNumber") or 0)


def _files_of(folder: Path) -> list[DicomFile]:
    """Return the files of the only series in a folder, in the order of the slices."""
    files: list[DicomFile] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "DICOMDIR" or not path.is_file():
            continue
        if path.suffix.lower() in DICOM_SUFFIXES or has_dicom_magic(path):
            try:
                files.append(look_at(path))
            except NoImageError:
                continue
            except DataError as error:
                raise DataError(
                    f"{folder} holds a damaged DICOM file (number {len(files) + 1} by name): copy "
                    "the series again."
                ) from error
    if not files:
        raise DataError(f"{folder} holds no DICOM series: give the folder that has its files.")
    series = len({file.series for file in files})
    if series > 1:
        raise DataError(
            f"{folder} holds {series} DICOM series: give each a folder of its own, and that folder."
        )
    return sorted(files, key=lambda file: (file.position, file.path.name))
