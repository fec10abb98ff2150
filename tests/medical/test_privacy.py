from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossband.medical.data.radiographs import RadiographStore
from crossband.medical.privacy import NamedStore, Names
from crossband.shared.errors import DataError


def test_an_image_is_called_by_the_digest_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "Nobodyson.png"
    path.write_bytes(b"some bytes")
    digest = hashlib.sha256(b"some bytes").hexdigest()
    assert Names(False).image(path) == f"image-{digest[:12]}"
    copy = tmp_path / "elsewhere.png"
    copy.write_bytes(b"some bytes")
    assert Names(False).image(copy) == Names(False).image(path)
    assert Names(True).image(path) == str(path)
    assert Names(True).image(path, "a/b.png") == "a/b.png"


def test_patients_are_numbered_as_they_come() -> None:
    """A digest of a short number would be found by trying all numbers."""
    names = Names(False)
    assert [names.patient(p) for p in ("4711", "12", "4711")] == [
        "patient-1",
        "patient-2",
        "patient-1",
    ]
    assert Names(True).patient("4711") == "4711"


def test_files_that_are_not_there_are_numbered_too(tmp_path: Path) -> None:
    names = Names(False)
    assert names.image(tmp_path / "00001.png") == "image-missing-1"
    assert names.image(tmp_path / "00002.png") == "image-missing-2"
    assert names.image(tmp_path / "00001.png") == "image-missing-1"


def test_errors_name_files_as_they_may_be_named(tmp_path: Path) -> None:
    path, mask = tmp_path / "Nobodyson/1.png", tmp_path / "masks/Nobodyson.png"
    for file in (path, mask):
        file.parent.mkdir()
        file.write_bytes(file.name.encode())
    names = Names(False)
    error = DataError(f"{path} and {mask} ({mask.name}) do not fit: look at them.")
    shown = names.error(error, path, mask)
    assert "Nobodyson" not in shown
    assert shown == (
        f"{names.image(path)} and {names.image(mask)} ({names.image(mask)}) do not fit: look at "
        "them."
    )
    assert Names(True).error(error, path, mask) == str(error)
    assert names.error(error, path, None).count("masks/Nobodyson.png") == 1


def test_short_names_of_archives_leave_the_sentence_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "1"
    path.write_bytes(b"some bytes")
    error = DataError(f"{path} has 12 frames of 128 pixels (file 1): export the one that is meant.")
    called = Names(False).image(path)
    shown = Names(False).error(error, path)
    assert shown == (
        f"{called} has 12 frames of 128 pixels (file {called}): export the one that is meant."
    )


def test_a_store_says_no_names(tmp_path: Path) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    whole, broken = tmp_path / "a.png", tmp_path / "Nobodyson.png"
    Image.fromarray(pixels).save(whole)
    broken.write_bytes(whole.read_bytes()[:40])
    store = NamedStore(RadiographStore(), Names(False))
    np.testing.assert_array_equal(store.read(whole), pixels)
    with pytest.raises(DataError, match=r"^image-[0-9a-f]{12} ") as caught:
        store.read(broken)
    assert "Nobodyson" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
