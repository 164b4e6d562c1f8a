"""Fast style transfer: Johnson, Alahi, Fei-Fei, "Perceptual Losses for Real-Time Style Transfer", 2016
(arXiv:1603.08155), with instance norm: Ulyanov, Vedaldi, Lempitsky, "Instance Normalization", 2016 (arXiv:1607.08022).

With ``track_running_stats=True`` an instance norm uses stored statistics at inference: then it is a batch norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.sample import Sample
from models.statistics import randomise_statistics, seeded


class ConvNorm(nn.Module):
    """Reflection padding, a convolution, an instance norm."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, track: bool) -> None:
        super().__init__()
        self.pad = nn.ReflectionPad2d(size // 2)
        self.conv = nn.Conv2d(inputs, outputs, size, stride=stride)
        self.norm = nn.InstanceNorm2d(outputs, affine=True, track_running_stats=track)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(self.pad(x)))
        return y


class Residual(nn.Module):
    """Two padded convolutions with norms, added to their input."""

    def __init__(self, width: int, track: bool) -> None:
        super().__init__()
        self.first = ConvNorm(width, width, 3, 1, track)
        self.second = ConvNorm(width, width, 3, 1, track)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        return x + y


class StyleTransfer(nn.Module):
    """Three convolutions down, two residual blocks, two up by nearest-neighbour resizing, one to RGB."""

    def __init__(self, width: int = 16, track: bool = False) -> None:
        super().__init__()
        self.down = nn.Sequential(
            ConvNorm(3, width, 9, 1, track),
            nn.ReLU(),
            ConvNorm(width, 2 * width, 3, 2, track),
            nn.ReLU(),
            ConvNorm(2 * width, 4 * width, 3, 2, track),
            nn.ReLU(),
        )
        self.residuals = nn.Sequential(Residual(4 * width, track), Residual(4 * width, track))
        self.up1 = ConvNorm(4 * width, 2 * width, 3, 1, track)
        self.up2 = ConvNorm(2 * width, width, 3, 1, track)
        self.rgb = nn.Sequential(nn.ReflectionPad2d(4), nn.Conv2d(width, 3, 9))

    def forward(self, x: Tensor) -> Tensor:
        y = self.residuals(self.down(x))
        y = torch.relu(self.up1(functional.interpolate(y, scale_factor=2.0, mode="nearest")))
        y = torch.relu(self.up2(functional.interpolate(y, scale_factor=2.0, mode="nearest")))
        image: Tensor = torch.sigmoid(self.rgb(y))
        return image


def style_transfer(seed: int = 0) -> nn.Module:
    """Return the net with statistics of each image, in eval mode."""
    with seeded(seed):
        return randomise_statistics(StyleTransfer(), seed).eval()


def style_transfer_running(seed: int = 0) -> nn.Module:
    """Return the net with running statistics, in eval mode."""
    with seeded(seed):
        return randomise_statistics(StyleTransfer(track=True), seed).eval()


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)),)


# Three down, two in each of two residual blocks, two up.
EXPECTED = {"instance": 9}
EXPECTED_RUNNING = {"batch": 9}
SAMPLES = (
    Sample("style_transfer", style_transfer, example_inputs, EXPECTED),
    Sample("style_transfer_running", style_transfer_running, example_inputs, EXPECTED_RUNNING),
)
