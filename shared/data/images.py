"""Photographs in and out: every common kind of file, in the depth and with the extras it has.

Pillow reads all but 16-bit colour, which it would cut to 8 bits without a word; OpenCV reads that.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from crossband.shared.errors import DataError
from crossband.shared.files import atomic_path

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# Images all the same, but not read here: they are named rather than passed over.
FOREIGN_SUFFIXES = (
    *(".heic", ".heif", ".avif", ".gif"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
MAX_MEGAPIXELS = 200.0
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*")


@dataclass(frozen=True)
class Photo:
    """A photograph, upright.

    Attributes:
        pixels: RGB, uint8 or uint16, (H, W, 3); grey images have three equal channels.
        alpha: (H, W) of the same type, or None.
        grey: Whether the file was grey.
        exif: EXIF block to write back, orientation removed; empty if there was none.
        icc: Colour profile, or None.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    exif: bytes = b""
    icc: bytes | None = None

    @property
    def white(self) -> int:
        """Largest value of a channel: 255 or 65535."""
        return int(np.iinfo(self.pixels.dtype).max)

    def unit(self) -> np.ndarray:
        """Return the pixels as float32 (H, W, 3) in [0, 1]."""
        return self.pixels.astype(np.float32) / np.float32(self.white)

    def with_pixels(self, pixels: np.ndarray) -> Photo:
        """Return the same photograph showing other pixels; alpha only if the size is the same."""
        same = self.alpha is not None and pixels.shape[:2] == self.alpha.shape
        return replace(self, pixels=pixels, alpha=self.alpha if same else None)


