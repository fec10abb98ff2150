from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from crossband.medical.data.radiographs import (
    RadiographStore,
    is_radiograph_file,
    read_radiograph,
    shrunk,
    to_grey,
)
from crossband.shared.errors import ConfigError, DataError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_grey_files_of_8_bits_come_back_as_they_are(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RAMP).save(path, **({"lossless": True} if suffix == "webp" else {}))
    image = read_radiograph(path)
    np.testing.assert_array_equal(image.pixels, RAMP)
    assert image.pixels.dtype == np.uint8 and image.pixels.flags.c_contiguous
    assert (image.bits, image.view, image.notes) == (8, None, ())


@pytest.mark.parametrize(
    ("top", "bits"), [(255, 8), (256, 10), (1023, 10), (4000, 12), (4096, 14), (65_535, 16)]
)
def test_deep_files_are_scaled_by_the_bits_they_use(tmp_path: Path, top: int, bits: int) -> None:
    deep = np.linspace(0, top, 64).round().astype(np.uint16).reshape(8, 8)
    want = np.rint(deep / (2**bits - 1) * 255)
    for name in ("a.png", "a.tif"):
        path = tmp_path / name
        tifffile.imwrite(path, deep) if name == "a.tif" else cv2.imwrite(str(path), deep)
        image = read_radiograph(path)
        np.testing.assert_array_equal(image.pixels, want)
        assert image.bits == bits


def test_colours_become_luma_with_a_note_and_equal_channels_do_not(tmp_path: Path) -> None:
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[..., 0] = 200
    Image.fromarray(colour).save(tmp_path / "red.png")
    image = read_radiograph(tmp_path / "red.png")
    assert (image.pixels == round(0.299 * 200)).all()
    assert image.notes == ("The image has colours and was taken as grey.",)
    alpha = np.dstack([RAMP] * 3 + [np.full_like(RAMP, 255)])  # as some files of NIH
    Image.fromarray(alpha).save(tmp_path / "four.png")
    image = read_radiograph(tmp_path / "four.png")
    np.testing.assert_array_equal(image.pixels, RAMP)
    assert image.notes == ()


def test_luma_is_that_of_pillow() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    want = np.asarray(Image.fromarray(colour).convert("L")).astype(int)
    grey, there = to_grey(colour)
    assert there and np.abs(grey.astype(int) - want).max() <= 1


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\nrubbish", b"hello"])
def test_broken_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png"):
        read_radiograph(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="damaged"):
        read_radiograph(tmp_path / "a.png")


@pytest.mark.parametrize("window", [[1.0], [1, 0.5], [1, 2, 3], [1, float("nan")]])
def test_windows_that_cannot_be(tmp_path: Path, window: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"--data\.window"):
        read_radiograph(tmp_path / "a.png", window)


def test_which_files_are_radiographs(tmp_path: Path) -> None:
    magic = bytes(128) + b"DICM"
    for name in ("1.2.840.10008", "IM000001", "report.pdf"):
        (tmp_path / name).write_bytes(magic)
    (tmp_path / "README").write_text("hello")
    names = ("a.PNG", "a.dcm", "1.2.840.10008", "IM000001", "report.pdf", "README", "a.csv")
    found = [is_radiograph_file(tmp_path / name) for name in names]
    assert found == [True, True, True, True, False, False, False]


def test_the_store_keeps_its_budget_and_shrinks(tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(RAMP + np.uint8(number)).save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    store = RadiographStore(cache_gb=2 * 256 / 2**30)
    first, again = ([store.read(path) for path in paths] for _ in range(2))
    assert [a is b for a, b in zip(first, again, strict=True)] == [True, True, False]
    np.testing.assert_array_equal(first[2], again[2])
    small = RadiographStore(shrink=8).read(paths[0])
    assert small.shape == (8, 8)


def test_shrinking_keeps_the_aspect_and_never_enlarges() -> None:
    tall = np.tile(np.arange(90, dtype=np.uint8)[:, None], (1, 40))
    assert shrunk(tall, 20).shape == (45, 20)
    assert shrunk(tall, 40) is tall
    # The mean of a ramp stays, and it stays a ramp.
    assert abs(float(shrunk(tall, 20).mean()) - float(tall.mean())) < 0.6
    assert (np.diff(shrunk(tall, 20)[:, 0].astype(int)) >= 0).all()
