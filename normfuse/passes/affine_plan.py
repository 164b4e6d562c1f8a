"""What has to change for one map to move, as a value; and the ground that every plan of a graph stands on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from normfuse.affine import Array
from normfuse.graph.editing import describe
from normfuse.graph.site import Declined, Reading
from normfuse.passes.affine_passing import Context
from normfuse.passes.cancellation import Products
from normfuse.passes.linear import Rebuild
from normfuse.passes.sizes import Sizes
from normfuse.passes.spread import Spread
from normfuse.recognise.affine_chain import Norms

MOST_VISITS = 256
"""Values that one plan looks at, at most: the work stays linear in the number of maps. A DenseNet block needs 60."""

DEEPEST = 64
"""Operators on one path."""

MOST_CONSTANT = 1 << 22
"""Elements of a constant operand that is computed anew."""

LARGEST_HALF = 65504.0
"""The largest float16; half a unit in its last place is 16."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What has to change for one map to move.

    linears: those that absorb. copies: (reader, value, linear, rebuild) of linears that absorb in a copy for one reader.
    gone: affine nodes that vanish, each with the index of the input that takes its place. constants: (node, index,
    array) operands that change. moved: values that mean something else afterwards. through: operators that the map
    passes. adds: nodes that come beside those that go. products: the sums of the linear operators that absorb a shift of
    their input. half: something of it is float16. strained: operators whose operands or results may leave the range of float16.
    """

    linears: tuple[tuple[ir.Node, Rebuild], ...] = ()
    copies: tuple[tuple[ir.Node, ir.Value, ir.Node, Rebuild], ...] = ()
    gone: tuple[tuple[ir.Node, int], ...] = ()
    constants: tuple[tuple[ir.Node, int, Array], ...] = ()
    moved: tuple[ir.Value, ...] = ()
    through: tuple[ir.Node, ...] = ()
    strained: tuple[ir.Node, ...] = ()
    adds: int = 0
    products: tuple[Products, ...] = ()
    half: bool = False

    def __add__(self, other: Plan) -> Plan:
        return Plan(
            self.linears + other.linears,
            self.copies + other.copies,
            self.gone + other.gone,
            self.constants + other.constants,
            self.moved + other.moved,
            self.through + other.through,
            self.strained + other.strained,
            self.adds + other.adds,
            self.products + other.products,
            self.half or other.half,
        )

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """Every node that the plan touches."""
        return (
            *(node for node, _ in self.linears),
            *(node for _, _, node, _ in self.copies),
            *(node for node, _ in self.gone),
            *(node for node, _, _ in self.constants),
            *self.through,
        )


@dataclass(slots=True)
class Ground:
    """One graph that does not change meanwhile: what is known of it, and what other plans have claimed.

    norms: those that may move. duplicate: a linear operator that others read too may absorb in a copy.
    blocked: values whose producer no map passes, whatever the map.
    """

    norms: Norms
    reading: Reading
    duplicate: bool = False
    claimed: set[ir.Node] = field(default_factory=set)
    blocked: dict[ir.Value, Declined] = field(default_factory=dict)
    context: Context = field(init=False)

    def __post_init__(self) -> None:
        self.context = Context(self.reading, Sizes(self.reading))

    def rank(self, value: ir.Value | None) -> int | None:
        """Return the number of axes of ``value``, or None where it is not proven."""
        dims = self.context.sizes.of(value)
        return None if dims is None else len(dims)


def leaves_half(f: Spread) -> bool:
    """Whether ``f`` may take a float16 out of the range of float16."""
    return bool((np.abs(f.scale) * LARGEST_HALF + np.abs(f.shift)).max(initial=0.0) > LARGEST_HALF)


def half_strained(node: ir.Node, dtype: np.dtype[np.generic], adds: int, shift: Array) -> Plan:
    """Return what a linear operator of ``dtype`` adds to a plan on account of its range.

    Where the shift needs an Add, ``s·v`` stands alone before it: with a shift below half a unit in the last place of
    the largest float16, it is in range wherever the sum was.
    """
    if dtype != np.float16:
        return Plan()
    strained = adds > 0 and bool(np.abs(shift).max(initial=0.0) >= 16.0)
    return Plan(half=True, strained=(node,) if strained else ())


def is_annotated(value: ir.Value) -> bool:
    """Whether the file states quantization parameters of ``value``: they hold for what it means now."""
    return "quant_parameter_tensor_names" in value.meta


def name(node: ir.Node) -> str:
    """Name a node in a reason."""
    return f"{node.op_type} '{describe(node)}'"


def once(found: Plan | Declined, at: ir.Node) -> Plan | Declined:
    """Return ``found`` unless its tree meets an operator twice: two maps of one value are no map of it."""
    if isinstance(found, Declined):
        return found
    met: set[ir.Node] = set()
    linears = (*(node for node, _ in found.linears), *(node for _, _, node, _ in found.copies))
    for node in (*found.through, *(node for node, _ in found.gone), *linears):
        if node in met:
            return Declined(f"{name(node)} is reached on two ways", at)
        met.add(node)
    return found
