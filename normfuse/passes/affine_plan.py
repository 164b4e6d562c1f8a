"""What has to change for one map to move, as a value; and the ground that every plan of a graph stands on."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from normfuse.affine import Array
from normfuse.graph.editing import describe
from normfuse.graph.reading import has_parameters, input_at, is_standard
from normfuse.graph.site import Declined, Reading
from normfuse.passes.affine_passing import Context
from normfuse.passes.affine_rest import Rest, Work, rest
from normfuse.passes.affine_rules import RULES
from normfuse.passes.affine_rules_values import cast_to
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


_REORDERS = frozenset("Transpose Reshape Flatten Squeeze Unsqueeze DepthToSpace SpaceToDepth".split())
"""Operators that return what they get in another order."""

_SAME_TYPE = frozenset(
    "BatchNormalization Conv ConvTranspose Gemm MatMul Mul Add Sub Div Neg Sum Sigmoid Tanh Elu Selu HardSigmoid HardSwish "
    "Clip Softplus Erf Sqrt Exp Softmax InstanceNormalization LayerNormalization GroupNormalization".split()
)
"""Operators beside those of the table whose result has the type of their first operand."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What has to change for one map to move.

    linears: those that absorb. copies: (reader, value, linear, rebuild) of linears that absorb in a copy for one reader.
    gone: affine nodes that vanish, each with the index of the input that takes its place. constants: (node, index,
    array) operands that change. moved: values that mean something else afterwards. through: operators that the map
    passes. rests: what stays of it, elsewhere. adds: nodes that come beside those that go. products: the sums of the
    linear operators that absorb a shift of their input. half: something of it is float16. strained: operators whose
    operands or results may leave the range of float16.
    """

    linears: tuple[tuple[ir.Node, Rebuild], ...] = ()
    copies: tuple[tuple[ir.Node, ir.Value, ir.Node, Rebuild], ...] = ()
    gone: tuple[tuple[ir.Node, int], ...] = ()
    constants: tuple[tuple[ir.Node, int, Array], ...] = ()
    moved: tuple[ir.Value, ...] = ()
    through: tuple[ir.Node, ...] = ()
    strained: tuple[ir.Node, ...] = ()
    rests: tuple[Rest, ...] = ()
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
            self.rests + other.rests,
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

    @property
    def work(self) -> Work:
        """What it leaves to do at run time: the rests, and the Adds of MatMuls, which have no more elements than the norm."""
        rests = ((operator, one.share) for one in self.rests for operator in one.costs)
        return Work.of((*rests, *(("Add", Fraction(1)),) * self.adds))


NOTHING = Plan()
"""Nothing has to change."""


@dataclass(slots=True)
class Ground:
    """One graph that does not change meanwhile: what is known of it, and what other plans have claimed.

    norms: those that may move. duplicate: a linear operator that others read too may absorb in a copy. has_norms: whether
    a BatchNormalization that stays is one operator, not a Mul and an Add in the end.
    blocked: values whose producer no map passes, whatever the map.
    """

    norms: Norms
    reading: Reading
    duplicate: bool = False
    has_norms: bool = True
    claimed: set[ir.Node] = field(default_factory=set)
    blocked: dict[ir.Value, Declined] = field(default_factory=dict)
    context: Context = field(init=False)

    def __post_init__(self) -> None:
        self.context = Context(self.reading, Sizes(self.reading))

    def rank(self, value: ir.Value | None) -> int | None:
        """Return the number of axes of ``value``, or None where it is not proven."""
        dims = self.context.sizes.of(value)
        return None if dims is None else len(dims)

    def share(
        self, node: ir.Node, of: ir.Value | None, to: ir.Value | None, known: Fraction | None, *, grows: bool
    ) -> Fraction | None:
        """Return the most elements that ``to`` has, as a share of those of the norm; None where there is no bound.

        ``of``, on the other side of ``node``, has ``known``. grows: ``to`` may have more than that along an axis whose
        size is not known. Where sizes are known the share is exact, whatever the direction: else two directions could
        both be a gain, and the motion would not end.
        """
        before, after = self.context.sizes.of(of), self.context.sizes.of(to)
        if known is None or node.op_type in _REORDERS:
            return known
        if before is None or after is None or len(before) != len(after):
            return None if grows else known
        for one, other in zip(before, after, strict=True):
            if one is None or other is None or one == 0:
                if grows:
                    return None
            else:
                known *= Fraction(other, one)
        return known

    def rest(
        self,
        value: ir.Value,
        source: ir.Node | None,
        f: Spread,
        reader: ir.Node | None,
        share: Fraction | None,
        *,
        is_whole: bool,
    ) -> Rest | None:
        """Return ``f`` of ``value``, made by ``source``, as it could be written there; None where that is not known."""
        if self.reading.opset < 7:
            return None
        dims = self.context.sizes.of(value)
        dtype = self.dtype(value)
        return rest(value, source, f, reader, share, dims, dtype, is_whole=is_whole, has_norms=self.has_norms)

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """Return the type of ``value`` as far as it is stated, or follows from that of what it is made of."""
        for _ in range(DEEPEST):
            if value is None or value.dtype is not None:
                break
            node = value.producer()
            if node is None or not is_standard(node) or has_parameters(node):
                return None
            if node.op_type == "Cast":
                return cast_to(node)
            if node.op_type not in RULES and node.op_type not in _SAME_TYPE:
                return None
            value = input_at(node, 0)
        return None if value is None else value.dtype


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


def split_strained(rest: Rest, f: Spread, at: ir.Node) -> tuple[ir.Node, ...]:
    """Return ``at`` where a float16 between the two halves of f, of which ``rest`` is one, may leave its range."""
    halves = rest.dtype == ir.DataType.FLOAT16 and not rest.is_whole
    return (at,) if halves and bool(np.abs(f.shift).max(initial=0.0) >= 16.0) else ()


def least(*outcomes: Plan | Declined) -> Plan | Declined:
    """Return the plan that leaves the least to do, of equal ones the first; where there is none, the first reason."""
    plans = [outcome for outcome in outcomes if isinstance(outcome, Plan)]
    return min(plans, key=lambda plan: plan.work) if plans else outcomes[0]


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
