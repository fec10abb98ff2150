from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from crossband.apps.low_light.data.dimming import (
    CAMERAS,
    Camera,
    dim,
    from_linear,
    get_camera,
    to_linear,
)
from crossband.shared.errors import ConfigError

STILL = Camera(
    stops=(0.0, 0.0),
    unevenness=(0.0, 0.0),
    backlight=(0.0, 0.0),
    shot=(1e-9, 1e-9),
    read=(1e-9, 1e-9),
    bits=(16,),
    cast=(0.0, 0.0),
    tone=(1.0, 1.0),
    jpeg=(100, 100),
    untouched=0.0,
)


def photographs(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 24, 32, generator=torch.Generator().manual_seed(0))


def draw(camera: Camera, image: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return dim(image, camera, torch.Generator().manual_seed(seed))


def test_the_transfer_function_is_srgbs() -> None:
    image = torch.linspace(0, 1, 256)
    torch.testing.assert_close(from_linear(to_linear(image)), image, rtol=1e-5, atol=1e-6)
    assert float(to_linear(torch.tensor(0.5))) == pytest.approx(0.21404, abs=1e-5)
    assert float(from_linear(torch.tensor(0.0031308))) == pytest.approx(0.04045, abs=1e-4)


def test_a_perfect_camera_in_full_light_changes_nothing() -> None:
    image = (photographs() * 255).round() / 255
    assert (draw(STILL, image) - image).abs().max() <= 1 / 255 + 1e-6


def test_a_stop_halves_the_light() -> None:
    image = photographs()
    for stops in (1, 3):
        dark = draw(replace(STILL, stops=(stops, stops)), image)
        ratio = to_linear(dark).mean() / to_linear(image).mean()
        assert float(ratio) == pytest.approx(2.0**-stops, rel=0.03)


def test_noise_has_the_variance_of_photons_and_electronics() -> None:
    grey = torch.full((1, 3, 256, 256), 0.7)
    level = float(to_linear(torch.tensor(0.7)))
    neutral = replace(STILL, red=(1.0, 1.0), blue=(1.0, 1.0))
    for shot, read in ((1e-3, 1e-9), (1e-9, 0.02)):
        noisy = to_linear(draw(replace(neutral, shot=(shot, shot), read=(read, read)), grey))
        assert float(noisy.var()) == pytest.approx(shot * level + read**2, rel=0.05)


def test_few_bits_leave_few_levels() -> None:
    ramp = torch.linspace(0, 1, 256).expand(1, 3, 8, 256)
    neutral = replace(STILL, red=(1.0, 1.0), blue=(1.0, 1.0), bits=(4,))
    assert len(draw(neutral, ramp).unique()) == 16


def test_a_cast_tints_grey_and_a_tone_darkens_the_middle() -> None:
    grey = torch.full((1, 3, 8, 8), 0.5)
    tinted = draw(replace(STILL, cast=(0.2, 0.2)), grey).mean((0, 2, 3))
    assert float(tinted.max() - tinted.min()) > 0.02
    assert float(draw(replace(STILL, tone=(1.5, 1.5)), grey).mean()) == pytest.approx(
        0.5**1.5, abs=0.01
    )


def test_uneven_light_and_backlight() -> None:
    half = torch.cat([torch.full((1, 3, 64, 32), 0.2), torch.full((1, 3, 64, 32), 0.9)], dim=3)
    uneven = draw(replace(STILL, unevenness=(3.0, 3.0)), torch.full((1, 3, 64, 64), 0.9))
    assert float(uneven.max() - uneven.min()) > 0.4
    against_sun = draw(replace(STILL, backlight=(2.0, 2.0)), half)
    assert float(against_sun[..., 60:].mean()) == pytest.approx(0.9, abs=0.03)
    assert float(against_sun[..., :8].mean()) < 0.13


def test_jpeg_is_written_and_every_value_is_a_byte() -> None:
    image = photographs()
    plain, packed = draw(STILL, image), draw(replace(STILL, jpeg=(50, 50)), image)
    for dark in (plain, packed):
        assert torch.allclose(dark * 255, (dark * 255).round(), atol=1e-3)
        assert float(dark.min()) >= 0 and float(dark.max()) <= 1
    assert (plain - packed).abs().mean() > 0.01


@pytest.mark.parametrize("name", CAMERAS)
def test_draws_repeat_by_seed_and_differ_between_images(name: str) -> None:
    same = photographs(1).expand(8, -1, -1, -1)
    first, again, other = (draw(CAMERAS[name], same, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({round(float(x.mean()), 4) for x in first}) > 1
    assert torch.isfinite(first).all()


def test_some_photographs_are_left_alone() -> None:
    image = photographs(200)
    left = (draw(replace(CAMERAS["training"], untouched=0.5), image) == image).flatten(1).all(1)
    assert 60 < int(left.sum()) < 140


def test_test_cameras_lie_outside_what_is_trained_on() -> None:
    training = CAMERAS["training"]
    for name in ("phone", "night", "lamp"):
        camera = CAMERAS[name]
        outside = [
            field
            for field in ("stops", "unevenness", "shot", "read", "red", "blue", "cast", "tone")
            if getattr(camera, field)[0] > getattr(training, field)[1]
            or getattr(camera, field)[1] < getattr(training, field)[0]
        ]
        assert len(outside) >= 3, (name, outside)


def test_unknown_cameras_are_named() -> None:
    with pytest.raises(ConfigError, match="'phone'"):
        get_camera("fone")
