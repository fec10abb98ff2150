"""A camera in the dark: what a photograph would have looked like with too little light.

The photograph is brought back to linear light, its white balance is undone, less light falls on
the sensor, photons and electronics add noise, the converter rounds, and the camera develops it:
white balance (not quite right), tone curve, 8 bits, perhaps JPEG.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from crossband.shared.errors import ConfigError, did_you_mean

Range = tuple[float, float]


@dataclass(frozen=True)
class Camera:
    """Ranges from which every photograph draws its own values, uniformly unless said.

    Attributes:
        stops: Light missing where the scene is brightest, in stops (factors of two).
        unevenness: Stops between the brightest and darkest place of the scene's light.
        backlight: Further stops that the dark regions of the scene lack, as against the sun.
        shot: Variance of photon noise over signal, white being 1; drawn in the logarithm.
        read: Deviation of the electronics' noise; drawn in the logarithm.
        bits: Of the converter.
        red: Gain of the red channel against green that the light asked for.
        blue: Of the blue channel.
        cast: Error of the camera's white balance, natural logarithm, per channel.
        tone: Exponent on top of sRGB's curve; above 1 darkens the middle.
        jpeg: Quality of the file; (100, 100) writes none.
        untouched: Part of the photographs that is left as it is.
    """

    stops: Range = (0.0, 5.0)
    unevenness: Range = (0.0, 2.5)
    backlight: Range = (0.0, 2.5)
    shot: Range = (1e-4, 3e-3)
    read: Range = (2e-4, 3e-3)
    bits: tuple[int, ...] = (10, 12, 14)
    red: Range = (1.4, 2.2)
    blue: Range = (1.3, 2.0)
    cast: Range = (-0.06, 0.06)
    tone: Range = (0.9, 1.25)
    jpeg: Range = (80, 100)
    untouched: float = 0.05


# `training` is what recipes learn from. The others lie outside its ranges, to test with: more
# noise than it ever saw, less light, another tone curve and a wrong white balance.
CAMERAS = {
    "training": Camera(),
    "phone": Camera(
        stops=(2.0, 4.0),
        shot=(4e-3, 8e-3),
        read=(3.5e-3, 6e-3),
        bits=(9,),
        tone=(0.75, 0.88),
        jpeg=(65, 78),
        untouched=0.0,
    ),
    "night": Camera(
        stops=(5.2, 6.0),
        unevenness=(2.6, 3.2),
        shot=(3e-5, 9e-5),
        read=(5e-5, 1.8e-4),
        bits=(16,),
        untouched=0.0,
    ),
    "lamp": Camera(
        stops=(2.0, 3.5),
        red=(1.0, 1.3),
        blue=(2.2, 3.0),
        cast=(0.08, 0.14),
        tone=(1.3, 1.5),
        untouched=0.0,
    ),
}


def get_camera(name: str) -> Camera:
    """Return a camera by name.

    Raises:
        ConfigError: unknown name.
    """
    if name not in CAMERAS:
        hint = did_you_mean(name, CAMERAS) or f" There are: {', '.join(CAMERAS)}."
        raise ConfigError(f"There is no camera {name!r}.{hint}")
    return CAMERAS[name]


def dim(image: Tensor, camera: Camera, generator: torch.Generator | None = None) -> Tensor:
    """Photograph scenes again with too little light.

    Args:
        image: sRGB (B, 3, H, W) in [0, 1].
        camera: What to draw from; every image of the batch draws for itself.
        generator: Of the random draws; None takes PyTorch's own.

    Returns:
        sRGB (B, 3, H, W) in [0, 1], in steps of 1/255.
    """
    draw = _Draw(len(image), image, generator)
    gains = torch.stack([draw(camera.red), draw((1.0, 1.0)), draw(camera.blue)], dim=1)
    gains = gains[..., None, None]
    light = torch.exp2(-draw(camera.stops))[:, None, None, None] * _scene_light(image, camera, draw)
    raw = to_linear(image) / gains * light
    shot = draw.log(camera.shot)[:, None, None, None]
    read = draw.log(camera.read)[:, None, None, None]
    raw = torch.poisson(raw / shot, generator) * shot + read * draw.normal(raw.shape)
    steps = 2.0 ** draw.choice(camera.bits)[:, None, None, None] - 1
    raw = (raw * steps).round() / steps
    low, high = camera.cast
    sign = torch.stack([draw.sign(), torch.zeros_like(draw.sign()), draw.sign()], dim=1)
    size = torch.stack([draw((low, high)) for _ in range(3)], dim=1)
    cast = torch.exp(sign * size)[..., None, None]
    tone = draw(camera.tone)[:, None, None, None]
    dark = from_linear((raw * gains * cast).clamp(0, 1)) ** tone
    dark = (dark * 255).round() / 255
    if camera.jpeg[0] < 100:
        qualities = draw(camera.jpeg).round().int().tolist()
        dark = torch.stack([_jpeg(d, q) for d, q in zip(dark, qualities, strict=True)])
    untouched = draw((0.0, 1.0)) < camera.untouched
    return torch.where(untouched[:, None, None, None], image, dark)


def to_linear(image: Tensor) -> Tensor:
    """Undo sRGB's transfer function (IEC 61966-2-1)."""
    return torch.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)


