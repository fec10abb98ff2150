"""DICOM radiographs: from stored values to what a viewer shows (PS3.3, C.7.6.3 and C.11).

Stored values -> modality LUT or rescale -> VOI LUT or window -> inverted if MONOCHROME1. Only the
elements that this takes are read: the names in the header never enter the memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crossband.medical.data.records import normal_view
from crossband.shared.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

# Computed and digital radiography, film digitised; exports often say OT or nothing.
_MODALITIES = ("CR", "DX", "RG", "OT", "")
_PERCENTILES = (0.5, 99.5)  # of the values, where neither file nor user gives a window
_SAMPLE = 2**20  # pixels to take percentiles of
_ELEMENTS = [
    *("Modality", "ViewPosition", "ViewCodeSequence", "NumberOfFrames", "Rows", "Columns"),
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "PixelData"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence"),
    *("RescaleSlope", "RescaleIntercept", "VOILUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("RedPaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData"),
    *("GreenPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData"),
    *("BluePaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableData"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "SmallestImagePixelValue"),
]


@dataclass(frozen=True)
class DicomImage:
    """A DICOM image as it is shown.

    Attributes:
        pixels: uint8 (H, W), white being dense, or RGB (H, W, 3).
        bits: Stored per value.
        view: See `Record.view`.
        notes: A sentence each.
    """

    pixels: np.ndarray
    bits: int
    view: str | None
    notes: tuple[str, ...]


def read_dicom(path: Path, window: Sequence[float] = ()) -> DicomImage:
    """Read a DICOM file.

    Padding (PixelPaddingValue) is black and does not count. Where there is a VOI LUT it is taken,
    else the first window, else the values between the 0.5th and 99.5th percentile.

    Args:
        path: The file.
        window: Centre and width in rescaled values, instead of the file's.

    Raises:
        DataError: no DICOM file, damaged, without an image, of several frames, of a modality that
            is not radiography, or compressed in a way that nothing installed can decode.
    """
    try:
        with quiet_pydicom():
            return _read(path, window)
    except DataError:
        raise
    except Exception as error:  # elements of a kind or number that makes no sense
        raise DataError(
            f"{path} has a header that makes no sense ({type(error).__name__}): copy it again, or "
            "export it once more."
        ) from error


def _read(path: Path, window: Sequence[float]) -> DicomImage:
    header = _header(path)
    _check_kind(path, header)
    stored = _stored(path, header)
    bits, view = int(header.get("BitsStored", 8)), _view(header)
    if stored.ndim == 3:
        return DicomImage(_eight_bits_of_colour(stored, bits), bits, view, ())
    pixels, notes = _shown(header, stored, window)
    return DicomImage(pixels, bits, view, notes)


def _header(path: Path) -> Dataset:
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        return pydicom.dcmread(path, specific_tags=list(_ELEMENTS))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: give a radiograph or a folder.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or 'it is cut off'}.") from error
    except InvalidDicomError as error:
        raise DataError(f"{path} is not a DICOM file: give it its right suffix.") from error
    except Exception as error:  # pydicom raises many kinds on damaged files
        raise DataError(f"{path} is damaged: its header cannot be read; copy it again.") from error


def _check_kind(path: Path, header: Dataset) -> None:
    modality = str(header.get("Modality") or "").strip().upper()
    if "PixelData" not in header:
        kind = f" (modality {modality})" if modality else ""
        raise DataError(
            f"{path} is a DICOM file without an image{kind}: it is a report or was cut off; "
            "leave it out or copy it again."
        )
    if modality not in _MODALITIES:
        raise DataError(
            f"{path} has the modality {modality}: radiographs (CR, DX, RG) are read here; "
            "leave it out."
        )
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        raise DataError(
            f"{path} holds {frames} frames: a radiograph has one; export the one that is meant "
            "as a file of its own."
        )


def _stored(path: Path, header: Dataset) -> np.ndarray:
    """Return the stored values (H, W), or colours as RGB (H, W, 3)."""
    from pydicom.pixels import apply_color_lut, get_decoder, pixel_array

    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise DataError(f"{path} does not say its transfer syntax: export the file again.")
    remedy = "copy it again"
    if syntax.is_compressed and not syntax.is_deflated:
        remedy = f"copy it again, or {_decoder(syntax)}, which may know this kind"
        try:
            available = get_decoder(syntax).is_available
        except NotImplementedError:
            raise DataError(
                f"{path} is compressed in a way that cannot be decoded ({syntax.name}): export "
                "the file uncompressed."
            ) from None
        if not available:
            raise DataError(
                f"{path} is compressed ({syntax.name}) and nothing installed decodes that: "
                f"{_decoder(syntax)}, or export the file uncompressed."
            )
    try:
        stored = pixel_array(header)
        if header.PhotometricInterpretation == "PALETTE COLOR":
            stored = apply_color_lut(stored, header)
            header.BitsStored = 8 * stored.dtype.itemsize
    except Exception as error:  # the decoders raise many kinds
        raise DataError(
            f"{path} is damaged: its pixels ({syntax.name}) cannot be decoded; {remedy}."
        ) from error
    return stored


def _decoder(syntax: UID) -> str:
    """Return how to get a decoder under a free licence: pylibjpeg-libjpeg is under the GPL."""
    if "High-Throughput" in syntax.name:
        return "run `pip install pylibjpeg pylibjpeg-openjpeg`"  # MIT
    return "run `pip install python-gdcm`"  # BSD


def _eight_bits_of_colour(pixels: np.ndarray, bits: int) -> np.ndarray:
    scaled = pixels.astype(np.float32) * np.float32(255 / (2**bits - 1))
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)


def _view(header: Dataset) -> str | None:
    view = normal_view(str(header.get("ViewPosition") or ""))
    if view is None and header.get("ViewCodeSequence"):
        view = normal_view(str(header.ViewCodeSequence[0].get("CodeMeaning") or ""))
    return view


def _shown(
    header: Dataset, stored: np.ndarray, window: Sequence[float]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return uint8 (H, W) and notes."""
    from pydicom.pixels import apply_modality_lut

    padding = padding_of(header, stored)
    values = np.asarray(apply_modality_lut(stored, header), np.float32)
    unit, notes = _unit(header, values, padding, window)
    if header.PhotometricInterpretation == "MONOCHROME1":
        unit = 1 - unit
    if padding is not None:
        unit[padding] = 0
    return np.rint(unit * 255).astype(np.uint8), notes


