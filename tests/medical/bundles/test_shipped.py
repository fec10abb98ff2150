"""The shipped folders are what export writes around a checkpoint of the same recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossband.medical.bundles import shipped
from crossband.medical.bundles.writing import write
from crossband.shared.bundles.folder import Bundle
from crossband.shared.bundles.running import missing_ids
from crossband.shared.bundles.safety import findings, target_problem
from crossband.shared.checkpoints import save_checkpoint
from crossband.shared.registry import create_model

# They differ with the machine that writes.
VERSIONS = ("monai_version", "pytorch_version", "numpy_version", "required_packages_version")
NAMES = ["chest_mae_vit_small_nih", "chest_mae_vit_base_nih", "lung_segmentation"]


def comparable(path: str, text: str) -> object:
    if not path.endswith(".json"):
        return text
    content = json.loads(text)
    for name in (*VERSIONS, "changelog"):
        content.pop(name, None)
    return content


def test_the_folders_are_those_of_the_recipes() -> None:
    files = shipped.files()
    assert {path.partition("/")[0] for path in files} == set(NAMES)
    there = {
        str(path.relative_to(shipped.FOLDER))
        for path in shipped.FOLDER.rglob("*")
        if path.suffix in (".json", ".md") and path.parent != shipped.FOLDER
    }
    assert there == set(files)
    for path, text in files.items():
        stored = (shipped.FOLDER / path).read_text(encoding="utf-8")
        assert comparable(path, stored) == comparable(path, text), f"{path}: run the module"


@pytest.mark.parametrize("name", NAMES)
def test_they_lack_nothing_but_weights(name: str) -> None:
    opened = Bundle.open(shipped.FOLDER / name)
    assert opened.metadata_problems() == [] and opened.findings() == []
    assert missing_ids(opened, "inference") == [] and missing_ids(opened, "train") == []
    assert opened.weights is None and opened.metadata["eval_metrics"] == {}
    assert "not a medical device" in opened.metadata["intended_use"]


def test_a_checkpoint_fills_one(tmp_path: Path) -> None:
    name = "chest_mae_vit_small_nih"
    facts = shipped.RECIPES[name].facts()
    model = create_model(facts["model"]["name"], **facts["model"]["arguments"])
    weights = save_checkpoint(tmp_path / "best.safetensors", model.state_dict(), facts)
    folder = write(weights, tmp_path / name, data_licence=shipped.RECIPES[name].data_licence)
    for path in (shipped.FOLDER / name).rglob("*.*"):
        part = str(path.relative_to(shipped.FOLDER / name))
        written = comparable(part, (folder / part).read_text(encoding="utf-8"))
        assert written == comparable(part, path.read_text(encoding="utf-8"))
    assert "NIH" in (folder / "docs/data_license.txt").read_text()
    assert Bundle.open(folder).weights is not None


def test_only_what_is_written_for_bundles_may_be_built() -> None:
    ours = "crossband.medical.bundles.transforms"
    for name in ("LoadRadiographd", "RestoreSized", "list_radiographs", "create_tuned"):
        assert target_problem(f"{ours}.{name}") is None
    for name in (
        f"{ours}._read",
        f"{ours}.LoadRadiographd.view",
        f"{ours}.read_mask",
        f"{ours}.Path",
        f"{ours}.torch.load",
        "crossband.medical.bundles.writing.write",
        "crossband.shared.files.write_text",
        "crossband.shared.checkpoints.read_pickle",
    ):
        assert target_problem(name), name
    tuned = {"_target_": f"{ours}.create_tuned", "name": "mmseg:EncoderDecoder", "tuning": {}}
    assert findings({"network_def": tuned})
    table = {"_target_": "crossband.shared.bundles.transforms.PredictionTable", "classes": ["a"]}
    assert findings({"saver": table | {"output_dir": "/etc"}})
    assert not findings({"saver": table | {"output_dir": "@output_dir"}}, given=["output_dir"])
