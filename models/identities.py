"""Group norm between its two ends: Wu and He, "Group Normalization", 2018 (arXiv:1803.08494), figure 2.

Six channels in three groups; in six groups it is instance norm; in one group it is layer norm over (C, H, W) with γ
and β per channel. Each of the two ends stands beside its twin, with the same parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.sample import Sample
from models.statistics import randomise_statistics

CHANNELS = 6
SIZE = (5, 4)


class SampleLayerNorm(nn.Module):
    """Layer norm over (C, H, W), then γ and β per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(CHANNELS))
        self.bias = nn.Parameter(torch.zeros(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.layer_norm(x, x.shape[1:], eps=1e-5)
        return y * self.weight[:, None, None] + self.bias[:, None, None]


def group_norm_3(seed: int = 0) -> nn.Module:
    """Return GroupNorm of six channels in three groups of two."""
    return randomise_statistics(nn.GroupNorm(3, CHANNELS), seed).eval()


def group_norm_6(seed: int = 0) -> nn.Module:
    """Return GroupNorm of six channels in six groups."""
    return randomise_statistics(nn.GroupNorm(6, CHANNELS), seed).eval()


def instance_norm(seed: int = 0) -> nn.Module:
    """Return the InstanceNorm that computes what :func:`group_norm_6` does."""
    return randomise_statistics(nn.InstanceNorm2d(CHANNELS, affine=True), seed).eval()


def group_norm_1(seed: int = 0) -> nn.Module:
    """Return GroupNorm of six channels in one group."""
    return randomise_statistics(nn.GroupNorm(1, CHANNELS), seed).eval()


def layer_norm(seed: int = 0) -> nn.Module:
    """Return the layer norm that computes what :func:`group_norm_1` does."""
    return randomise_statistics(SampleLayerNorm(), seed).eval()


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.randn(2, CHANNELS, *SIZE, generator=torch.Generator().manual_seed(1)) * 2.0 + 0.5,)


SAMPLES = (
    Sample("group_norm_3", group_norm_3, example_inputs, {"group": 1}),
    Sample("group_norm_6", group_norm_6, example_inputs, {"group": 1}),
    Sample("instance_norm", instance_norm, example_inputs, {"instance": 1}),
    Sample("group_norm_1", group_norm_1, example_inputs, {"group": 1}),
    Sample("layer_norm", layer_norm, example_inputs, {"layer": 1}),
)
