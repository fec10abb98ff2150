from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossband.medical.config import ContaminationConfig
from crossband.medical.data.contamination import Comparison, compare, run
from crossband.medical.data.fingerprints import fingerprint, near_pairs
from crossband.medical.data.name_sources import is_generic
from crossband.shared.errors import EXIT_FAILED, EXIT_PARTIAL, ConfigError, DataError

Put = Callable[..., Path]


def scene(seed: int, side: int = 120) -> Image.Image:
    """Draw a smooth random picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7), np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Six pictures to learn from, and four to test on: a copy, a JPEG of half the size, two new."""
    for name in ("seen", "new"):
        (tmp_path / name).mkdir()
    for seed in range(6):
        scene(seed).save(tmp_path / f"seen/polyp{seed}.png")
    shutil.copy(tmp_path / "seen/polyp0.png", tmp_path / "new/other0.png")
    scene(1).resize((60, 60)).save(tmp_path / "new/other1.jpg", quality=75)
    scene(11).save(tmp_path / "new/other2.png")
    scene(12).save(tmp_path / "new/other3.png")
    return tmp_path


def kinds(found: Comparison) -> list[tuple[str, str, str]]:
    return [(pair.kind, pair.tested.name, pair.against.name) for pair in found.pairs]


def test_names_of_lists_and_the_sets_that_have_them(put: Put, tmp_path: Path) -> None:
    put("lists/Kvasir/file_list.txt", "Kvasir/train/cju0qkwl35piu.jpg\nKvasir/train/abcdefg.jpg\n")
    put("lists/BUID/file_list.txt", "buid/benign (1).png\nbuid/malignant (7)_mask.png\n")
    put("lists/Other/file_list.txt", "1.png\nimage_001.png\n")
    tested = put("mine.txt", "data/CJU0QKWL35PIU.png\nbenign (1).png\n1.png\nnothing.png\n")
    found = compare([str(tested)], [str(tmp_path / "lists")])
    assert kinds(found) == [
        ("same name", "data/CJU0QKWL35PIU.png", "Kvasir/train/cju0qkwl35piu.jpg"),
        ("same name", "benign (1).png", "buid/benign (1).png"),
        ("same name, weak", "1.png", "1.png"),
    ]
    assert found.seen == 2 and len(found.against) == 6
    assert found.counts()[1] == {
        "set": "Kvasir",
        "same bytes": 0,
        "nearly equal": 0,
        "same name": 1,
        "same name, weak": 0,
    }
    assert "names alone were compared" in found.notes[-1]


def test_folder_or_set_makes_a_weak_name_strong(put: Put, tmp_path: Path) -> None:
    put("lists/Kvasir/file_list.txt", "images/12.png\n")
    put("lists/Brain/file_list.txt", "x/images/12.png\n")
    for text, kind in (("Kvasir/images/12.png", "same name"), ("12.png", "same name, weak")):
        found = compare([str(put("mine.txt", text))], [str(tmp_path / "lists")])
        assert {p.against.set: p.kind for p in found.pairs}["Kvasir"] == kind
        assert {p.against.set: p.kind for p in found.pairs}["Brain"] == "same name, weak"
    # Numbered anew in each split of one set.
    content = json.dumps({"train": ["train/1.png", "train/2.png"], "test": ["test/1.png"]})
    whole = str(put("Kvasir.json", content))
    found = compare([whole], [whole])
    assert [pair.kind for pair in found.pairs] == ["same name, weak"] and not found.seen
    assert found.notes[0] == "Kvasir.json: 1 name of test taken"
    assert found.notes[1] == "Kvasir.json: 2 names of other splits than test taken"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("1", True),
        ("0001234", True),
        ("image_001", True),
        ("case 00", True),
        ("ab1", True),
        ("train-slice-12", True),
        ("cju0qkwl35piu0993l0dewei2", False),
        ("ISIC_0000000", False),
        ("benign (1)", False),
        ("00000013_005", False),
        ("1.2.840.113619.2.5", False),
    ],
)
def test_names_that_many_sets_have(name: str, expected: bool) -> None:
    assert is_generic(name) is expected


def test_equal_bytes_and_nearly_equal_pictures(folders: Path) -> None:
    found = compare([str(folders / "new")], [str(folders / "seen")])
    assert kinds(found) == [
        ("same bytes", "other0.png", "polyp0.png"),
        ("nearly equal", "other1.jpg", "polyp1.png"),
    ]
    assert found.pairs[1].bits is not None and found.pairs[1].bits <= 6
    far = compare([str(folders / "new")], [str(folders / "seen")], near=False)
    assert [pair.kind for pair in far.pairs] == ["same bytes"]


def test_files_of_lists_are_compared_where_they_are_there(folders: Path) -> None:
    (folders / "tested.csv").write_text("image,split\nnew/other0.png,test\nnew/other2.png,train\n")
    (folders / "learnt.txt").write_text("seen/polyp0.png\nseen/gone.png\n")
    found = compare([str(folders / "tested.csv")], [str(folders / "learnt.txt")])
    assert kinds(found) == [("same bytes", "new/other0.png", "seen/polyp0.png")]


