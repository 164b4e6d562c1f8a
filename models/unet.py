"""UNet as diffusion models use it, GroupNorm and SiLU in residual blocks.

Ronneberger, Fischer, Brox, "U-Net", 2015 (arXiv:1505.04597); the blocks: Ho, Jain, Abbeel, "Denoising Diffusion
Probabilistic Models", 2020 (arXiv:2006.11239); group norm: Wu and He, 2018 (arXiv:1803.08494).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.sample import Sample
from models.statistics import randomise_statistics, seeded


class ResidualBlock(nn.Module):
    """GN-SiLU-Conv, twice, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        z: Tensor = self.shortcut(x) + y
        return z


class UNet(nn.Module):
    """Two levels down, a middle block, two levels up with the activations of the way down beside them."""

    def __init__(self, width: int = 32, groups: int = 8) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.down1 = ResidualBlock(width, width, groups)
        self.shrink = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.down2 = ResidualBlock(width, 2 * width, groups)
        self.middle = ResidualBlock(2 * width, 2 * width, groups)
        self.up2 = ResidualBlock(4 * width, width, groups)
        self.grow = nn.Conv2d(width, width, 3, padding=1)
        self.up1 = ResidualBlock(2 * width, width, groups)
        self.norm_out = nn.GroupNorm(groups, width)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(self.conv_in(x))
        second = self.down2(self.shrink(first))
        y = self.up2(torch.cat((self.middle(second), second), dim=1))
        y = self.grow(functional.interpolate(y, scale_factor=2.0, mode="nearest"))
        y = self.up1(torch.cat((y, first), dim=1))
        image: Tensor = self.conv_out(functional.silu(self.norm_out(y)))
        return image


def unet(seed: int = 0) -> nn.Module:
    """Return a UNet for images of even size, in eval mode."""
    with seeded(seed):
        return randomise_statistics(UNet(), seed).eval()


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)),)


# Two in each of five blocks, one at the end.
EXPECTED = {"group": 11}
SAMPLES = (Sample("unet", unet, example_inputs, EXPECTED),)
