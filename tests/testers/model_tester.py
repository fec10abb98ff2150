"""What holds for every network: inherit, say how to make a small one and what goes in and out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class ModelTester(ABC):
    """Tests of a network that maps one batch of tensors to another.

    Attributes:
        input_shape: Of one sample.
        output_shape: Of one sample.
    """

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    @abstractmethod
    def make(self) -> nn.Module:
        """Build a small network with random weights."""

    @pytest.fixture
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make().eval()

    @pytest.fixture
    def x(self) -> Tensor:
        return torch.randn(3, *self.input_shape, generator=torch.Generator().manual_seed(1))

    def test_output(self, model: nn.Module, x: Tensor) -> None:
        y = model(x)
        assert y.shape == (3, *self.output_shape)
        assert y.isfinite().all()
        assert torch.equal(model(x), y)

    def test_gradients_reach_every_parameter(self, model: nn.Module, x: Tensor) -> None:
        model(x).square().mean().backward()
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:  # kept for the authors' keys alone
                continue
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name

    def test_same_without_gradients(self, model: nn.Module, x: Tensor) -> None:
        with torch.inference_mode():
            y = model(x)
        torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-5)

    def test_input_is_left_alone(self, model: nn.Module, x: Tensor) -> None:
        before = x.clone()
        with torch.no_grad():
            model(x)
        assert torch.equal(x, before)

    def test_samples_do_not_see_each_other(self, model: nn.Module, x: Tensor) -> None:
        one_by_one = torch.cat([model(sample[None]) for sample in x])
        torch.testing.assert_close(model(x), one_by_one, rtol=1e-4, atol=1e-5)

    def test_bfloat16(self, model: nn.Module, x: Tensor) -> None:
        with torch.no_grad():
            exact = model(x)
            y = model.to(torch.bfloat16)(x.to(torch.bfloat16))
        assert y.dtype == torch.bfloat16
        assert (y - exact).abs().max() < 0.1 * exact.abs().max()

    def test_weights_survive_a_file(self, model: nn.Module, x: Tensor, tmp_path: Path) -> None:
        save_file(model.state_dict(), tmp_path / "weights.safetensors")
        other = self.clone(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.normal_()
        other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
        assert torch.equal(other(x), model(x))

    def clone(self, model: nn.Module) -> nn.Module:
        """Return a new network of the same make as `model`."""
        return self.make().eval()

    def test_compiles_in_one_piece(self, model: nn.Module, x: Tensor) -> None:
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)

    def test_exports_for_any_batch_size(self, model: nn.Module, x: Tensor) -> None:
        batch = ({0: torch.export.Dim("batch")},)
        exported = torch.export.export(model, (x,), dynamic_shapes=batch).module()
        for samples in (x, x[:1], torch.cat([x, x])):
            torch.testing.assert_close(exported(samples), model(samples), rtol=1e-4, atol=1e-5)
