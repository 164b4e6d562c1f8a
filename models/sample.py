"""What a family of models says about each of its members."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Sample:
    """One model: how to make it, what to feed it, and the norms it has at inference.

    expected: how many norms of each kind (batch, instance, group, layer, rms) an exported graph holds, each counted
    as the module spells it; an InstanceNorm with running statistics is counted as what it computes, batch.
    """

    name: str
    factory: Callable[[], torch.nn.Module]
    example_inputs: Callable[[], tuple[torch.Tensor, ...]]
    expected: Mapping[str, int]
