"""DenseNet: Huang, Liu, van der Maaten and Weinberger, "Densely Connected Convolutional Networks", 2016
(arXiv:1608.06993).

Pre-activation: BN-ReLU-Conv. A BatchNormalization stands before a ReLU here, so it can be folded only backwards, and
behind a Concat only piece by piece.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.sample import Sample
from models.statistics import randomise_statistics, seeded


class DenseLayer(nn.Module):
    """The bottleneck: BN-ReLU-Conv 1×1-BN-ReLU-Conv 3×3; its output is appended to its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        y = self.conv2(torch.relu(self.norm2(y)))
        return torch.cat((x, y), dim=1)


class DenseNet(nn.Module):
    """Conv, a dense block of three layers, a transition, a dense block of three, BN-ReLU, pooling, classifier."""

    def __init__(self, growth: int = 8, layers: int = 3, classes: int = 10) -> None:
        super().__init__()
        width = 2 * growth
        self.conv0 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.block1 = nn.Sequential(*(DenseLayer(width + growth * index, growth) for index in range(layers)))
        width += growth * layers
        self.norm1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width // 2, 1, bias=False)
        width //= 2
        self.block2 = nn.Sequential(*(DenseLayer(width + growth * index, growth) for index in range(layers)))
        width += growth * layers
        self.norm2 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block1(self.conv0(x))
        y = nn.functional.avg_pool2d(self.conv1(torch.relu(self.norm1(y))), 2)
        y = torch.relu(self.norm2(self.block2(y)))
        logits: Tensor = self.fc(y.mean(dim=(2, 3)))
        return logits


def densenet(seed: int = 0) -> nn.Module:
    """Return a DenseNet for 32×32 images, in eval mode."""
    with seeded(seed):
        return randomise_statistics(DenseNet(), seed).eval()


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)),)


# Two in each of six layers, one in the transition, one at the end.
EXPECTED = {"batch": 14}
SAMPLES = (Sample("densenet", densenet, example_inputs, EXPECTED),)
