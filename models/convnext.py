"""ConvNeXt: Liu, Mao, Wu, Feichtenhofer, Darrell, Xie, "A ConvNet for the 2020s", 2022 (arXiv:2201.03545).

Layer norm over the channels of channels-first activations: (N, C, H, W) is permuted to (N, H, W, C) and back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.sample import Sample
from models.statistics import randomise_statistics, seeded


class ChannelsFirstLayerNorm(nn.Module):
    """Layer norm over C at each position of (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y


class Block(nn.Module):
    """Depthwise 7×7, LN, Linear, GELU, Linear, a scale per channel, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, 4 * width)
        self.shrink = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.shrink(nn.functional.gelu(self.expand(y)))
        z: Tensor = x + y.permute(0, 3, 1, 2)
        return z


class ConvNeXt(nn.Module):
    """A patchify stem and two stages with a downsampling between, pooling, LN, classifier."""

    def __init__(self, widths: tuple[int, int] = (24, 48), classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, stride=4), ChannelsFirstLayerNorm(widths[0]))
        self.stage1 = nn.Sequential(Block(widths[0]), Block(widths[0]))
        self.down = nn.Sequential(ChannelsFirstLayerNorm(widths[0]), nn.Conv2d(widths[0], widths[1], 2, stride=2))
        self.stage2 = nn.Sequential(Block(widths[1]), Block(widths[1]))
        self.norm = nn.LayerNorm(widths[1], eps=1e-6)
        self.fc = nn.Linear(widths[1], classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stage2(self.down(self.stage1(self.stem(x))))
        logits: Tensor = self.fc(self.norm(y.mean(dim=(2, 3))))
        return logits


def convnext(seed: int = 0) -> nn.Module:
    """Return a ConvNeXt for 32×32 images, in eval mode."""
    with seeded(seed):
        return randomise_statistics(ConvNeXt(), seed).eval()


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)),)


# One in the stem, one in each of four blocks, one before the downsampling, one at the end.
EXPECTED = {"layer": 7}
SAMPLES = (Sample("convnext", convnext, example_inputs, EXPECTED),)
