"""What a recogniser returns: the norm it found, or why it leaves a norm alone."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from normfuse.graph.channels import Ranks
from normfuse.graph.constants import Constants
from normfuse.spec import NormSpec

LIFTS = "(--lift-flagged lifts it)"
"""How the reason ends why a flagged norm is left alone."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a recogniser knows beside the node: the opset of its graph's default domain, the constants, the ranks.

    lift_flagged: also lift what is the norm in exact arithmetic and differs from it in floating point.
    """

    opset: int
    constants: Constants
    ranks: Ranks
    lift_flagged: bool = False


@dataclass(frozen=True, slots=True)
class Operands:
    """The values a norm reads. ``mean`` and ``var`` only where statistics are stored or computed elsewhere.

    The norm is of ``x + residual + residual_bias``, as far as they are there. A value that is in no graph, with a
    ``const_value``, is a constant that the recogniser computed (the negative of what was subtracted).
    """

    x: ir.Value
    scale: ir.Value | None = None
    bias: ir.Value | None = None
    mean: ir.Value | None = None
    var: ir.Value | None = None
    residual: ir.Value | None = None
    residual_bias: ir.Value | None = None


@dataclass(frozen=True, slots=True)
class NormSite:
    """A norm in a graph.

    spelling: how it is written, for people ("GroupNormalization-21", "Reshape·InstanceNormalization·Reshape·Mul·Add").
    root: the node whose first output is the result. interior: every node that goes when the norm is written anew, the
    root included. extra_outputs: further outputs that something reads (saved statistics, the sum of a residual).
    mean, inverse_deviation: those of them that are saved statistics, where their place among the outputs of the root
    does not say so. flag: where the norm and its spelling agree in exact arithmetic only, why their numbers differ.
    """

    spec: NormSpec
    operands: Operands
    spelling: str
    root: ir.Node
    interior: tuple[ir.Node, ...]
    extra_outputs: tuple[ir.Value, ...] = ()
    mean: ir.Value | None = None
    inverse_deviation: ir.Value | None = None
    flag: str | None = None

    @property
    def output(self) -> ir.Value:
        """The result of the norm."""
        return self.root.outputs[0]


@dataclass(frozen=True, slots=True)
class Declined:
    """A norm that is ours, but is left alone. ``reason`` is a lower-case clause a user can act on.

    interior: the nodes that it consists of, where they are more than ``at`` and known.
    """

    reason: str
    at: ir.Node
    interior: tuple[ir.Node, ...] = ()
