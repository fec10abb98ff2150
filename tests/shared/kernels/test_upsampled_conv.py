from __future__ import annotations

import pytest
import torch

from crossband.shared.kernels.upsampled_conv import upsampled_conv3x3


@pytest.mark.parametrize(
    "sizes",
    [
        [(16, 16), (8, 8), (4, 4), (2, 2)],
        [(13, 20), (7, 10), (3, 5), (1, 2)],  # odd sides, as images of any size give
        [(12, 12), (12, 12), (9, 9), (4, 3)],  # maps that are not coarse enough go the plain way
    ],
)
def test_both_orders_give_the_same_values_and_gradients(sizes: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    channels = [3, 5, 2, 4]
    maps = [
        torch.randn(2, c, *s, dtype=torch.float64, requires_grad=True)
        for c, s in zip(channels, sizes, strict=True)
    ]
    weight = torch.randn(6, sum(channels), 3, 3, dtype=torch.float64, requires_grad=True)
    plain = upsampled_conv3x3(maps, weight, implementation="reference")
    other = upsampled_conv3x3(maps, weight, implementation="reordered")
    torch.testing.assert_close(other, plain, rtol=1e-10, atol=1e-10)
    seen = torch.randn_like(plain)
    wanted = torch.autograd.grad((plain * seen).sum(), [*maps, weight])
    found = torch.autograd.grad((other * seen).sum(), [*maps, weight])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_exporting_takes_the_convolution() -> None:
    class Bottleneck(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(64, 128, 3, 3))

        def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
            return upsampled_conv3x3([fine, coarse], self.weight)

    inputs = torch.randn(1, 64, 8, 8), torch.randn(1, 64, 4, 4)
    model = Bottleneck()
    program = torch.export.export(model, inputs)
    names = {str(node.target) for node in program.graph.nodes}
    assert any("conv2d" in name for name in names) and not any("matmul" in n for n in names)
    torch.testing.assert_close(program.module()(*inputs), model(*inputs), rtol=1e-4, atol=1e-4)
