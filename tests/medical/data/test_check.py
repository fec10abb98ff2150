from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossband.medical.config import CheckConfig, SourceConfig
from crossband.medical.data.check import run
from crossband.medical.data.synthetic import FAMILY_NAME
from crossband.shared.errors import EXIT_FAILED, EXIT_PARTIAL, ConfigError


def check(root: Path, **options: object) -> int | None:
    return run(CheckConfig(data=SourceConfig(root=[str(root)]), **options))  # type: ignore[arg-type]


def facts(root: Path, capsys: pytest.CaptureFixture[str], **options: object) -> dict:
    check(root, json=True, **options)
    return json.loads(capsys.readouterr().out)


def test_numbers_of_a_good_set(xrays: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(xrays, capsys)
    assert "not a medical device" in found["notice"] and found["copies"] == []
    data = found["data"][0]
    assert (data["images"], data["masks"], data["sizes"]) == (32, 32, {"64 x 64": 32})
    assert sum(row["images"] for row in data["splits"]) == 32
    assert data["bits"] == {"8": 32} and sum(data["views"].values()) == 32
    rows = (xrays / "labels.csv").read_text().splitlines()
    train = [row.split(",") for row in rows if ",train," in row]
    pixels = np.stack([np.asarray(Image.open(xrays / row[0])) for row in train]) / 255
    assert data["train_pixels"]["mean"] == pytest.approx(pixels.mean(), abs=1e-4)
    assert data["train_pixels"]["std"] == pytest.approx(pixels.std(), abs=1e-4)
    effusion = next(row for row in data["findings"] if row["finding"] == "Effusion")
    assert effusion["train"]["present"] == sum(row[7] == "1" for row in train)
    assert effusion["train"]["known"] == len(train)


def test_it_goes_on_past_broken_files_and_tells_nobodys_name(
    dicoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    shutil.copytree(dicoms, root)
    first, second, third = sorted((root / "images").iterdir())[:3]
    first.write_bytes(first.read_bytes()[:900])
    shutil.copy(third, second)
    sheet = tmp_path / "sheet.png"
    assert check(root, out=str(sheet)) == EXIT_PARTIAL
    text = capsys.readouterr().out
    assert "files that cannot be read: 1" in text and "files of the same content: 1" in text
    assert Image.open(sheet).mode == "RGB" and Image.open(sheet).size[0] == 4 * 228 - 4
    for secret in (FAMILY_NAME, "MRN0", first.stem, third.stem):
        assert secret not in text
    check(root, keep_ids=True)
    assert f"images/{first.name}" in capsys.readouterr().out


def test_patients_in_two_splits_fail(
    xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    shutil.copytree(xrays, root)
    header, *rows = (root / "labels.csv").read_text().splitlines()
    cells = [row.split(",") for row in rows]
    twin = next(a for a, b in zip(cells, cells[1:], strict=False) if a[2] == b[2])
    twin[1] = "test" if twin[1] != "test" else "train"
    text = "\n".join([header, *map(",".join, cells)])
    (root / "labels.csv").write_text(text + "\n")
    assert check(root) == EXIT_FAILED
    shown = capsys.readouterr().out
    assert "patients in more than one split: 1" in shown and twin[2] not in shown
    assert facts(root, capsys, keep_ids=True)["data"][0]["patients_in_two_splits"] == [twin[2]]


def test_a_list_and_a_header_that_differ(
    dicoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    shutil.copytree(dicoms, root)
    table = root / "labels.csv"
    table.write_text(table.read_text().replace(",PA,", ",AP,"))
    remarks = facts(root, capsys)["data"][0]["remarks"]
    assert list(remarks) == ["The list says view AP, the header PA."]


def test_the_sheet_is_a_png(xrays: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.png"):
        check(xrays, out="sheet.pdf")


def test_masks_of_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        for role in ("images", "masks"):
            (tmp_path / split / role).mkdir(parents=True)
        for number in range(3):
            mask = np.zeros((20, 30), np.uint8)
            mask[:5], mask[5:9] = 85 * (number > 0), 170
            Image.fromarray(np.full((20, 30), 40 * number, np.uint8)).save(
                tmp_path / split / f"images/{number}.png"
            )
            Image.fromarray(mask).save(tmp_path / split / f"masks/{number}.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "test/masks/2.png")
    (tmp_path / "test/masks/1.png").write_bytes(b"no")
    (tmp_path / "test/masks/0.png").unlink()
    sheet = tmp_path / "out" / "sheet.png"
    found = facts(tmp_path, capsys, out=str(sheet))
    data = found["data"][0]
    assert (data["layout"], data["masks"]) == ("pairs", 5)
    assert data["mask_values"] == {"0": 4, "85": 2, "170": 3}
    assert "1 image without a mask" in data["notes"]
    hint = "give --data.classes with 3 names and --data.mask_values 0 85 170"
    assert data["notes"][-1].endswith(hint)
    assert data["remarks"] == {"The mask has another size than the image.": 1}
    assert [entry["image"][:6] for entry in data["unreadable"]] == ["image-"]
    assert found["copies_in_two_splits"] == 3
    colours = np.asarray(Image.open(sheet)).reshape(-1, 3)
    assert (colours.max(1) != colours.min(1)).any()  # masks are drawn in colours
    named = {"classes": ["back", "rim", "cup"], "mask_values": [0, 85, 170]}
    assert run(CheckConfig(data=SourceConfig(root=[str(tmp_path)], **named))) == EXIT_PARTIAL
    text = capsys.readouterr().out
    assert "with the values 0 (4), 85 (2), 170 (3)" in text and "give --data" not in text
    assert "of them in more than one split: 3" in text


def test_masks_with_soft_edges_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for role in ("images", "masks"):
        (tmp_path / role).mkdir()
        ramp = np.arange(64, dtype=np.uint8).reshape(8, 8)
        Image.fromarray(ramp).save(tmp_path / role / "a.png")
    notes = facts(tmp_path, capsys)["data"][0]["notes"]
    assert "masks hold 64 values, 0 to 63" in notes[-1]


def put_volumes(root: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    for number in range(3):
        values = np.random.default_rng(number).normal(size=(12, 10, 4)).astype(np.float32)
        mask = np.zeros((12, 10, 4), np.int16)
        mask[:6, :, 2] = 205
        mask[0, 0, 0] = 420 * (number == 0)
        affine = np.diag([1, 1, 3 + number, 1]).astype(float)
        for role, array in (("images", values), ("labels", mask)):
            (root / role).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, affine), root / role / f"case{number}.nii.gz")


def test_volumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_volumes(tmp_path)
    sheet = tmp_path / "sheet.png"
    data = facts(tmp_path, capsys, out=str(sheet))["data"][0]
    assert (data["layout"], data["images"], data["masks"], data["slices"]) == ("volumes", 3, 3, 12)
    assert data["shapes"] == {"12 x 10 x 4": 3}
    assert data["spacing"] == [
        {"least": 1.0, "most": 1.0},
        {"least": 1.0, "most": 1.0},
        {"least": 3.0, "most": 5.0},
    ]
    values = {row["value"]: (row["masks"], row["percent"]) for row in data["mask_values"]}
    assert values[205] == (3, 12.5) and values[420] == (1, round(100 / 1440, 4))
    assert data["notes"][-1].endswith("3 names and --data.mask_values 0 205 420")
    assert Image.open(sheet).mode == "RGB"


def test_volumes_that_are_broken_or_lie_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_volumes(tmp_path)
    broken = tmp_path / "images/case0.nii.gz"
    broken.write_bytes(broken.read_bytes()[:100])
    named = {"classes": ["back", "heart"], "mask_values": [0, 205]}
    config = CheckConfig(data=SourceConfig(root=[str(tmp_path)], **named))
    assert run(config) == EXIT_PARTIAL
    text = capsys.readouterr().out
    assert "volumes that cannot be read: 1" in text and "case0" not in text
    assert "spacing: 1 x 1 x 4 to 5 mm" in text and "205  heart" in text
    assert "patients in more than one split" not in text


def test_the_real_pack(shared_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shared_dir / "data/medical/cxr"
    if not root.is_dir():
        pytest.skip("no pack of radiographs")
    found = facts(root, capsys)
    data = found["data"][0]
    assert data["train_pixels"] == {"mean": 0.5311, "std": 0.2099}  # as its README says
    assert data["views"] == {"PA": 288, "AP SUPINE": 121, "AP": 90}
    assert data["patients"] == 298 and data["unreadable"] == []
    assert len(found["copies"]) == 5  # the same image of two patients
