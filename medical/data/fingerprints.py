"""Fingerprints of pictures, by which nearly equal ones are found: resized, or saved as JPEG again.

A fingerprint says of 256 pairs of neighbouring fields of a small copy which one is brighter: along
the rows of 16 x 9 fields and along the columns of 9 x 16. Of 499 chest X-rays those of a picture
and its copy of half the size (JPEG at quality 75) differ in 1 bit at the median and in 6 or fewer
of all but one; those of two different pictures in 19 and more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from crossband.medical.data.colour import read_picture
from crossband.medical.data.dicom_series import index_series, look_at, read_dicom_slice
from crossband.medical.data.radiographs import DICOM_SUFFIXES, has_dicom_magic, to_grey
from crossband.medical.data.slices import to_grey_levels, value_range
from crossband.medical.data.volumes import is_volume
from crossband.shared.errors import DataError

BITS = 256
_FIELDS = (9, 16)
_THUMBNAIL = 16
_FLAT = 4.0  # grey levels: standard deviation of a picture that shows too little to be told
_ALIKE = 0.97  # least correlation of the small copies of nearly equal pictures
_BLOCK = 2**21  # pairs compared at a time
_SET_BITS = np.array([bin(value).count("1") for value in range(2**16)], np.uint8)


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of a picture.

    Attributes:
        bits: uint16 (16,), 256 bits.
        thumbnail: float32 (256,) of mean 0 and length 1.
    """

    bits: np.ndarray
    thumbnail: np.ndarray


def fingerprint(picture: np.ndarray) -> Fingerprint | None:
    """Return the fingerprint of a picture, or None if it shows next to nothing.

    Args:
        picture: uint8 (H, W) or (H, W, 3).
    """
    grey = Image.fromarray(to_grey(picture)[0])
    small = _resized(grey, _THUMBNAIL, _THUMBNAIL).ravel()
    if small.std() < _FLAT:
        return None
    centred = small - small.mean()
    across, along = _resized(grey, *_FIELDS), _resized(grey, *_FIELDS[::-1])
    brighter = [across[:, 1:] > across[:, :-1], along[1:] > along[:-1]]
    packed = np.packbits(np.concatenate([half.ravel() for half in brighter]))
    return Fingerprint(packed.view(np.uint16), centred / np.linalg.norm(centred))


def file_fingerprint(path: Path) -> Fingerprint | None:
    """Return the fingerprint of an image, or of the middle slice of a volume.

    Raises:
        DataError: the file cannot be read.
    """
    if is_volume(path):
        return fingerprint(_middle_slice(path))
    if path.suffix.lower() in DICOM_SUFFIXES or has_dicom_magic(path):
        file = look_at(path)
        if not file.radiograph:
            slices = index_series([file], skipped=lambda _, error: None)
            return fingerprint(read_dicom_slice(slices[len(slices) // 2]))
    return fingerprint(read_picture(path))


def near_pairs(
    first: list[Fingerprint], second: list[Fingerprint], distance: int
) -> list[tuple[int, int, int]]:
    """Return (place in first, place in second, bits that differ) of nearly equal pictures.

    Fingerprints of dark pictures with little in them can be equal by chance; so their small copies
    have to correlate as well.

    Args:
        first: N fingerprints.
        second: M fingerprints; memory is taken for some millions of the N M pairs at a time.
        distance: Most bits that may differ.
    """
    if not first or not second:
        return []
    left, right = (np.stack([item.bits for item in items]) for items in (first, second))
    rows = max(1, _BLOCK // len(second))
    found = []
    for start in range(0, len(first), rows):
        block = left[start : start + rows]
        bits = np.zeros((len(block), len(second)), np.uint16)
        for word in range(left.shape[1]):
            bits += _SET_BITS[block[:, None, word] ^ right[None, :, word]]
        for i, j in np.argwhere(bits <= distance).tolist():
            if float(first[start + i].thumbnail @ second[j].thumbnail) >= _ALIKE:
                found.append((start + i, j, int(bits[i, j])))
    return found


def _resized(grey: Image.Image, width: int, height: int) -> np.ndarray:
    floats = grey.convert("F")
    return np.asarray(floats.resize((width, height), Image.Resampling.LANCZOS), np.float32)


def _middle_slice(path: Path) -> np.ndarray:
    """Read the slice in the middle of the last axis (npy: the first), uint8 (H, W)."""
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, "r")
            values = np.asarray(array[len(array) // 2] if array.ndim == 3 else array)
        else:
            import nibabel

            image = nibabel.load(path)
            place = (slice(None), slice(None), *(size // 2 for size in image.shape[2:3]))
            rest = (0,) * max(0, len(image.shape) - 3)
            values = np.asarray(image.dataobj[place + rest])
        limits = value_range(values.astype(np.float32))
    except Exception as error:  # the readers raise many kinds on damaged files
        raise DataError(
            f"{path} is damaged or no volume ({type(error).__name__}): copy it again."
        ) from error
    if values.ndim != 2:
        raise DataError(f"{path} is no volume of slices: leave it out.")
    return to_grey_levels(values, *(limits or (0.0, 1.0)))
