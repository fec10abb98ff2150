from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from crossband.infrared.data.frames import Stretch, read_frame, read_frames
from crossband.shared.errors import ConfigError, DataError


def test_deep_frames_are_stretched_by_their_own_range_or_a_given_one(tmp_path: Path) -> None:
    counts = np.linspace(7000, 7400, 64 * 48).reshape(48, 64).astype(np.uint16)
    path = tmp_path / "deep.png"
    cv2.imwrite(str(path), counts)
    automatic = read_frame(path)
    assert automatic.dtype == np.uint8 and automatic.min() == 0 and automatic.max() == 255
    fixed = read_frame(path, stretch=Stretch.of([7000, 8000]))
    assert fixed.max() == round(400 / 1000 * 255)
    with pytest.raises(ConfigError, match="range 5 5 is empty"):
        Stretch.of([5, 5])


def test_eight_bits_stay_as_they_are_unless_asked(tmp_path: Path) -> None:
    dark = np.random.default_rng(0).integers(10, 30, (20, 20)).astype(np.uint8)
    path = tmp_path / "dark.png"
    Image.fromarray(dark).save(path)
    assert np.array_equal(read_frame(path), dark)
    assert read_frame(path, stretch=Stretch(always=True)).max() == 255


def test_nan_pixels_of_radiometric_files_become_black() -> None:
    celsius = np.array([[20.0, np.nan], [30.0, np.inf]], np.float32)
    assert Stretch((20, 30))(celsius).tolist() == [[0, 0], [255, 255]]


def test_thermal_is_the_fourth_channel(tmp_path: Path) -> None:
    pixels = np.zeros((5, 6, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = [200, 10, 10], np.arange(6)
    path = tmp_path / "rgbt.png"
    Image.fromarray(pixels).save(path)
    assert np.array_equal(read_frame(path, "thermal"), pixels[..., 3])
    assert np.array_equal(read_frame(path, "rgb"), pixels[..., :3])  # nothing is premultiplied
    with pytest.raises(DataError, match="has colours"):
        read_frame(path, "grey")


def test_nearly_grey_colours_are_taken_and_real_ones_refused(tmp_path: Path) -> None:
    grey = np.full((10, 10, 3), 100, np.uint8)
    grey[..., 0] += 2
    Image.fromarray(grey).save(tmp_path / "near.png")
    assert read_frame(tmp_path / "near.png").tolist()[0][0] in (100, 101)
    grey[..., 0] = 250
    Image.fromarray(grey).save(tmp_path / "red.png")
    with pytest.raises(DataError, match="data.channel rgb"):
        read_frame(tmp_path / "red.png", "thermal")


def test_pages_and_videos_give_numbered_frames(tmp_path: Path) -> None:
    pages = np.random.default_rng(0).integers(3000, 9000, (3, 12, 16)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "stack.tiff", pages, photometric="minisblack")
    frames = list(read_frames(tmp_path / "stack.tiff"))
    assert [f.number for f in frames] == [0, 1, 2] and frames[0].pixels.shape == (12, 16)
    with pytest.raises(DataError, match="holds 3 pages"):
        read_frame(tmp_path / "stack.tiff")
    tifffile.imwrite(tmp_path / "one.tiff", pages[0].astype(np.float32) / 100)
    assert next(read_frames(tmp_path / "one.tiff")).number is None
    writer = cv2.VideoWriter(
        str(tmp_path / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48)
    )
    for level in (50, 120):
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    film = list(read_frames(tmp_path / "film.avi"))
    assert len(film) == 2 and abs(int(film[1].pixels.mean()) - 120) < 4


@pytest.mark.parametrize("name", ["broken.avi", "broken.tiff", "broken.png"])
def test_broken_files_are_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"nothing of use")
    with pytest.raises(DataError, match=name):
        list(read_frames(tmp_path / name))
    with pytest.raises(DataError, match="cannot be read|does not exist"):
        list(read_frames(tmp_path / f"missing{Path(name).suffix}"))


def test_an_alpha_channel_without_a_picture_is_transparency(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 200, (8, 9)).astype(np.uint8)
    white = np.full_like(grey, 255)
    Image.fromarray(np.dstack([grey, white]), "LA").save(tmp_path / "la.png")
    Image.fromarray(np.dstack([grey, grey, grey, white])).save(tmp_path / "rgba.png")
    for name in ("la.png", "rgba.png"):
        assert np.array_equal(read_frame(tmp_path / name, "thermal"), grey)
    tifffile.imwrite(tmp_path / "rgba.tiff", np.dstack([grey, grey, grey, white]))
    assert np.array_equal(read_frame(tmp_path / "rgba.tiff", "thermal"), grey)
    colours = np.dstack([grey, white, grey, white])
    Image.fromarray(colours).save(tmp_path / "photo.png")
    with pytest.raises(DataError, match="has colours"):
        read_frame(tmp_path / "photo.png", "thermal")