def from_linear(light: Tensor) -> Tensor:
    """Apply sRGB's transfer function."""
    curve = 1.055 * light.clamp(min=1e-8) ** (1 / 2.4) - 0.055
    return torch.where(light <= 0.0031308, light * 12.92, curve)


def without_files(camera: Camera) -> Camera:
    """Return the same camera writing no JPEG."""
    return replace(camera, jpeg=(100, 100))


def _scene_light(image: Tensor, camera: Camera, draw: _Draw) -> Tensor:
    """Return a smooth field of light (B, 1, H, W), 1 where it is brightest."""
    batch, _, height, width = image.shape
    coarse = draw.normal((batch, 1, 4, 4))
    field = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    regions = F.adaptive_avg_pool2d(image.mean(1, keepdim=True), (8, 8))
    regions = F.interpolate(regions, (height, width), mode="bilinear", align_corners=False)
    stops = _below_maximum(field) * _per_image(draw(camera.unevenness))
    stops = stops + _below_maximum(regions) * _per_image(draw(camera.backlight))
    return torch.exp2(stops)


def _below_maximum(field: Tensor) -> Tensor:
    """Bring every image's field (B, 1, H, W) to [-1, 0]."""
    low, high = field.amin((2, 3), keepdim=True), field.amax((2, 3), keepdim=True)
    return (field - high) / (high - low).clamp(min=1e-6)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _jpeg(image: Tensor, quality: int) -> Tensor:
    """Write (3, H, W) in [0, 1] as JPEG and read it back."""
    if quality >= 100:
        return image
    import cv2

    pixels = (image.permute(1, 2, 0) * 255).round().byte().cpu().numpy()
    _, encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1].copy()
    return torch.from_numpy(decoded).to(image.device).permute(2, 0, 1).to(image.dtype) / 255


class _Draw:
    """Random values, one per image of a batch."""

    def __init__(self, batch: int, like: Tensor, generator: torch.Generator | None) -> None:
        self.batch, self.like, self.generator = batch, like, generator

    def __call__(self, limits: Range) -> Tensor:
        low, high = limits
        random = torch.rand(self.batch, generator=self.generator, device=self.like.device)
        return (low + (high - low) * random).to(self.like.dtype)

    def log(self, limits: Range) -> Tensor:
        return torch.exp(self((math.log(limits[0]), math.log(limits[1]))))

    def choice(self, values: tuple[int, ...]) -> Tensor:
        index = (self((0.0, 1.0)) * len(values)).long().clamp(max=len(values) - 1)
        return torch.tensor(values, dtype=self.like.dtype, device=self.like.device)[index]

    def sign(self) -> Tensor:
        return torch.where(self((0.0, 1.0)) < 0.5, -1.0, 1.0).to(self.like.dtype)

    def normal(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        return torch.randn(
            shape, generator=self.generator, device=self.like.device, dtype=self.like.dtype
        )
