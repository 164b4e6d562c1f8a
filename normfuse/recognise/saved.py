"""Mean and inverse deviation beside the norm: the further outputs of LayerNormalization, as its function body has them.

They count as outputs of the norm where both are read. One of them alone, or another inner value, is an inner value that
something else needs, and the norm stays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from normfuse.recognise.core import Core
from normfuse.recognise.reader import Reader
from normfuse.recognise.terms import X

_DEAD = 4
"""Nodes one behind the other that nobody reads the end of; the body of LayerNormalization has two."""


@dataclass(frozen=True, slots=True)
class Saved:
    """Both statistics, of the shape of x with 1 along the normalised axes. nodes: those that only they need."""

    mean: ir.Value
    inverse_deviation: ir.Value
    nodes: tuple[ir.Node, ...]


def saved_statistics(interior: Collection[ir.Node], root: ir.Node, core: Core, reader: Reader) -> Saved | None:
    """Return the statistics of ``core`` that are read beside the norm; None where other inner values are read too."""
    inside = set(interior)
    mean, spread = reader.terms.mean(X, core.axes), ((core.root, 0.5),)
    saved: dict[str, ir.Value] = {}
    nodes: list[ir.Node] = []
    for node in interior:
        for value in node.outputs if node is not root else ():
            others = _others(value, inside)
            if not others and not value.is_graph_output():
                continue
            known = reader.known.get(value)
            if known is None or known.missing or known.term.coefficient != 1.0:
                return None
            if known.term == mean:
                saved["mean"] = value
            elif known.term.factors == ((core.root, -0.5),):
                saved["inverse deviation"] = value
            elif known.term.factors == spread and len(others) == 1 and not value.is_graph_output():
                (inverse,) = others
                known = reader.known.get(inverse.outputs[0])
                if known is None or known.term.factors != ((core.root, -0.5),) or known.term.coefficient != 1.0:
                    return None
                saved["inverse deviation"] = inverse.outputs[0]
                nodes.append(inverse)
            else:
                return None
    return Saved(saved["mean"], saved["inverse deviation"], tuple(nodes)) if len(saved) == 2 else None


def _others(value: ir.Value, inside: Collection[ir.Node]) -> tuple[ir.Node, ...]:
    return tuple(dict.fromkeys(user for user, _ in value.uses() if user not in inside))


def unread_readers(interior: Collection[ir.Node], root: ir.Node) -> tuple[ir.Node, ...]:
    """Return the nodes that read an inner value and whose results nobody reads: what an inlined body leaves behind."""
    inside = set(interior)
    found: dict[ir.Node, None] = {}
    for node in interior:
        for value in node.outputs if node is not root else ():
            for user in _others(value, inside):
                found.update(dict.fromkeys(_dead_from(user, _DEAD)))
    return tuple(found)


def _dead_from(node: ir.Node, depth: int) -> Iterator[ir.Node]:
    """Yield ``node`` and what reads it where no end of it is read."""
    behind: list[ir.Node] = []
    for output in node.outputs:
        if output.is_graph_output():
            return
        for user, _ in output.uses():
            dead = tuple(_dead_from(user, depth - 1)) if depth else ()
            if not dead:
                return
            behind += dead
    yield node
    yield from behind
