"""Norms of weights as constants: weight normalization, weight standardisation, spectral normalization.

``W = g · v / ‖v‖`` (Salimans and Kingma 2016), ``(W − μ) / σ`` per filter (Qiao et al. 2019) and ``W / (uᵀ W v)``
(Miyato et al. 2018) depend on no input. Computed once, in float64 from end to end, and rounded once, they are weights like
others, into which norms fold; left in the graph they are computed again with every run.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.graph.constants import Constants
from normfuse.graph.editing import Replacement, initializer
from normfuse.graph.reading import is_standard
from normfuse.graph.reductions import FUNCTIONS
from normfuse.graph.site import Declined
from normfuse.recognise.affine_chain import is_linear

_MOST_NODES = 64
"""Nodes that compute one weight; torch's raw export of a standardised one has 33."""
_FOLDED = (np.float32, np.float64)
"""Half types stay: a standardised filter sums to zero, and what rounding its entries to 8 or 11 bits adds to that sum
is as large as the mean of the input makes it. Verification takes the weight of the original for exact, and counts that as
an error of the fold: 5 to 200 times what it allows, at inputs with a large mean; 1 to 2 times for weight normalization."""
_ROUNDS = "and a weight rounded to that type differs from one that is computed by more than rounding may"
_SPECTRAL = ("MatMul", "Div")


@dataclass(frozen=True, slots=True)
class WeightNorm:
    """A norm of a weight that is decided to be folded: ``weight``, the result of ``root``, becomes ``content``."""

    into: ir.Node
    root: ir.Node
    weight: ir.Value
    nodes: tuple[ir.Node, ...]
    content: np.ndarray[tuple[int, ...], np.dtype[np.generic]]

    def replacement(self) -> Replacement:
        """Return the change: the nodes that only the weight needed go with the last of them."""
        constant = initializer(str(self.weight.name), self.content)
        return Replacement((self.root,), (), ((self.weight, constant),), (constant,))


def weight_norms(graph: Iterable[ir.Node], constants: Constants) -> list[WeightNorm | Declined]:
    """Return the norms of the weights of ``graph``, folded or with the reason why not. Changes nothing."""
    outcomes: list[WeightNorm | Declined] = []
    seen: set[ir.Value] = set()
    computed: set[ir.Value] = set()
    wide = constants.widened()
    for node in graph:
        if not is_linear(node):
            continue
        for weight in node.inputs[:2]:
            root = None if weight is None else weight.producer()
            if weight is None or root is None or weight in seen or root.graph is not node.graph:
                continue
            seen.add(weight)
            nodes = _expression(weight, constants, computed)
            if nodes is None:
                computed.add(weight)
                continue
            if not _normalises(nodes):
                continue
            narrow, exact = constants.array(weight), wide.array(weight)
            if narrow is None or exact is None:
                continue
            if narrow.dtype not in _FOLDED:
                outcomes.append(
                    Declined(f"the norm of its weight '{weight.name}' is of type {narrow.dtype}, {_ROUNDS}", node)
                )
                continue
            with np.errstate(over="ignore"):
                content = exact.astype(narrow.dtype)
            if not np.isfinite(content.astype(np.float64)).all():
                outcomes.append(Declined(f"the norm of its weight '{weight.name}' is not finite in its type", node))
                continue
            outcomes.append(WeightNorm(node, root, weight, nodes, content))
    return outcomes


def _expression(weight: ir.Value, constants: Constants, computed: Set[ir.Value]) -> tuple[ir.Node, ...] | None:
    """Return the nodes that compute ``weight`` from constants, in the order in which they run; None where others do.

    computed: values that are known not to be made of constants. One of the operands of a linear operator is the data: its
    way up ends where that of the operator before it began.
    """
    found: dict[ir.Node, None] = {}
    pending = [weight]
    while pending:
        value = pending.pop()
        producer = value.producer()
        if value in computed:
            return None
        if producer is None:
            if constants.tensor(value) is None:
                return None
            continue
        if producer in found:
            continue
        if not is_standard(producer) or len(found) >= _MOST_NODES:
            return None
        found[producer] = None
        # CastLike reads only the type of its second operand.
        operands = producer.inputs[:1] if producer.op_type == "CastLike" else producer.inputs
        pending += [operand for operand in operands if operand is not None and operand.name != ""]
    return tuple(reversed(found))


def _normalises(nodes: Iterable[ir.Node]) -> bool:
    """Whether a weight is divided by a statistic of its own."""
    kinds = {node.op_type for node in nodes}
    if kinds & {kind for kind in FUNCTIONS if kind != "ReduceProd"} or any("Norm" in kind for kind in kinds):
        return True
    return kinds >= set(_SPECTRAL)
