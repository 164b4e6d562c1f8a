"""What a rule of motion is asked, and what it answers.

For an operator g and a map f on its output, a rule asked backward returns the maps f_i of its inputs with
``f ∘ g = g' ∘ (f_1, f_2, …)``; asked forward it returns, for a map on one of its inputs, the maps of its outputs. g' is
g, or g with another constant (the slope of PRelu, the value of Pad).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from normfuse.affine import Array
from normfuse.graph.site import Reading
from normfuse.passes.sizes import Sizes
from normfuse.passes.spread import Spread


@dataclass(frozen=True, slots=True)
class Context:
    """What a rule knows beside its node."""

    reading: Reading
    sizes: Sizes


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """maps: by index of input (backward) or output (forward). constants: inputs that become other constants.

    shrinks: the output has fewer elements than the input, or may have: what is left behind may cost more than before.
    combines: an element of the output is computed from several of the input, or multiplied, so that one of the two may
    leave the range of its type where the other stays inside. averages: over how many elements that differ about one mean;
    infinity where that is not known.
    """

    maps: tuple[tuple[int, Spread], ...]
    constants: tuple[tuple[int, Array], ...] = ()
    shrinks: bool = False
    combines: bool = False
    averages: float = 1.0


Outcome = Passed | str
"""A rule that does not hold says why, as the end of a sentence that begins with the operator's name."""


class Rule(Protocol):
    """How a map passes one operator."""

    def __call__(self, node: ir.Node, place: int, f: Spread, context: Context, *, backward: bool) -> Outcome:
        """Answer for the map f of output ``place`` (backward), or of input ``place`` (forward)."""
