from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from model_tester import ModelTester

from crossband.apps.low_light.model import (
    TML,
    UGDC,
    denormalise,
    fuse_for_inference,
    normalise,
)
from crossband.shared.errors import ConfigError
from crossband.shared.registry import create_model


class TestUGDC(ModelTester):
    input_shape = output_shape = (3, 80, 80)

    def make(self) -> UGDC:
        return UGDC(80, 80, 4)


class TestTML(ModelTester):
    input_shape = output_shape = (3, 80, 80)

    def make(self) -> TML:
        return TML(80, 80, 4, 2)


@pytest.mark.parametrize(
    "name, published", [("ugdc", "pm_ugdc"), ("ugdc_enhance", "em_ugdc_enhance")]
)
def test_keys_shapes_and_counts_are_the_published_ones(shared_dir, name, published) -> None:
    lines = (shared_dir / f"fixtures/apps/keys_tml_{published}.txt").read_text().splitlines()
    expected = dict(line.split("\t") for line in lines if not line.startswith("#"))
    with torch.device("meta"):
        model = create_model(name)
    assert {k: str(tuple(v.shape)) for k, v in model.state_dict().items()} == expected
    count = {"ugdc": 17_584_711, "ugdc_enhance": 4_722_983}[name]
    assert sum(p.numel() for p in model.parameters()) == count


def test_any_number_of_channels() -> None:
    model = UGDC(80, 80, 2, in_channels=1, out_channels=5).eval()
    assert model(torch.randn(1, 1, 80, 80)).shape == (1, 5, 80, 80)


def test_other_sizes() -> None:
    with pytest.raises(ConfigError, match="multiples of 80"):
        UGDC(400, 600, 4)
    assert UGDC(112, 112, 2, patch_size=7).eval()(torch.randn(1, 3, 112, 112)).shape[-1] == 112
    fixed = UGDC(80, 80, 2).eval()
    with pytest.raises(ConfigError, match="made for images of 80 x 80"):
        fixed(torch.randn(1, 3, 160, 80))
    x = torch.randn(1, 3, 80, 80)
    native = fixed(x)
    fixed.any_size = True
    assert torch.equal(fixed(x), native)  # exactly nothing changes at the native size
    assert fixed(torch.randn(1, 3, 160, 80)).shape == (1, 3, 160, 80)
    with pytest.raises(ConfigError, match="pad the image"):
        fixed(torch.randn(1, 3, 100, 80))


def test_folding_batch_norms_changes_nothing() -> None:
    torch.manual_seed(0)
    model = TML(80, 80, 4, 3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    model.eval()
    x = torch.rand(1, 3, 80, 80)
    fused = fuse_for_inference(copy.deepcopy(model))
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules()) == 8  # after GDC
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)


def test_the_second_network_is_subtracted_and_may_be_left_out() -> None:
    torch.manual_seed(0)
    model = TML(80, 80, 2, 2).eval()
    x = torch.rand(1, 3, 80, 80)
    coarse = model.pm(normalise(x))
    torch.testing.assert_close(model(x), denormalise(coarse - model.em(coarse)))
    alone = TML(80, 80, 2, 0).eval()
    alone.pm.load_state_dict(model.pm.state_dict())
    torch.testing.assert_close(alone(x), denormalise(coarse))


def test_normalising_there_and_back() -> None:
    x = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(denormalise(normalise(x)), x)
    assert abs(float(normalise(torch.full((1, 3, 1, 1), 0.485))[0, 0])) < 1e-6


def test_golden_numbers_are_seen_by_verify(shared_dir: Path) -> None:
    from crossband.shared.conformance import verify

    folder = shared_dir / "fixtures/apps"
    reports = verify([*folder.glob("tml_*.safetensors"), *folder.glob("baseline_*.safetensors")])
    assert len(reports) == 4
    for report in reports:
        assert report.passed, report
