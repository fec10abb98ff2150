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
    assert Image.open(sheet).mode == "L" and Image.open(sheet).size[0] == 4 * 228 - 4
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
