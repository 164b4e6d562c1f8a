"""Norms as training leaves them: statistics that are not 0 and 1, and γ of both signs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Make what runs inside draw the same random numbers each time, and leave torch's generator as it was."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        yield


def randomise_statistics(module: Module, seed: int) -> Module:
    """Return ``module`` with every norm made non-trivial, in place.

    Running mean ~ N(0, ½²), running variance ~ U(½, 2); |γ| ~ U(½, 1½), negative in every fourth entry; β ~ N(0, 0.3²).
    A norm is any module whose class name contains "Norm".
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if "Norm" not in type(part).__name__:
                continue
            for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
                if name == "running_mean":
                    tensor.normal_(0.0, 0.5, generator=generator)
                elif name == "running_var":
                    tensor.uniform_(0.5, 2.0, generator=generator)
                elif name == "weight":
                    tensor.uniform_(0.5, 1.5, generator=generator)
                    tensor.view(-1)[::4] *= -1.0
                elif name == "bias":
                    tensor.normal_(0.0, 0.3, generator=generator)
    return module


def randomise_biases(module: Module, seed: int) -> Module:
    """Return ``module`` with every bias that initialisation left at zero drawn from N(0, 0.1²), in place.

    A zero bias is dropped by every tool, and hides what it would have kept apart.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if name.rpartition(".")[2] == "bias" and not tensor.any():
                tensor.normal_(0.0, 0.1, generator=generator)
    return module
