"""ResNet with basic blocks: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015.

arXiv:1512.03385.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.sample import Sample
from models.statistics import randomise_statistics, seeded


class BasicBlock(nn.Module):
    """Conv-BN-ReLU-Conv-BN beside an identity, or beside Conv-BN where size or width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.downsample(x))


class ResNet(nn.Module):
    """A stem, three stages of two blocks each, global average pooling and a linear classifier."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        blocks: list[nn.Module] = []
        inputs = widths[0]
        for stage, width in enumerate(widths):
            blocks += [BasicBlock(inputs, width, stride=1 if stage == 0 else 2), BasicBlock(width, width, stride=1)]
            inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.blocks(y)
        logits: Tensor = self.fc(y.mean(dim=(2, 3)))
        return logits


def resnet(seed: int = 0) -> nn.Module:
    """Return a ResNet-14 for 32×32 images, in eval mode."""
    with seeded(seed):
        return randomise_statistics(ResNet(), seed).eval()


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)),)


# One in the stem, two in each of six blocks, one beside each of the two that shrink.
EXPECTED = {"batch": 15}
SAMPLES = (Sample("resnet", resnet, example_inputs, EXPECTED),)