def _unit(
    header: Dataset, values: np.ndarray, padding: np.ndarray | None, window: Sequence[float]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the values of interest as float32 (H, W) in [0, 1], and notes."""
    if window:
        return windowed(values, window[0], window[1]), ()
    if header.get("VOILUTSequence"):
        from pydicom.pixels import apply_voi

        table_bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
        table = np.asarray(apply_voi(np.rint(values).astype(np.int64), header), np.float32)
        return (table / np.float32(2**table_bits - 1)).clip(0, 1), ()
    centre, width = _first(header.get("WindowCenter")), _first(header.get("WindowWidth"))
    function = str(header.get("VOILUTFunction") or "LINEAR").upper()
    if centre is not None and width is not None:
        if width >= 1 or (width > 0 and function != "LINEAR"):
            return windowed(values, centre, width, function), ()
        notes = ("The file's window has no width, so its own range of values was taken.",)
    else:
        notes = ()
    counted = values.ravel() if padding is None else values[~padding]
    if not counted.size:
        return np.zeros_like(values), notes
    counted = counted[:: max(1, counted.size // _SAMPLE)]
    low, high = np.percentile(counted, _PERCENTILES)
    return ((values - np.float32(low)) / np.float32(max(high - low, 1e-6))).clip(0, 1), notes


def windowed(
    values: np.ndarray, centre: float, width: float, function: str = "LINEAR"
) -> np.ndarray:
    """Apply a window (PS3.3, C.11.2.1.2 and C.11.2.1.3).

    Args:
        values: Rescaled values, float32.
        centre: Of the window.
        width: Of the window; at least 1 if LINEAR.
        function: `LINEAR`, `LINEAR_EXACT` or `SIGMOID`.

    Returns:
        float32 in [0, 1].
    """
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -60, 60)))
    if function == "LINEAR_EXACT":
        return ((values - centre) / width + 0.5).clip(0, 1)
    if width == 1:
        return (values > centre - 0.5).astype(np.float32)
    return ((values - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1)


def padding_of(header: Dataset, stored: np.ndarray) -> np.ndarray | None:
    """Return where stored values are padding, or None if nowhere."""
    value = header.get("PixelPaddingValue")
    if value is None:
        return None
    other = header.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if other is None else other)))
    if stored.dtype.kind == "i" and low >= 2 ** (8 * stored.dtype.itemsize - 1):
        # Written as unsigned where the values are signed.
        low, high = (item - 2 ** (8 * stored.dtype.itemsize) for item in (low, high))
    where = (stored >= low) & (stored <= high)
    return where if where.any() else None


def _first(value: object) -> float | None:
    """Return the first of one or several numbers."""
    if value is None or value == "":
        return None
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return float(value)  # type: ignore[arg-type]
    return float(value[0]) if len(value) else None


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom from warning about elements: its warnings quote their values."""
    from pydicom import config

    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield
