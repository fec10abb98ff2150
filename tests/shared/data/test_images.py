from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from crossband.shared.data.images import (
    Photo,
    find_photos,
    photo_size,
    read_photo,
    write_photo,
)
from crossband.shared.errors import DataError

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (20, 30, 3), dtype=np.uint8)
DEEP = RANDOM.integers(0, 65536, (20, 30, 4), dtype=np.uint16)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Acme"
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_photographs_are_turned_upright(tmp_path: Path, orientation: int, deep: bool) -> None:
    """Every orientation of 16-bit files equals Pillow's of 8-bit files."""
    eight = tmp_path / "eight.png"
    Image.fromarray(RGB).save(eight, exif=turned(orientation))
    expected = read_photo(eight).pixels
    path = eight
    if deep:
        path = tmp_path / "deep.png"
        write_photo(Photo(RGB.astype(np.uint16) * 257, exif=turned(orientation).tobytes()), path)
    photo = read_photo(path)
    assert np.array_equal(photo.pixels // (257 if deep else 1), expected)
    assert photo_size(path) == photo.pixels.shape[:2] == ((20, 30) if orientation < 5 else (30, 20))
    write_photo(photo, tmp_path / "again.png")
    assert np.array_equal(read_photo(tmp_path / "again.png").pixels, photo.pixels)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_profile_and_camera_survive(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(RGB).save(tmp_path / "source.jpg", exif=turned(6), icc_profile=PROFILE)
    write_photo(read_photo(tmp_path / "source.jpg"), path)
    with Image.open(path) as image:
        assert image.info["icc_profile"] == PROFILE
        assert image.getexif()[0x010F] == "Acme"
        assert image.getexif().get(0x0112, 1) == 1
        assert image.size == (20, 30)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_survive(tmp_path: Path, suffix: str, channels: int) -> None:
    path = tmp_path / f"deep{suffix}"
    if channels == 1:
        cv2.imwrite(str(path), DEEP[..., 0])
    elif suffix == ".png":
        cv2.imwrite(str(path), DEEP[..., [2, 1, 0, 3][:channels]])
    else:
        extra = ["unassalpha"] if channels == 4 else None
        tifffile.imwrite(path, DEEP[..., :channels], photometric="rgb", extrasamples=extra)
    photo = read_photo(path)
    assert photo.white == 65535 and photo.grey == (channels == 1)
    expected = np.repeat(DEEP[..., :1], 3, axis=2) if channels == 1 else DEEP[..., :3]
    assert np.array_equal(photo.pixels, expected)
    assert (photo.alpha is not None) == (channels == 4)
    assert float(photo.unit().max()) <= 1.0
    again = tmp_path / f"again{suffix}"
    write_photo(photo, again)
    back = read_photo(again)
    assert np.array_equal(back.pixels, photo.pixels) and back.grey == photo.grey
    if channels == 4:
        assert np.array_equal(back.alpha, DEEP[..., 3])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb_and_keeps_its_kind(tmp_path: Path, mode: str) -> None:
    suffix = ".tif" if mode == "CMYK" else ".png"
    Image.fromarray(RGB).convert(mode).save(tmp_path / f"a{suffix}")
    photo = read_photo(tmp_path / f"a{suffix}")
    assert photo.pixels.shape == (20, 30, 3) and photo.pixels.dtype == np.uint8
    assert photo.grey == (mode in ("1", "L", "LA"))
    assert (photo.alpha is not None) == (mode in ("LA", "RGBA"))
    write_photo(photo, tmp_path / "b.png")
    back = read_photo(tmp_path / "b.png")
    assert (back.grey, back.alpha is None) == (photo.grey, photo.alpha is None)
    assert np.array_equal(back.pixels, photo.pixels)


def test_the_preview_behind_a_telephone_photograph_does_no_harm(tmp_path: Path) -> None:
    image = Image.fromarray(RGB)
    image.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[image])
    assert read_photo(tmp_path / "a.jpg").pixels.shape == (20, 30, 3)


def animated(path: Path) -> None:
    image = Image.fromarray(RGB)
    image.save(path, save_all=True, append_images=[Image.fromarray(255 - RGB)])


def truncated(path: Path) -> None:
    Image.fromarray(RGB).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN = {
    "empty.jpg": (lambda p: p.write_bytes(b""), "empty"),
    "text.png": (lambda p: p.write_text("hello"), "not an image"),
    "raw.heic": (lambda p: p.write_bytes(b"\0" * 64), "not an image"),
    "moving.gif": (animated, "2 pictures"),
    "moving.webp": (animated, "2 pictures"),
    "cut.jpg": (truncated, "damaged"),
    "cut.png": (truncated, "damaged"),
    "float.tif": (lambda p: tifffile.imwrite(p, RGB[..., 0].astype(np.float32)), "32-bit"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(tmp_path: Path, name: str) -> None:
    make, reason = BROKEN[name]
    make(tmp_path / name)
    with pytest.raises(DataError, match=reason) as caught:
        read_photo(tmp_path / name)
    assert name in str(caught.value)


def test_huge_images_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    Image.new("1", (30_000, 20_000)).save(tmp_path / "huge.png")
    with pytest.raises(DataError, match="600 megapixels.*max_megapixels"):
        read_photo(tmp_path / "huge.png")
    Image.new("L", (2_000, 1_000)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match="2 megapixels"):
        read_photo(tmp_path / "small.png", max_megapixels=1)


def test_finding_keeps_relative_paths_and_names_what_is_no_image(tmp_path: Path) -> None:
    for name in ("b/A.JPG", "b/c/d.png", ".hidden/x.png", "b/notes.txt", "b/e.nef", "f.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b/empty").mkdir()
    found, others = find_photos([tmp_path / "b", tmp_path / "f.png"])
    assert [str(relative) for _, relative in found] == ["A.JPG", "c/d.png", "e.nef", "f.png"]
    assert [path.name for path in others] == ["notes.txt"]
    with pytest.raises(DataError, match="does not exist"):
        find_photos([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="no photograph"):
        find_photos([tmp_path / "b" / "empty"])


def test_an_unknown_suffix_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="written as"):
        write_photo(Photo(RGB), tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_tiffs_are_turned_as_shallow_ones(tmp_path: Path, orientation: int) -> None:
    import tifffile

    values = np.arange(6 * 4 * 3, dtype=np.uint16).reshape(6, 4, 3) * 257
    extra = [(274, "H", 1, orientation, True)]
    deep, shallow = tmp_path / "deep.tif", tmp_path / "shallow.tif"
    tifffile.imwrite(deep, values, photometric="rgb", extratags=extra)
    tifffile.imwrite(shallow, (values // 257).astype(np.uint8), photometric="rgb", extratags=extra)
    found = read_photo(deep).pixels
    assert found.dtype == np.uint16
    assert np.array_equal(found // 257, read_photo(shallow).pixels)


def test_planes_apart_and_white_as_zero(tmp_path: Path) -> None:
    import tifffile

    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    path = tmp_path / "planar.tif"
    planes = np.ascontiguousarray(np.moveaxis(values, -1, 0))
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_photo(path).pixels, values)
    tifffile.imwrite(path, 65535 - values[..., 0], photometric="miniswhite")
    photo = read_photo(path)
    assert photo.grey and np.array_equal(photo.pixels[..., 0], values[..., 0])
