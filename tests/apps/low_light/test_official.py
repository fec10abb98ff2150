from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from crossband.apps.low_light.baselines import official as rivals
from crossband.apps.low_light.model import TML, UGDC
from crossband.apps.low_light.official import from_official, network_part, to_official
from crossband.apps.main import main
from crossband.shared import load
from crossband.shared.registry import create_model


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, TML]:
    """The authors' two files: a state dict of DataParallel inside a dictionary."""
    torch.manual_seed(0)
    pair = TML(80, 160, 4, 3).eval()
    paths = []
    for name, network in (("Pred", pair.pm), ("Enhance", pair.em)):
        path = tmp_path / f"{name}.pth.tar"
        torch.save({"epoch": 3, "state_dict": to_official(network.state_dict())}, path)
        paths.append(path)
    return paths[0], paths[1], pair


def test_keys_there_and_back() -> None:
    state = UGDC(80, 80, 2).state_dict()
    theirs = to_official(state)
    assert all(key.startswith("module.") for key in theirs)
    assert from_official(theirs).keys() == state.keys()
    assert network_part({f"pm.{k}": v for k, v in state.items()}, "pm").keys() == state.keys()


def test_pack_joins_the_authors_files(files, tmp_path: Path, capsys) -> None:
    predictor, enhancer, pair = files
    out = tmp_path / "tml.safetensors"
    words = ["--out", str(out), "--size", "80", "160"]
    assert main(["low-light", "pack", str(predictor), str(enhancer), *words]) == 0
    assert "stem 4, EM with stem 3" in capsys.readouterr().out
    loaded = load(out)
    image = torch.rand(1, 3, 80, 160)
    with torch.no_grad():
        torch.testing.assert_close(loaded.run(image), pair(image), rtol=1e-4, atol=1e-4)


def test_pack_names_what_does_not_fit(files, tmp_path: Path, capsys) -> None:
    predictor, enhancer, _ = files
    out = tmp_path / "x.safetensors"
    words = ["low-light", "pack", str(predictor), str(enhancer), "--out", str(out)]
    assert main(words) == 2  # the published size is 400 x 640
    assert "does not fit" in capsys.readouterr().err
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "foreign.pth")
    assert main(["low-light", "pack", str(tmp_path / "foreign.pth"), "--out", str(out)]) == 2
    assert "holds no UGDC" in capsys.readouterr().err
    assert not out.exists()


def test_convert_takes_one_of_them(files, tmp_path: Path, capsys) -> None:
    predictor, _, pair = files
    out = tmp_path / "pm.safetensors"
    words = ["models", "convert", str(predictor), str(out), "--model", "ugdc"]
    assert main([*words, "--arguments", "stem=4", "height=80", "width=160", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert not report["missing"] and not report["unexpected"]
    image = torch.rand(1, 3, 80, 160)
    with torch.no_grad():
        expected = TML(80, 160, 4, 0).eval()
        expected.pm.load_state_dict(pair.pm.state_dict())
        torch.testing.assert_close(load(out).run(image), expected(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["zero_dce_epoch99", "sci_easy_enhance", "sci_difficult_enhance"])
def test_rivals_files_load_and_survive_a_round_trip(shared_dir: Path, name: str) -> None:
    from safetensors.torch import load_file

    path = shared_dir / f"data/lowlight/baselines/{name}.safetensors"
    model = create_model("sci" if name.startswith("sci") else "zero_dce", weights=path)
    theirs = load_file(path)
    back = rivals.to_official(model.state_dict())
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)
    count = sum(p.numel() for p in model.parameters())
    assert count == (258 if name.startswith("sci") else 79_416)
