"""The commands as a user types them: help at once, and from phantoms to results."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

from crossband.medical.cli import DOMAIN, main
from crossband.medical.data.synthetic import make_synthetic

from .conftest import TINY


def test_help_of_every_verb_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom crossband.medical.cli import DOMAIN, main\n"
        "for name in DOMAIN.verbs:\n    assert main([*name.split(), '--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'monai', 'sklearn', 'pydicom', 'PIL', 'matplotlib'}\n"
        "sys.exit(str(heavy & sys.modules.keys()) if heavy & sys.modules.keys() else 0)"
    )
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for name in DOMAIN.verbs:
        assert f"crossband-medical {name}" in done.stdout or f"medical {name}" in done.stdout


def test_the_whole_road_as_typed(tmp_path: Path, monkeypatch, capsys) -> None:
    """Make data, look at it, pre-train, train, score, read studies."""
    monkeypatch.chdir(tmp_path)
    sizes = "embed_dim=24 depth=2 num_heads=2 patch_size=8"
    decoder = "decoder_embed_dim=16 decoder_depth=1 decoder_num_heads=2"
    for line in (
        "data make --out phantoms --count 24 --size 48",
        "data check --data.root phantoms",
        f"pretrain --recipe tiny --size 32 --arguments {sizes} {decoder} --data.root phantoms "
        "--trainer.max_epochs 1 --out mae",
        f"train --recipe tiny --size 32 --network.arguments {sizes} --data.root phantoms "
        "--data.val_fraction 0.3 --weights mae/best.safetensors --trainer.max_epochs 1 --out run",
        "evaluate --weights run/best.safetensors --data.root phantoms --bootstrap 50",
        "predict phantoms/images --weights run/best.safetensors --heatmaps",
    ):
        assert main(line.split()) == 0, capsys.readouterr().err
    assert len(list(csv.DictReader((tmp_path / "findings.csv").open()))) == 24
    assert (tmp_path / "run/evaluation/report.html").is_file()
    assert list((tmp_path / "findings_heatmaps").iterdir())
    printed = capsys.readouterr().out
    assert "28 tensors loaded" in printed and printed.count("not a medical device") >= 3


def test_validation_images_without_a_finding_are_seen_before_training(
    tmp_path: Path, medical, capsys
) -> None:
    root = make_synthetic(tmp_path / "few", 12, size=48)
    line = [*TINY, "--data.root", root, "--data.val_fraction", 0.1, "--out", tmp_path / "r"]
    more = ["--data.labels", "Hernia"]
    assert medical("train", *line, *more) == 2
    error = capsys.readouterr().err
    assert "both present and absent" in error and error.count("\n") == 1
    assert not (tmp_path / "r").exists()
    assert medical("train", *line, *more, "--monitor", "loss", "--dry-run") == 0
