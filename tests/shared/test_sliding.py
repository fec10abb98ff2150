from __future__ import annotations

import pytest
import torch

from crossband.shared.errors import ConfigError
from crossband.shared.sliding import slide


def test_a_network_without_context_gives_what_it_gives_at_once() -> None:
    torch.manual_seed(0)
    image = torch.randn(3, 37, 50)
    network = torch.nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        whole = network(image[None])[0]
        found = slide(network, image, size=16, stride=11, batch=3)
    torch.testing.assert_close(found, whole)


def test_windows_at_borders_are_shifted_inwards_and_averaged() -> None:
    seen = []

    def network(windows: torch.Tensor) -> torch.Tensor:
        seen.append(windows[0, 0, 0, 0].item())
        return windows.new_full((len(windows), 1, 4, 4), float(len(seen)))

    image = torch.arange(6.0).expand(1, 4, 6)  # value = column
    found = slide(network, image, size=4, stride=3, batch=1)
    assert seen == [0.0, 2.0]  # the second starts at 2, not at 3
    assert found[0, 0].tolist() == [1.0, 1.0, 1.5, 1.5, 2.0, 2.0]


def test_small_images_are_filled_up_with_zeros() -> None:
    shapes = []

    def network(windows: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(windows.shape))
        assert windows[:, :, 5:].abs().sum() == 0
        return windows

    image = torch.ones(1, 5, 9)
    assert torch.equal(slide(network, image, size=8, stride=8), image)
    assert shapes == [(2, 1, 8, 8)]


def test_gaps_are_refused() -> None:
    with pytest.raises(ConfigError, match="between 1 and the size"):
        slide(lambda x: x, torch.zeros(1, 8, 8), size=4, stride=5)
