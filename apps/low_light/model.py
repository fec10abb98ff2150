"""UGDC, the U-shaped network of Troublemaker Learning, and TML, the pair that brightens.

Keys of the state dicts are the authors'.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crossband.apps.low_light.gdc import GDC, Order
from crossband.shared.errors import ConfigError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class DoubleConv(nn.Module):
    """Twice conv 3x3 without bias, batch norm, ReLU; or GDC in place of the first conv."""

    def __init__(self, inputs: int, outputs: int, gdc: GDC | None = None) -> None:
        """Build the layers; with a `gdc` the first stage keeps the number of channels."""
        super().__init__()
        middle = inputs if gdc else outputs
        self.double_conv = nn.Sequential(
            gdc or nn.Conv2d(inputs, middle, 3, padding=1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C', h, w)."""
        return self.double_conv(x)


class Down(nn.Module):
    """Halve, then convolve."""

    def __init__(self, conv: DoubleConv) -> None:
        """Put max pooling before `conv`."""
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), conv)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C', h/2, w/2)."""
        return self.maxpool_conv(x)


class Up(nn.Module):
    """Double, join the encoder's features in front, convolve."""

    def __init__(self, inputs: int, conv: DoubleConv) -> None:
        """Build the transposed convolution."""
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, inputs // 2, 2, stride=2)
        self.conv = conv

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map (B, C, h, w) and skip (B, C/2, 2h, 2w) to (B, C', 2h, 2w)."""
        return self.conv(torch.cat([skip, self.up(x)], dim=1))


class OutConv(nn.Module):
    """A 1x1 convolution to the output's channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Build it."""
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C', h, w)."""
        return self.conv(x)


class UGDC(nn.Module):
    """U-Net whose four innermost stages mix globally by GDC (published: PM stem 64, EM 32).

    Images are normalised by ImageNet's mean and deviation, going in and coming out.

    Args:
        height: Rows of the native size; a multiple of 16 patches (80).
        width: Columns of the native size.
        stem: Channels at full resolution; 8 and more.
        in_channels: Of the image.
        out_channels: Of the result.
        patch_size: Of GDC.
        drop_path: Of GDC.
        resize_patch_grid: Accept other sizes that are multiples of 16 patches, see `GDC`.
        order: Of GDC.

    Raises:
        ConfigError: a size that patches do not tile, or a stem below 1.
    """

    def __init__(
        self,
        height: int = 400,
        width: int = 640,
        stem: int = 64,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        patch_size: int = 5,
        drop_path: float = 0.2,
        resize_patch_grid: bool = False,
        order: Order = "auto",
    ) -> None:
        """Build the network."""
        super().__init__()
        self.multiple = 16 * patch_size
        if height % self.multiple or width % self.multiple or min(height, width) < self.multiple:
            raise ConfigError(
                f"UGDC of {height} x {width}: both must be multiples of {self.multiple}."
            )
        if stem < 1:
            raise ConfigError(f"UGDC with a stem of {stem}: it must be 1 or more.")
        self.height, self.width = height, width

        def double(inputs: int, outputs: int, level: int = 0) -> DoubleConv:
            if not level:
                return DoubleConv(inputs, outputs)
            block = GDC(
                inputs,
                (height >> level, width >> level),
                patch_size=patch_size,
                drop_path=drop_path,
                resize_patch_grid=resize_patch_grid,
                order=order,
            )
            return DoubleConv(inputs, outputs, block)

        self.inc = double(in_channels, stem)
        self.down1 = Down(double(stem, 2 * stem))
        self.down2 = Down(double(2 * stem, 4 * stem))
        self.down3 = Down(double(4 * stem, 8 * stem, 3))
        self.down4 = Down(double(8 * stem, 16 * stem, 4))
        self.up1 = Up(16 * stem, double(16 * stem, 8 * stem, 3))
        self.up2 = Up(8 * stem, double(8 * stem, 4 * stem, 2))
        self.up3 = Up(4 * stem, double(4 * stem, 2 * stem))
        self.up4 = Up(2 * stem, double(2 * stem, stem))
        self.outc = OutConv(stem, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map a normalised image (B, C, H, W) to (B, C', H, W).

        Raises:
            ConfigError: a size that the network does not take.
        """
        return self.outc(self.stages(x)["up4"])

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        """Return the feature maps of all nine stages by name."""
        self._check(x.shape[-2], x.shape[-1])
        maps = {"inc": self.inc(x)}
        maps["down1"] = self.down1(maps["inc"])
        maps["down2"] = self.down2(maps["down1"])
        maps["down3"] = self.down3(maps["down2"])
        maps["down4"] = self.down4(maps["down3"])
        maps["up1"] = self.up1(maps["down4"], maps["down3"])
        maps["up2"] = self.up2(maps["up1"], maps["down2"])
        maps["up3"] = self.up3(maps["up2"], maps["down1"])
        maps["up4"] = self.up4(maps["up3"], maps["inc"])
        return maps

    @property
    def any_size(self) -> bool:
        """Whether the network takes every multiple of 16 patches."""
        return self.down4.maxpool_conv[1].double_conv[0].resize_patch_grid

    @any_size.setter
    def any_size(self, value: bool) -> None:
        for module in self.modules():
            if isinstance(module, GDC):
                module.resize_patch_grid = value

    def _check(self, height: int, width: int) -> None:
        if (height, width) == (self.height, self.width):
            return
        if not self.any_size:
            raise ConfigError(
                f"This UGDC was made for images of {self.height} x {self.width}, it got {height} x "
                f"{width}: resize or tile the image, or set resize_patch_grid."
            )
        if height % self.multiple or width % self.multiple:
            raise ConfigError(
                f"UGDC takes multiples of {self.multiple}, not {height} x {width}: pad the image."
            )


class TML(nn.Module):
    """Brighten coarsely, then subtract what the second network takes for noise.

    `c = PM(normalise(image))`, result `c - EM(c)`, brought back to [0, 1].

    Args:
        height: Rows of the native size.
        width: Columns of the native size.
        stem: Of the predicting network PM.
        enhancer_stem: Of the enhancing network EM; 0 leaves it out.
        options: Of `UGDC`.
    """

    def __init__(
        self,
        height: int = 400,
        width: int = 640,
        stem: int = 64,
        enhancer_stem: int = 32,
        *,
        patch_size: int = 5,
        drop_path: float = 0.2,
        resize_patch_grid: bool = False,
        order: Order = "auto",
    ) -> None:
        """Build both networks."""
        super().__init__()
        options = {
            "patch_size": patch_size,
            "drop_path": drop_path,
            "resize_patch_grid": resize_patch_grid,
            "order": order,
        }
        self.pm = UGDC(height, width, stem, **options)
        self.em = UGDC(height, width, enhancer_stem, **options) if enhancer_stem else None
        self.height, self.width, self.multiple = height, width, self.pm.multiple

    def forward(self, image: Tensor) -> Tensor:
        """Map an RGB image (B, 3, H, W) in [0, 1] to the brightened one, not clamped."""
        return denormalise(self.enhance(normalise(image)))

    def enhance(self, x: Tensor) -> Tensor:
        """Map a normalised image to the normalised result (B, 3, H, W)."""
        coarse = self.pm(x)
        return coarse if self.em is None else coarse - self.em(coarse)

    @property
    def any_size(self) -> bool:
        """Whether every multiple of 16 patches is taken, by resizing the patch grids."""
        return self.pm.any_size

    @any_size.setter
    def any_size(self, value: bool) -> None:
        self.pm.any_size = value
        if self.em is not None:
            self.em.any_size = value


def normalise(image: Tensor) -> Tensor:
    """Bring RGB (B, 3, H, W) from [0, 1] to ImageNet's mean and deviation."""
    return (image - _column(MEAN, image)) / _column(STD, image)


def denormalise(x: Tensor) -> Tensor:
    """Undo `normalise`."""
    return x * _column(STD, x) + _column(MEAN, x)


def fuse_for_inference(model: nn.Module) -> nn.Module:
    """Fold every batch norm that follows a convolution into it, in place; eval mode only."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for module in model.modules():
        if isinstance(module, DoubleConv):
            layers = module.double_conv
            for i in (0, 3):
                if isinstance(layers[i], nn.Conv2d) and isinstance(layers[i + 1], nn.BatchNorm2d):
                    layers[i] = fuse_conv_bn_eval(layers[i], layers[i + 1])
                    layers[i + 1] = nn.Identity()
    return model


def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