def test_what_shows_nothing_is_not_compared(folders: Path) -> None:
    for folder, value in (("new", 3), ("seen", 5)):
        Image.fromarray(np.full((40, 40), value, np.uint8)).save(folders / folder / "black.png")
    (folders / "new/black.png").rename(folders / "new/dark.png")
    found = compare([str(folders / "new")], [str(folders / "seen")])
    assert found.flat == 2 and len(found.pairs) == 2


def test_masks_are_left_out(folders: Path) -> None:
    for folder in ("new", "seen"):
        (folders / folder / "masks").mkdir()
        scene(50).save(folders / folder / "masks/a.png")
    found = compare([str(folders / "new")], [str(folders / "seen")])
    assert len(found.pairs) == 2
    assert found.notes == ["new: 1 mask left out", "seen: 1 mask left out"]


def test_middle_slices_of_volumes(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    volume = np.stack([np.asarray(scene(seed, 40), np.float32) for seed in range(5)], -1)
    for folder, name, values in (
        ("new", "x.nii.gz", volume),
        ("seen", "y.nii", volume * 3 + 7),
        ("seen", "z.nii", volume[..., ::2]),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / folder / name)
    scene(2, 40).save(tmp_path / "seen/slice.png")
    found = compare([str(tmp_path / "new")], [str(tmp_path / "seen")])
    assert kinds(found)[0][:2] == ("nearly equal", "x.nii.gz")
    assert found.pairs[0].more == 2  # z's middle slice is the same one, and so is the picture


def test_pairs_are_those_of_a_plain_search() -> None:
    random = np.random.default_rng(0)
    first = [fingerprint(np.asarray(scene(seed))) for seed in range(40)]
    second = []
    for seed in range(20, 60):
        noisy = np.asarray(scene(seed), np.int16) + random.integers(-6, 7, (120, 120))
        second.append(fingerprint(noisy.clip(0, 255).astype(np.uint8)))
    assert all(first) and all(second)
    expected = [
        (i, j, bits)
        for i, a in enumerate(first)
        for j, b in enumerate(second)
        if (bits := int(np.unpackbits((a.bits ^ b.bits).view(np.uint8)).sum())) <= 8
    ]
    assert near_pairs(first, second, 8) == expected
    assert [(i, j) for i, j, _ in expected] == [(i, i - 20) for i in range(20, 40)]


def test_what_is_printed_written_and_returned(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folders / "pairs.csv"
    sides = {"tested": [str(folders / "new")], "against": [str(folders / "seen")]}
    assert run(ContaminationConfig(**sides, out=str(out))) == EXIT_FAILED
    text = capsys.readouterr().out
    assert "2 of 4 were learnt from" in text and "other" not in text and "polyp" not in text
    rows = list(csv.DictReader(out.open()))
    assert [row["kind"] for row in rows] == ["same bytes", "nearly equal"]
    assert rows[0]["tested"] == rows[0]["against"] and rows[0]["tested"].startswith("image-")
    assert run(ContaminationConfig(**sides, json=True, keep_ids=True)) == EXIT_FAILED
    facts = json.loads(capsys.readouterr().out)
    assert facts["pairs"][1]["tested"] == "other1.jpg" and facts["seen"] == 2
    assert facts["against"] == {"seen": 6}
    sides["tested"] = [str(folders / "new/other2.png")]
    assert run(ContaminationConfig(**sides)) is None
    assert "nothing of it was found" in capsys.readouterr().out
    (folders / "seen/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    assert run(ContaminationConfig(**sides)) == EXIT_PARTIAL
    shown = capsys.readouterr().out
    assert "left out: image-" in shown and "broken" not in shown


def test_names_of_lists_are_shown_by_their_place(
    put: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    tested, seen = put("a.txt", "x\nSmithJohn.png\n"), put("b.txt", "SmithJohn.dcm\n")
    assert run(ContaminationConfig(tested=[str(tested)], against=[str(seen)])) == EXIT_FAILED
    text = capsys.readouterr().out
    assert "a.txt:2 = b.txt:1 of b" in text and "Smith" not in text


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"tested": []}, ConfigError, "give what is tested on"),
        ({"against": []}, ConfigError, "--against"),
        ({"distance": 64}, ConfigError, "give 0 to 63 of 256 bits"),
        ({"out": "pairs.txt"}, ConfigError, r"ends in \.csv"),
        ({"against": ["none"]}, DataError, "none does not exist"),
        ({"against": ["empty"]}, DataError, "no images and no lists"),
        ({"against": ["a.pdf"]}, DataError, "is no list"),
    ],
)
def test_inputs_that_cannot_be_compared(
    put: Put, tmp_path: Path, monkeypatch, options: dict, error: type, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    put("a.txt", "x.png\n")
    put("a.pdf", "no")
    put("empty/readme.md", "no")
    sides = {"tested": ["a.txt"], "against": ["a.txt"]}
    with pytest.raises(error, match=words):
        run(ContaminationConfig(**{**sides, **options}))


def test_the_real_pack_has_pictures_of_both_splits(shared_dir: Path) -> None:
    table = shared_dir / "data/medical/cxr/labels.csv"
    if not table.is_file():
        pytest.skip("no pack of radiographs")
    found = compare([str(table)], [str(table)])
    assert (len(found.tested), len(found.against)) == (106, 393)
    assert [pair.kind for pair in found.pairs] == ["same bytes"] * 4 + ["nearly equal"] * 4
