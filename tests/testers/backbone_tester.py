"""What holds for every pyramid backbone: inherit and say how to make a small one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crossband.shared.backbones.base import Backbone
from crossband.shared.errors import ConfigError


class BackboneTester(ABC):
    """Tests of a network that maps an image to a list of maps.

    Attributes:
        image_size: (H, W) of the image most tests use.
        round_side: How the side of a map is rounded.
        too_small: (H, W) of an image that is refused; None if all are taken.
        onnx: Whether the network can be exported to ONNX.
        variant: Another form of a network that is tested fully; long compilations are left out.
    """

    image_size = (64, 96)
    round_side = staticmethod(math.ceil)
    too_small: tuple[int, int] | None = None
    onnx = True
    variant = False

    @abstractmethod
    def make(self, **arguments: Any) -> Backbone:
        """Build a small network with random weights whose blocks matter."""

    @pytest.fixture
    def model(self) -> Backbone:
        torch.manual_seed(0)
        return self.make().eval()

    @pytest.fixture
    def x(self) -> Tensor:
        return self.image(2, *self.image_size)

    def image(self, batch: int, height: int, width: int, channels: int = 3) -> Tensor:
        return torch.randn(batch, channels, height, width, generator=torch.manual_seed(1))

    def check(self, model: Backbone, x: Tensor) -> list[Tensor]:
        maps = model(x)
        assert len(maps) == len(model.out_channels) == len(model.strides)
        for y, channels, stride in zip(maps, model.out_channels, model.strides, strict=True):
            sides = [self.round_side(side / stride) for side in x.shape[-2:]]
            assert list(y.shape) == [len(x), channels, *sides]
            assert y.isfinite().all()
        return maps

    def test_pyramid(self, model: Backbone, x: Tensor) -> None:
        assert isinstance(model, Backbone)
        assert model.strides == [4, 8, 16, 32]
        assert model.out_channels == sorted(model.out_channels)
        first, again = self.check(model, x), model(x)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    @pytest.mark.parametrize("size", [(32, 32), (65, 70), (47, 101)])
    def test_any_size(self, model: Backbone, size: tuple[int, int]) -> None:
        self.check(model, self.image(1, *size))

    def test_too_small_an_image_is_refused(self, model: Backbone) -> None:
        if self.too_small is None:
            self.check(model, self.image(1, 1, 1))
            return
        height, width = self.too_small
        with pytest.raises(ConfigError, match=f"got an image of {height} x {width}.*at least"):
            model(self.image(1, height, width))

    @pytest.mark.parametrize("channels", [1, 5])
    def test_any_number_of_input_channels(self, channels: int) -> None:
        self.check(self.make(in_chans=channels), self.image(1, 64, 64, channels))

    @pytest.mark.parametrize("indices", [(1, 3), (0,), (-3, -1)])
    def test_out_indices(self, model: Backbone, x: Tensor, indices: tuple[int, ...]) -> None:
        chosen = self.make(out_indices=indices).eval()
        chosen.load_state_dict({k: model.state_dict()[k] for k in chosen.state_dict()})
        all_maps = model(x)
        for index, y in zip(indices, self.check(chosen, x), strict=True):
            assert torch.equal(y, all_maps[index])
        self.check_gradients(chosen, x)  # nothing is kept that is not used

    def test_stages_that_do_not_exist(self) -> None:
        with pytest.raises(ConfigError, match="out_indices .* name no stage of a network that has"):
            self.make(out_indices=(4,))

    def test_gradients_reach_every_parameter(self, model: Backbone, x: Tensor) -> None:
        self.check_gradients(model.train(), x)

    def check_gradients(self, model: nn.Module, x: Tensor) -> None:
        self.loss(model(x)).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name

    def loss(self, maps: list[Tensor]) -> Tensor:
        weights = torch.Generator().manual_seed(2)
        return sum((y * torch.randn(y.shape, generator=weights)).square().mean() for y in maps)

    def test_checkpointing_changes_nothing(self, x: Tensor) -> None:
        gradients = []
        for enable in (False, True):
            torch.manual_seed(0)
            model = self.make(drop_path_rate=0.5).train()
            model.set_grad_checkpointing(enable)
            torch.manual_seed(3)
            self.loss(model(x)).backward()
            gradients.append([p.grad for p in model.parameters()])
        for plain, checkpointed in zip(*gradients, strict=True):
            torch.testing.assert_close(plain, checkpointed, rtol=1e-4, atol=1e-6)

    def test_drop_path_leaves_blocks_out_in_training_only(self, x: Tensor) -> None:
        torch.manual_seed(0)
        model, plain = self.make(drop_path_rate=0.9), self.make()
        plain.load_state_dict(model.state_dict())
        assert torch.equal(model.eval()(x)[-1], plain.eval()(x)[-1])
        torch.manual_seed(0)
        assert not torch.allclose(model.train()(x)[-1], plain.train()(x)[-1])

    def test_channels_last(self, model: Backbone, x: Tensor) -> None:
        before = model(x)
        after = model.to(memory_format=torch.channels_last)(
            x.contiguous(memory_format=torch.channels_last)
        )
        for a, b in zip(before, after, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    def test_samples_do_not_see_each_other(self, model: Backbone, x: Tensor) -> None:
        for y, first in zip(model(x), model(x[:1]), strict=True):
            torch.testing.assert_close(y[:1], first, rtol=1e-4, atol=1e-5)

    def test_same_without_gradients(self, model: Backbone, x: Tensor) -> None:
        before = x.clone()
        with torch.inference_mode():
            fast = model(x)
        for a, b in zip(fast, model(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert torch.equal(x, before)

    def test_bfloat16(self, model: Backbone, x: Tensor) -> None:
        with torch.no_grad():
            exact = model(x)
            with torch.autocast("cpu", torch.bfloat16):
                mixed = model(x)
            half = model.to(torch.bfloat16)(x.to(torch.bfloat16))
        for a, b, c in zip(exact, mixed, half, strict=True):
            assert c.dtype == torch.bfloat16
            for y in (b, c):
                assert y.isfinite().all()
                assert (y - a).abs().mean() < 0.1 * a.abs().mean()

    def test_weights_survive_a_file(self, model: Backbone, x: Tensor, tmp_path: Path) -> None:
        state = {k: v.contiguous() for k, v in model.state_dict().items()}
        save_file(state, tmp_path / "weights.safetensors")
        torch.manual_seed(7)
        other = self.make().eval()
        other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
        assert all(torch.equal(a, b) for a, b in zip(model(x), other(x), strict=True))

    def test_one_seed_gives_one_network(self) -> None:
        states = []
        for _ in range(2):
            torch.manual_seed(5)
            states.append(self.make().state_dict())
        assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])

    def test_compiles_in_one_piece(self, model: Backbone, x: Tensor) -> None:
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        for a, b in zip(compiled(x), model(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    def test_exports_for_any_batch_size(self, model: Backbone, x: Tensor) -> None:
        batch = ({0: torch.export.Dim("batch")},)
        exported = torch.export.export(model, (x,), dynamic_shapes=batch).module()
        for samples in (x, x[:1], torch.cat([x, x])):
            for a, b in zip(exported(samples), model(samples), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    def test_layers_for_layer_wise_rates(self, model: Backbone) -> None:
        layers = [model.layer_index(name) for name, _ in model.named_parameters()]
        assert sorted(set(layers)) == list(range(max(layers) + 1))
        assert model.layer_index(f"{model.first_conv}.weight") == 0

    def first_stage(self) -> Backbone:
        if self.variant:
            pytest.skip("compiled in the form that is tested fully")
        torch._dynamo.reset()
        torch.manual_seed(0)
        return self.make(out_indices=(0,)).eval()

    @pytest.mark.slow
    def test_one_graph_takes_changing_sizes(self) -> None:
        model = self.first_stage()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        for size in ((64, 96), (65, 70), (96, 64)):
            x = self.image(2, *size)
            torch.testing.assert_close(compiled(x)[0], model(x)[0], rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    def test_inductor(self, x: Tensor) -> None:
        model = self.first_stage()
        with torch.no_grad():
            found = torch.compile(model)(x)[0]
            torch.testing.assert_close(found, model(x)[0], rtol=1e-3, atol=1e-4)

    @pytest.mark.slow
    def test_onnx(self, model: Backbone, x: Tensor, tmp_path: Path) -> None:
        if not self.onnx:
            pytest.skip("its Fourier transforms are no ONNX operators of the exporter")
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        path = tmp_path / "model.onnx"
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        for a, b in zip(found, model(x), strict=True):
            np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-3, atol=1e-4)
