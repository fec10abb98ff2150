from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from crossband.medical.data.dicom import windowed
from crossband.medical.data.radiographs import read_radiograph
from crossband.shared.errors import DataError

Put = Callable[..., Path]
TWELVE = np.linspace(0, 4095, 64).round().astype(np.uint16).reshape(8, 8)
DEEP = {"BitsStored": 12, "HighBit": 11}
FULL = {"WindowCenter": 2048, "WindowWidth": 4096}


def test_a_window_over_all_values_is_a_ramp_and_monochrome1_its_negative(put_dicom: Put) -> None:
    want = np.rint(TWELVE / 4095 * 255)
    image = read_radiograph(put_dicom(TWELVE, **DEEP, **FULL))
    np.testing.assert_array_equal(image.pixels, want)
    assert image.bits == 12
    inverse = put_dicom(TWELVE, **DEEP, **FULL, PhotometricInterpretation="MONOCHROME1")
    assert np.abs(read_radiograph(inverse).pixels - (255 - want)).max() <= 1


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_are_those_of_pydicom(put_dicom: Put, function: str) -> None:
    path = put_dicom(TWELVE, **DEEP, WindowCenter=1500, WindowWidth=1001, VOILUTFunction=function)
    shown = apply_voi_lut(TWELVE, pydicom.dcmread(path))
    np.testing.assert_allclose(read_radiograph(path).pixels, shown / 4095 * 255, atol=0.51)


def test_the_window_by_its_formula() -> None:
    values = np.array([0, 99, 100, 101, 200], np.float32)
    # PS3.3 C.11.2.1.2: c 100, w 101: ((x - 99.5) / 100 + 0.5).
    want = np.array([0, 0.495, 0.505, 0.515, 1])
    np.testing.assert_allclose(windowed(values, 100, 101), want, atol=1e-6)
    np.testing.assert_array_equal(windowed(values, 100, 1), [0, 0, 1, 1, 1])
    exact = windowed(values, 100, 100, "LINEAR_EXACT")
    np.testing.assert_allclose(exact, [0, 0.49, 0.5, 0.51, 1], atol=1e-6)


def test_the_first_of_several_windows_and_the_users_own(put_dicom: Put) -> None:
    several = put_dicom(TWELVE, **DEEP, WindowCenter=[2048, 100], WindowWidth=[4096, 10])
    np.testing.assert_array_equal(read_radiograph(several).pixels, np.rint(TWELVE / 4095 * 255))
    own = read_radiograph(several, [1000, 201]).pixels
    np.testing.assert_array_equal(
        own, np.rint(windowed(TWELVE.astype(np.float32), 1000, 201) * 255)
    )


def test_rescaled_values_are_windowed(put_dicom: Put) -> None:
    stored = (np.arange(64).reshape(8, 8) - 32).astype(np.int16)
    path = put_dicom(stored, RescaleSlope=2, RescaleIntercept=100, WindowCenter=100, WindowWidth=65)
    want = np.rint(windowed(2 * stored.astype(np.float32) + 100, 100, 65) * 255)
    np.testing.assert_array_equal(read_radiograph(path).pixels, want)


def test_without_a_window_the_tails_are_cut(put_dicom: Put) -> None:
    values = np.arange(10_000, dtype=np.uint16).reshape(100, 100)
    low, high = np.percentile(values, [0.5, 99.5])
    want = np.rint(((values - low) / (high - low)).clip(0, 1) * 255)
    assert np.abs(read_radiograph(put_dicom(values)).pixels - want).max() <= 1
    narrow = put_dicom(values, WindowCenter=100, WindowWidth=0)
    image = read_radiograph(narrow)
    assert np.abs(image.pixels - want).max() <= 1
    assert "window has no width" in image.notes[0]


def test_a_lookup_table_is_taken_before_the_window(put_dicom: Put) -> None:
    stored = np.arange(64, dtype=np.uint8).reshape(8, 8)
    item = Dataset()
    item.LUTDescriptor = [64, 0, 8]
    item.LUTData = (255 - 3 * np.arange(64)).astype("<u2").tobytes()
    path = put_dicom(stored, VOILUTSequence=Sequence([item]), WindowCenter=1, WindowWidth=2)
    np.testing.assert_array_equal(read_radiograph(path).pixels, 255 - 3 * stored)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count(put_dicom: Put, photometric: str) -> None:
    stored = np.arange(1000, 1100, dtype=np.int16).reshape(10, 10)
    stored[:, 0] = -2000
    path = put_dicom(stored, PixelPaddingValue=-2000, PhotometricInterpretation=photometric)
    pixels = read_radiograph(path).pixels
    assert (pixels[:, 0] == 0).all()
    # The rest uses the whole range: the padding would have made it all white.
    assert pixels[:, 1:].min() < 10 and pixels[:, 1:].max() > 245


