from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from crossband.medical.data.colour import read_picture
from crossband.medical.data.radiographs import read_radiograph
from crossband.shared.data.images import Photo, write_photo
from crossband.shared.errors import DataError


def test_colours_are_kept(tmp_path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png"), rgb)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_grey_is_one_channel_however_it_is_stored(tmp_path, mode) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (9, 7)).astype(np.uint8)
    Image.fromarray(grey).convert(mode).save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png"), grey)


def test_sixteen_bits_are_scaled_by_those_that_are_used(tmp_path) -> None:
    deep = np.linspace(0, 4095, 63).reshape(9, 7).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png")
    assert np.array_equal(found, np.rint(deep * (255 / 4095)).astype(np.uint8))
    assert np.array_equal(found, read_radiograph(tmp_path / "a.png").pixels)
    colours = np.dstack([deep * 16, deep * 0, 65520 - deep * 16])
    write_photo(Photo(colours), tmp_path / "b.png")
    assert np.array_equal(read_picture(tmp_path / "b.png"), np.rint(colours / 257).astype(np.uint8))


def test_radiographs_are_read_as_radiographs(put_dicom) -> None:
    stored = np.arange(600, dtype=np.uint16).reshape(20, 30)
    path = put_dicom(stored, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read_picture(path), read_radiograph(path).pixels)
    assert np.array_equal(read_picture(path, (300, 100)), read_radiograph(path, (300, 100)).pixels)


def test_what_cannot_be_read_is_an_error(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read|not an image"):
        read_picture(tmp_path / "a.png")