def read_photo(path: str | Path, max_megapixels: float = MAX_MEGAPIXELS) -> Photo:
    """Read a photograph, turned upright by its EXIF orientation.

    Raises:
        DataError: missing, empty, damaged, animated, too large, or of an unknown format.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is no ordinary file: give a photograph.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not data:
        raise DataError(f"{path} is empty (0 bytes): copy it again.")
    try:
        with _any_number_of_pixels(), Image.open(io.BytesIO(data)) as image:
            return _decode(path, data, image, max_megapixels)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        if data[:4] in _TIFF:  # 16-bit colour TIFF, which Pillow does not know
            return _sixteen_bit(path, data, max_megapixels)
        known = ", ".join(suffix[1:] for suffix in SUFFIXES)
        raise DataError(
            f"{path} is not an image that can be read ({known}): convert it first."
        ) from error
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        reason = str(error).strip() or type(error).__name__
        raise DataError(f"{path} is damaged ({reason[:80]}): copy it again.") from error


def write_photo(photo: Photo, path: str | Path) -> None:
    """Write a photograph atomically in the format of the suffix, with its EXIF and profile.

    JPEG and WebP are written at quality 95; JPEG has no alpha and no 16 bits, so those are lost
    there.

    Raises:
        DataError: a suffix that is not in `SUFFIXES`.
        CrossbandError: the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: photographs are written as {', '.join(SUFFIXES)}.")
    pixels, alpha = photo.pixels, photo.alpha
    if photo.grey:
        pixels = np.round(pixels.mean(axis=2)).astype(pixels.dtype)
    deep = pixels.dtype == np.uint16
    if deep and suffix in (".png", ".tif", ".tiff"):
        _write_sixteen_bit(photo, pixels, path)
        return
    if deep:
        pixels = (pixels // 257).astype(np.uint8)
        alpha = None if alpha is None else (alpha // 257).astype(np.uint8)
    image = Image.fromarray(pixels)
    if alpha is not None and suffix in (".png", ".tif", ".tiff", ".webp"):
        image.putalpha(Image.fromarray(alpha))
    extras: dict[str, Any] = {}
    if suffix != ".bmp":
        extras = {"exif": photo.exif} if photo.exif else {}
        extras |= {"icc_profile": photo.icc} if photo.icc else {}
    if suffix in (".jpg", ".jpeg"):
        extras |= {"quality": 95, "subsampling": 0}
    elif suffix == ".webp":
        extras |= {"quality": 95}
    with atomic_path(path) as temporary:
        image.save(temporary, **extras)


def find_photos(inputs: Sequence[str | Path]) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Find the photographs among files and in folders (all levels, hidden ones left out).

    Returns:
        Pairs of a file and the relative path under which its result belongs, sorted; and the
        files in the folders that are not images.

    Raises:
        DataError: nothing there, or no photograph.
    """
    found: dict[Path, Path] = {}
    others: list[Path] = []
    for item in map(Path, inputs):
        if item.is_dir():
            for path in _walk(item):
                if path.suffix.lower() in SUFFIXES + FOREIGN_SUFFIXES:
                    found[path] = path.relative_to(item)
                else:
                    others.append(path)
        elif item.exists():
            found[item] = Path(item.name)
        else:
            raise DataError(f"{item} does not exist: give photographs or folders of them.")
    if not found:
        names = ", ".join(map(str, inputs))
        raise DataError(f"There is no photograph in {names} ({', '.join(SUFFIXES)}).")
    return sorted(found.items()), others


def photo_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) as the photograph is seen, from its header alone.

    Raises:
        DataError: the header cannot be read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except Exception:  # 16-bit colour TIFF and what is damaged: let the full reader decide
        height, width = read_photo(path).pixels.shape[:2]
        return height, width
    return (width, height) if turned else (height, width)


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root) / name for name in sorted(files) if not name.startswith("."))


def _decode(path: Path, data: bytes, image: Image.Image, max_megapixels: float) -> Photo:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # telephones put a preview behind the photograph
        raise DataError(f"{path} holds {frames} pictures (animated or many pages): split it first.")
    _check_size(path, image.size, max_megapixels)
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    icc = image.info.get("icc_profile")
    if _is_sixteen_bit(data, image):
        deep = _sixteen_bit(path, data, max_megapixels, orientation)
        return replace(deep, exif=_without_orientation(image), icc=icc)
    if image.mode in ("F", "I"):
        raise DataError(f"{path} holds 32-bit values, whose white is unknown: save it as 16 bits.")
    upright = ImageOps.exif_transpose(image)
    exif = _without_orientation(image)
    image = upright
    if image.mode == "P" or (image.mode in ("L", "RGB") and "transparency" in image.info):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    grey = image.mode in ("1", "L", "LA", "La")
    alpha = None
    if image.mode in ("LA", "RGBA", "La", "RGBa", "PA"):
        alpha = np.array(image.convert("RGBA"))[..., 3]
    if image.mode == "CMYK":
        icc = None  # a profile of inks does not describe RGB
    pixels = np.array(image.convert("RGB"))
    return Photo(pixels, alpha, grey, exif, icc)


def _without_orientation(image: Image.Image) -> bytes:
    if image.format == "TIFF":  # there Pillow's block also describes the layout of the old file
        return b""
    exif = image.getexif()
    exif.pop(ExifTags.Base.Orientation, None)
    return exif.tobytes() if exif else b""


@contextmanager
def _any_number_of_pixels() -> Iterator[None]:
    """Lift Pillow's own limit; ours names the option that raises it."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _is_sixteen_bit(data: bytes, image: Image.Image) -> bool:
    if image.mode.startswith("I;16"):
        return True
    if data.startswith(_PNG):
        return data[24] == 16
    bits = image.tag_v2.get(258, (8,)) if hasattr(image, "tag_v2") else (8,)
    return max(bits if isinstance(bits, Iterable) else (bits,)) == 16 and image.mode != "F"


def _sixteen_bit(path: Path, data: bytes, limit: float, orientation: int = 1) -> Photo:
    if data[:4] in _TIFF:
        pixels, orientation = _read_tiff(path, data)
    else:
        import cv2

        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is not None and pixels.ndim == 3:
            pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    if pixels is None or pixels.dtype != np.uint16:
        raise DataError(f"{path} is damaged or not of 8 or 16 bits: save it as PNG or TIFF again.")
    _check_size(path, pixels.shape[1::-1], limit)
    for turn in _turns(orientation):
        pixels = turn(pixels)
    if pixels.ndim == 2:
        return Photo(np.repeat(pixels[..., None], 3, axis=2), grey=True)
    alpha = np.ascontiguousarray(pixels[..., 3]) if pixels.shape[2] == 4 else None
    return Photo(np.ascontiguousarray(pixels[..., :3]), alpha)


def _read_tiff(path: Path, data: bytes) -> tuple[np.ndarray, int]:
    """Return (H, W) or (H, W, 3 or 4) of a TIFF, black being 0, and its orientation.

    Raises:
        DataError: colours that are not grey or RGB.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        pixels = page.asarray()
        kind = page.photometric.name
        tag = page.tags.get(274)
    if kind not in ("MINISBLACK", "MINISWHITE", "RGB"):
        raise DataError(f"{path} has 16 bits and the colours {kind}: save it as RGB.")
    if pixels.ndim == 3 and page.planarconfig.name == "SEPARATE":
        pixels = np.moveaxis(pixels, 0, -1)
    if kind == "MINISWHITE":
        pixels = np.iinfo(pixels.dtype).max - pixels
    if pixels.ndim == 3 and pixels.shape[2] not in (3, 4):
        pixels = pixels[..., 0]
    return pixels, int(tag.value) if tag is not None else 1


def _turns(orientation: int) -> list[Any]:
    """Return the turns that an EXIF orientation asks for."""
    flip, turn, mirror = np.fliplr, np.rot90, np.flipud
    return {
        2: [flip],
        3: [lambda a: turn(a, 2)],
        4: [mirror],
        5: [turn, mirror],
        6: [lambda a: turn(a, -1)],
        7: [turn, flip],
        8: [turn],
    }.get(orientation, [])


def _write_sixteen_bit(photo: Photo, pixels: np.ndarray, path: Path) -> None:
    """Write (H, W) or (H, W, 3) uint16 as PNG or TIFF, with the profile (PNG: and EXIF)."""
    if photo.alpha is not None:
        colour = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
        pixels = np.dstack([colour, photo.alpha])
    if path.suffix.lower() != ".png":
        import tifffile

        with atomic_path(path) as temporary:
            tifffile.imwrite(
                temporary,
                pixels,
                photometric="minisblack" if pixels.ndim == 2 else "rgb",
                extrasamples=["unassalpha"] if photo.alpha is not None else None,
                compression="zlib",
                iccprofile=photo.icc,
            )
        return
    import cv2

    ordered = pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    done, encoded = cv2.imencode(".png", np.ascontiguousarray(ordered))
    assert done
    data = encoded.tobytes()
    extras = b""
    if photo.icc:
        extras += _png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(photo.icc))
    if photo.exif:
        extras += _png_chunk(b"eXIf", photo.exif.removeprefix(b"Exif\0\0"))
    end_of_header = len(_PNG) + 25  # IHDR is the first chunk and always this long
    with atomic_path(path) as temporary:
        temporary.write_bytes(data[:end_of_header] + extras + data[end_of_header:])


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    length, check = len(content), zlib.crc32(kind + content)
    return length.to_bytes(4, "big") + kind + content + check.to_bytes(4, "big")


def _check_size(path: Path, size: tuple[int, int], limit: float) -> None:
    width, height = size
    if width * height > limit * 1e6:
        raise DataError(
            f"{path} has {width * height / 1e6:.0f} megapixels, more than the {limit:g} allowed: "
            "raise --max_megapixels if the memory allows it, or make it smaller."
        )
