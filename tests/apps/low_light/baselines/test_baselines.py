from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from model_tester import ModelTester
from PIL import Image

from crossband.apps.low_light.baselines import create_rival
from crossband.apps.low_light.baselines.sci import SCI
from crossband.apps.low_light.baselines.zero_dce import ZeroDCE
from crossband.apps.low_light.niqe import NaturalModel, niqe
from crossband.shared.errors import CheckpointError, ConfigError


class PhotographTester(ModelTester):
    """Networks whose input is a photograph in [0, 1]."""

    input_shape = output_shape = (3, 24, 33)

    @pytest.fixture
    def x(self) -> torch.Tensor:
        return torch.rand(3, *self.input_shape, generator=torch.Generator().manual_seed(1))


class TestZeroDCE(PhotographTester):
    def make(self) -> ZeroDCE:
        return ZeroDCE(8)


class TestSCI(PhotographTester):
    def make(self) -> SCI:
        return SCI()


def test_curves_do_what_they_say() -> None:
    dark = torch.rand(2, 3, 40, 40) * 0.2
    assert torch.equal(create_rival("input").run(dark), dark)
    torch.testing.assert_close(create_rival("gamma").run(dark), dark ** (1 / 2.2))
    levels = create_rival("auto_gamma").run(dark).mean((1, 2, 3))
    assert ((levels - 0.45).abs() < 0.1).all()
    bright = torch.rand(1, 3, 8, 8) * 0.2 + 0.8
    torch.testing.assert_close(create_rival("auto_gamma").run(bright), bright)  # never darker
    equalised = create_rival("clahe").run(dark)
    assert equalised.shape == dark.shape and float(equalised.std()) > float(dark.std())


def test_wrong_names_and_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'clahe'"):
        create_rival("clae")
    with pytest.raises(ConfigError, match="authors' weights"):
        create_rival("sci")
    with pytest.raises(ConfigError, match="no weights"):
        create_rival("gamma", tmp_path / "x")
    with pytest.raises(CheckpointError, match="does not exist"):
        create_rival("sci", tmp_path / "x.pt")


@pytest.mark.parametrize(
    "name, file",
    [
        ("zero_dce", "zero_dce_epoch99"),
        ("sci", "sci_easy_enhance"),
        ("sci", "sci_medium_enhance"),
        ("sci", "sci_difficult_enhance"),
    ],
)
def test_official_weights_give_the_recorded_levels_and_niqe(shared_dir, name, file) -> None:
    """On a real photograph: `iqa_golden.json` holds what the authors' code gave."""
    folder = shared_dir / "data/lowlight"
    golden = json.loads((shared_dir / "fixtures/apps/iqa_golden.json").read_text())
    photo = "lowlight/lime/6.png"
    key = name if name == "zero_dce" else file.removesuffix("_enhance")
    wanted = golden["baselines"][photo][key]
    pixels = np.asarray(Image.open(folder.parent / photo).convert("RGB")).copy()
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    rival = create_rival(name, folder / f"baselines/{file}.safetensors")
    found = rival.run(image).clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255
    natural = NaturalModel.load(folder / "niqe_pris_params.npz")
    scores = [
        (f(found).astype(np.uint8).mean(), niqe(f(found).astype(np.uint8), natural))
        for f in (np.round, np.floor)
    ]
    assert any(
        mean == pytest.approx(wanted["mean"], abs=0.02)
        and score == pytest.approx(wanted["niqe_y"], abs=2e-3)
        for mean, score in scores
    ), (scores, wanted)