def test_colours_become_luma_with_a_note(put_dicom: Put) -> None:
    colour = np.zeros((8, 8, 3), np.uint8)
    colour[..., 1] = 100
    image = read_radiograph(put_dicom(colour))
    assert (image.pixels == 59).all() and "colours" in image.notes[0]
    grey = np.full((8, 8, 3), 77, np.uint8)
    image = read_radiograph(put_dicom(grey))
    assert (image.pixels == 77).all() and image.notes == ()


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, DeflatedExplicitVRLittleEndian])
def test_lossless_compression(put_dicom: Put, tmp_path: Path, syntax: UID) -> None:
    plain = put_dicom(TWELVE, **DEEP, **FULL)
    header = pydicom.dcmread(plain)
    if syntax == RLELossless:
        header.compress(RLELossless)
    elif syntax == JPEG2000Lossless:
        stream = io.BytesIO()
        Image.fromarray(TWELVE).save(stream, "JPEG2000", no_jp2=True)
        header.PixelData = encapsulate([stream.getvalue()])
        header.file_meta.TransferSyntaxUID = syntax
    else:
        header.file_meta.TransferSyntaxUID = syntax
    header.save_as(tmp_path / "b.dcm")
    np.testing.assert_array_equal(
        read_radiograph(tmp_path / "b.dcm").pixels, read_radiograph(plain).pixels
    )


def test_baseline_jpeg_and_implicit_headers(put_dicom: Put, tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    full = {"WindowCenter": 128, "WindowWidth": 256}
    implicit = put_dicom(ramp, **full, TransferSyntaxUID=ImplicitVRLittleEndian)
    np.testing.assert_array_equal(read_radiograph(implicit).pixels, ramp)
    stream = io.BytesIO()
    Image.fromarray(ramp).save(stream, "JPEG", quality=95)
    header = pydicom.dcmread(put_dicom(ramp, **full))
    header.PixelData = encapsulate([stream.getvalue()])
    header["PixelData"].VR = "OB"
    header.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    header.save_as(tmp_path / "b.dcm")
    assert np.abs(read_radiograph(tmp_path / "b.dcm").pixels.astype(int) - ramp).max() <= 3


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless])
def test_a_missing_decoder_is_named_with_the_remedy(
    put_dicom: Put, tmp_path: Path, syntax: UID
) -> None:
    from pydicom.pixels import get_decoder

    if get_decoder(syntax).is_available:
        pytest.skip("a decoder is installed")
    header = pydicom.dcmread(put_dicom(TWELVE, **DEEP))
    header.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    header.file_meta.TransferSyntaxUID = syntax
    header.save_as(tmp_path / "b.dcm")
    with pytest.raises(DataError, match="pip install python-gdcm") as caught:
        read_radiograph(tmp_path / "b.dcm")
    assert syntax.name in str(caught.value)


@pytest.mark.parametrize(
    ("written", "known", "noted"),
    [("PA", "PA", False), ("AP", "AP", False), ("LL", "LATERAL", True), ("", None, False)],
)
def test_views(put_dicom: Put, written: str, known: str | None, noted: bool) -> None:
    image = read_radiograph(put_dicom(TWELVE, **DEEP, ViewPosition=written))
    assert image.view == known
    assert (image.notes == ("The view is LATERAL, not a frontal one.",)) == noted


def test_the_view_by_its_code(put_dicom: Put) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "R-10214", "SNM3"
    code.CodeMeaning = "postero-anterior"
    path = put_dicom(TWELVE, **DEEP, ViewCodeSequence=Sequence([code]))
    assert read_radiograph(path).view == "PA"


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"Modality": "CT"}, "modality CT"),
        ({"Modality": "SR", "PixelData": None}, "without an image"),
        ({"NumberOfFrames": 3}, "3 frames"),
        ({"Rows": 100}, "damaged"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "damaged"),
    ],
)
def test_files_that_cannot_be_used_tell_why_and_not_of_whom(
    put_dicom: Put, elements: dict, words: str
) -> None:
    path = put_dicom(TWELVE, **DEEP, **elements)
    with pytest.raises(DataError, match=words) as caught:
        read_radiograph(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "Secret" not in text and "MRN" not in text and "\n" not in text


@pytest.mark.parametrize("left", [3, 200, 400])
def test_files_that_are_cut_off(put_dicom: Put, left: int) -> None:
    path = put_dicom(TWELVE, **DEEP)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(DataError, match=r"a\.dcm"):
        read_radiograph(path)
    path.write_text("this is a text and no image at all " * 10)
    with pytest.raises(DataError, match="not a DICOM file"):
        read_radiograph(path)
    with pytest.raises(DataError, match="does not exist"):
        read_radiograph(path.with_name("none.dcm"))


def test_a_dicom_file_is_known_by_its_content(put_dicom: Put) -> None:
    path = put_dicom(TWELVE, "wrong.png", **DEEP, **FULL)
    np.testing.assert_array_equal(read_radiograph(path).pixels, np.rint(TWELVE / 4095 * 255))


def test_nothing_is_warned_about(put_dicom: Put, recwarn: pytest.WarningsRecorder) -> None:
    path = put_dicom(TWELVE, **DEEP)
    data = path.read_bytes().replace(b"2.25.1", b"2.25,1")  # not a valid identifier
    path.write_bytes(data)
    read_radiograph(path)
    assert not list(recwarn)


def test_whatever_is_damaged_ends_in_one_sentence(put_dicom: Put) -> None:
    path = put_dicom(TWELVE, **DEEP, **FULL)
    data = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(60):
        changed = np.frombuffer(data, np.uint8).copy()
        changed[random.integers(132, len(data), 4)] = random.integers(0, 256, 4)
        path.write_bytes(changed[: random.integers(140, len(data) + 1)].tobytes())
        try:
            pixels = read_radiograph(path).pixels
        except DataError as error:
            assert "\n" not in str(error) and "Secret" not in str(error)
        else:
            assert pixels.dtype == np.uint8 and pixels.ndim == 2
