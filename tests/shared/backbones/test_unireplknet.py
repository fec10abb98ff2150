from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone_tester import BackboneTester
from torch import Tensor, nn

from crossband.shared.backbones.base import Backbone
from crossband.shared.backbones.unireplknet import (
    BRANCHES,
    DilatedReparamBlock,
    UniRepLKNet,
    UniRepLKNetBlock,
    UniRepLKNetClassifier,
    merge_state,
    reparameterize,
)
from crossband.shared.conformance import verify_file
from crossband.shared.errors import ConfigError

SMALL = {
    "depths": (2, 1, 2, 1),
    "dims": (8, 16, 24, 32),
    "kernel_sizes": ((3, 5), (7,), (13, 3), (9,)),
    "layer_scale_init_value": 0.5,
}


def randomise(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and GRN parameters, so that every fold matters."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("running_var"):
            tensor.data.uniform_(0.5, 2)
        elif name.endswith("se.down.bias"):
            tensor.data.fill_(0.1)  # no dead ReLU
        elif name.endswith(("running_mean", "beta", "act.1.gamma")):
            tensor.data.normal_(0, 0.3)
        elif "norm." in name or "bn" in name or "pwconv2.2" in name:
            if tensor.is_floating_point():
                tensor.data.uniform_(0.5, 1.5)
    return model


class TestUniRepLKNet(BackboneTester):
    def make(self, **arguments: Any) -> Backbone:
        return randomise(UniRepLKNet(**{**SMALL, **arguments}))


class TestUniRepLKNetMerged(BackboneTester):
    variant = True

    def make(self, **arguments: Any) -> Backbone:
        return randomise(UniRepLKNet(**{**SMALL, "deploy": True, **arguments}))


@pytest.mark.parametrize(
    "name", ["unireplk_dilated_reparam_k13", "unireplknet_small", "unireplknet_small_trainstep"]
)
def test_golden_numbers(shared_dir: Path, name: str) -> None:
    report = verify_file(shared_dir / f"fixtures/backbones/{name}.safetensors")
    assert report.passed, report


@pytest.mark.parametrize("size", sorted(BRANCHES))
def test_branches_merge_exactly(size: int) -> None:
    torch.manual_seed(size)
    block = randomise(DilatedReparamBlock(4, size)).eval().double()
    x = torch.randn(1, 4, 20, 23, dtype=torch.float64)
    expected = block(x)
    block.reparameterize()
    assert set(block.state_dict()) == {"lk_origin.weight", "lk_origin.bias"}
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)
    block.reparameterize()  # once more changes nothing
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)


def test_a_dilated_branch_alone_is_a_kernel_with_zeros() -> None:
    block = DilatedReparamBlock(1, 7, branches=((3, 2),)).eval()
    nn.init.zeros_(block.lk_origin.weight)
    merged = merge_state(block.state_dict())["lk_origin.weight"][0, 0]
    small = block.dil_conv_k3_2.weight[0, 0] / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(merged[1:6:2, 1:6:2], small.detach())
    assert merged.count_nonzero() == 9
    with pytest.raises(ConfigError, match="reaches beyond the kernel of 5"):
        DilatedReparamBlock(1, 5, branches=((3, 3),))
    with pytest.raises(ConfigError, match="no branches are published for kernels of 31"):
        DilatedReparamBlock(1, 31)


@pytest.mark.parametrize("size", [0, 3, 5, 7, 13])
def test_blocks_fold_exactly(size: int) -> None:
    torch.manual_seed(0)
    block = randomise(UniRepLKNetBlock(8, size, layer_scale_init_value=0.7)).eval().double()
    x = torch.randn(2, 8, 15, 14, dtype=torch.float64)
    expected = block(x)
    block.reparameterize()
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)
    deploy = UniRepLKNetBlock(8, size, deploy=True)
    assert {k: v.shape for k, v in block.state_dict().items()} == {
        k: v.shape for k, v in deploy.state_dict().items()
    }


def networks() -> tuple[UniRepLKNetClassifier, Tensor]:
    torch.manual_seed(0)
    model = randomise(UniRepLKNetClassifier(num_classes=10, **SMALL)).eval()
    return model, torch.randn(2, 3, 64, 80)


def test_training_and_merged_form_agree() -> None:
    model, x = networks()
    expected = model(x)
    by_function = reparameterize(copy.deepcopy(model))
    from_file = UniRepLKNetClassifier(num_classes=10, deploy=True, **SMALL).eval()
    from_file.load_state_dict(from_file.adapt_state(model.state_dict()))
    again = UniRepLKNetClassifier(num_classes=10, deploy=True, **SMALL).eval()
    again.load_state_dict(again.adapt_state(by_function.state_dict()))
    for other in (by_function, from_file, again):
        torch.testing.assert_close(other(x), expected, rtol=1e-5, atol=1e-5)


def test_timm_merges_it_too() -> None:
    import crossband.shared.compat  # noqa: F401

    from timm.utils import reparameterize_model

    model, x = networks()
    merged = reparameterize_model(model)
    assert not any("bn" in key or "beta" in key for key in merged.state_dict())
    torch.testing.assert_close(merged(x), model(x), rtol=1e-5, atol=1e-5)
    reparameterize_model(model, inplace=True)
    torch.testing.assert_close(merged(x), model(x))


def test_half_precision_weights_merge_in_double() -> None:
    model, x = networks()
    exact = merge_state(model.state_dict())
    half = merge_state({k: v.bfloat16() if v.is_floating_point() else v
                        for k, v in model.state_dict().items()})  # fmt: skip
    key = "stages.2.0.dwconv.lk_origin.weight"
    assert half[key].dtype == torch.bfloat16
    torch.testing.assert_close(half[key].float(), exact[key], rtol=0.05, atol=0.02)


def test_layers_of_the_large_sizes() -> None:
    with torch.device("meta"):
        model = UniRepLKNetClassifier()
    assert model.layer_index("downsample_layers.0.3.weight") == 0
    assert model.layer_index("stages.0.2.gamma") == 1
    assert model.layer_index("downsample_layers.2.0.weight") == 3
    assert model.layer_index("stages.2.2.gamma") == 3
    assert model.layer_index("stages.2.26.gamma") == 11
    assert model.layer_index("stages.3.0.gamma") == 12
    assert model.layer_index("head.weight") == model.layer_index("norm.weight") == 13


def test_as_many_kernels_as_blocks() -> None:
    with pytest.raises(ConfigError, match=r"\[1, 1, 2, 1\] entries for stages of \[2, 1, 2, 1\]"):
        UniRepLKNet(**{**SMALL, "kernel_sizes": ((3,), (7,), (13, 3), (9,))})
