from __future__ import annotations

import pytest
import torch

pytest.importorskip("monai", reason="MONAI is not installed: pip install 'crossband[medical]'")

from monai.networks.nets import FlexibleUNet

from crossband.shared import create_model
from crossband.shared.errors import ConfigError
from crossband.shared.plugins.monai import CrossbandEncoder, _channels, _names, pyramid
from crossband.shared.registry import get_entry


def encoder(name: str, channels: int = 1) -> CrossbandEncoder:
    torch.manual_seed(0)
    return CrossbandEncoder(name, in_channels=channels).eval()


def test_every_backbone_has_the_channels_that_are_told_without_building_it() -> None:
    for name, told in zip(
        CrossbandEncoder.get_encoder_names(),
        CrossbandEncoder.num_channels_per_output(),
        strict=True,
    ):
        entry = name.removeprefix("crossband_")
        parameters = next(
            p for n, p in zip(_names(), CrossbandEncoder.get_encoder_parameters(), strict=True)
            if n == entry
        )  # fmt: skip
        with torch.device("meta"):
            model = pyramid(parameters["name"])
        assert model.strides == [4, 8, 16, 32], name
        assert tuple(model.out_channels) == told[1:] == _channels(get_entry(parameters["name"]))


@pytest.mark.parametrize("size", [(64, 64), (72, 72), (70, 98), (64, 160)])
@pytest.mark.parametrize("name", ["unireplknet_a", "vit_tiny_patch16"])
def test_a_unet_gives_logits_of_the_images_size(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = FlexibleUNet(1, 3, backbone=f"crossband_{name}").eval()
    y = model(torch.randn(2, 1, *size))
    assert y.shape == (2, 3, *size) and y.isfinite().all()


def test_maps_halve_and_are_those_of_the_backbone() -> None:
    model = encoder("unireplknet_a")
    x = torch.randn(1, 1, 96, 64)
    maps = model(x)
    assert [tuple(y.shape[-2:]) for y in maps] == [(48, 32), (24, 16), (12, 8), (6, 4), (3, 2)]
    plain = create_model("unireplknet_a", features_only=True, in_chans=1).eval()
    plain.load_state_dict(model.backbone.state_dict())
    for a, b in zip(maps[1:], plain(x), strict=True):
        assert torch.equal(a, b)


def test_a_unet_learns() -> None:
    torch.manual_seed(0)
    model = FlexibleUNet(1, 2, backbone="crossband_unireplknet_a")
    x = torch.randn(4, 1, 64, 64)
    y = (torch.nn.functional.avg_pool2d(x, 9, 1, 4)[:, 0] > 0).long()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_aliases_and_the_registry() -> None:
    assert "crossband_hornet_tiny" in CrossbandEncoder.get_encoder_names()
    model = create_model("monai:UNet", spatial_dims=2, in_channels=1, out_channels=2,
                         channels=[4, 8], strides=[2])  # fmt: skip
    assert type(model).__name__ == "UNet"
    with pytest.raises(ConfigError, match="no network 'UNetz'. Did you mean"):
        create_model("monai:UNetz")
    with pytest.raises(ConfigError, match="cannot be built so"):
        create_model("monai:UNet", spatial_dims=2)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="spatial_dims must be 2"):
        FlexibleUNet(1, 2, backbone="crossband_unireplknet_a", spatial_dims=3)
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        FlexibleUNet(1, 2, backbone="crossband_unireplknet_a", pretrained=True)
