from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from crossband.shared.checkpoints import load_checkpoint, read_state_dict
from crossband.shared.cli.main import run_domain
from crossband.shared.cli.models import MODELS
from crossband.shared.registry import create_model

pytestmark = pytest.mark.usefixtures("toy_domain")
Capture = pytest.CaptureFixture[str]


def models(*words: str) -> int:
    return run_domain(MODELS, words)


def test_list_as_table_and_json(capsys: Capture) -> None:
    assert models("list", "toy*") == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "toy        toying  any    Apache-2.0",
        "toy_small  toying  3x4    Apache-2.0",
    ]
    assert models("list", "toy*small", "--json") == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["arguments"] == {"width": 4, "depth": 2}
    assert models("list", "toi*") == 2
    assert "no model is called 'toi*'. Did you mean 'toy'" in capsys.readouterr().err


def test_info_of_a_model(capsys: Capture) -> None:
    assert models("info", "toy_small", "--json") == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 32
    assert models("info", "toy", "--arguments", "width=1000") == 0
    assert "1,000,000" in capsys.readouterr().out
    assert models("info", "toy_smal") == 2


def test_convert_there_and_back(tmp_path: Path, capsys: Capture) -> None:
    source, ours, back = (tmp_path / n for n in ("a.pth", "b.safetensors", "c.pth"))
    official = {f"module.{k}": v for k, v in create_model("toy", width=3).state_dict().items()}
    torch.save(official, source)
    words = ["convert", str(source), str(ours), "--model", "toy", "--arguments", "width=3"]
    assert models(*words) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["matched: 1", "other shape: 0"]
    assert load_checkpoint(ours).config["model"] == {"name": "toy", "arguments": {"width": 3}}
    assert models("info", str(ours)) == 0
    assert "width" in capsys.readouterr().out
    assert models("convert", str(ours), str(back), "--to", "official") == 0
    returned, _ = read_state_dict(back)
    assert returned.keys() == official.keys()
    assert all(torch.equal(returned[k], official[k]) for k in official)


def test_convert_refuses_what_does_not_fit(tmp_path: Path, capsys: Capture) -> None:
    source, out = tmp_path / "a.pth", tmp_path / "b.safetensors"
    state = {"layers.0.weight": torch.zeros(2, 2), "extra": torch.zeros(1)}
    torch.save(state, source)
    words = ["convert", str(source), str(out), "--model", "toy", "--arguments"]
    assert models(*words, "width=3", "depth=2", "--json") == 2
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {
        "written": None,
        "matched": [],
        "other_shape": ["layers.0.weight: file 2x2, model 3x3"],
        "missing": ["layers.1.weight"],
        "unexpected": ["extra"],
    }
    assert "does not fit toy, nothing was written" in shown.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["a.pth", "b.safetensors"], "--model is missing"),
        (["a.pth", "b.pth", "--model", "toy"], "ends in .safetensors"),
        (["a.pth", "b.safetensors", "--model", "toy"], "a.pth does not exist"),
        (["a.safetensors", "b.pth", "--to", "official"], "a.safetensors does not exist"),
    ],
)
def test_convert_says_what_is_wrong(
    words: list[str], part: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert models("convert", *words) == 2
    assert part in capsys.readouterr().err


def test_bench_interleaves_models_and_batches(capsys: Capture) -> None:
    assert models("bench", "toy_small", "--batch", "1", "2", "--repeats", "2", "--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert [(r["name"], r["batch"], r["parameters"]) for r in results] == [
        ("toy_small", 1, 32),
        ("toy_small", 2, 32),
    ]
    assert all(r["training_milliseconds"] > 0 and r["rounds"] == 2 for r in results)
    words = ["bench", "toy", "--shape", "5", "--arguments", "width=5", "--training", "false"]
    assert models(*words, "--repeats", "1") == 0
    assert "toy    5          1" in capsys.readouterr().out
    assert models("bench", "toy") == 2
    assert "takes any size" in capsys.readouterr().err


def test_bench_at_several_image_sizes(capsys: Capture) -> None:
    words = [
        "bench",
        "timm:vit_tiny_patch16_224",
        "unireplknet_a",
        "--size",
        "64",
        "128",
        "--repeats",
        "1",
    ]
    assert models(*words) == 2
    assert "timm:vit_tiny_patch16_224 cannot take an input of 3x64x64" in capsys.readouterr().err
    words[1] = "timm:test_convnext"
    assert models(*words, "--arguments", "in_chans=1", "--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert [(r["name"], r["shape"]) for r in results] == [
        ("timm:test_convnext", [1, 64, 64]),
        ("timm:test_convnext", [1, 128, 128]),
        ("unireplknet_a", [1, 64, 64]),
        ("unireplknet_a", [1, 128, 128]),
    ]
    assert results[3]["gigaflops"] == pytest.approx(4 * results[2]["gigaflops"], rel=0.01)
    assert models("bench", "toy_small", "--size", "32") == 2
    assert "toy_small takes 3x4, not an image: give --shape" in capsys.readouterr().err
    assert models("bench", "toy_small", "--size", "3", "--shape", "3", "4") == 2
    assert "two ways to say one thing" in capsys.readouterr().err
