"""Norms written in primitive operators, recognised by what they compute.

Every mean in a graph proposes its x. What is computed from that x and parameters alone is read as terms; the last
value whose term is a norm, and whose inner values nobody else needs, is the result. What only looks like a norm, or
cannot go, is declined with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace

import onnx_ir as ir

from normfuse.graph.channels import channels
from normfuse.graph.editing import removal_refusal
from normfuse.graph.reading import is_op
from normfuse.graph.site import LIFTS, Declined, NormSite, Operands, Reading
from normfuse.recognise.affine_operands import Row, affine_of, rows_of
from normfuse.recognise.cone import read_cone
from normfuse.recognise.core import Core, NearMiss, core_of
from normfuse.recognise.followers import with_following_affine
from normfuse.recognise.grouped import grouped_rows, view_of, within_casts
from normfuse.recognise.interior import interior_of
from normfuse.recognise.parameters import Parameters
from normfuse.recognise.proposals import proposals
from normfuse.recognise.reader import Reader
from normfuse.recognise.saved import saved_statistics, unread_readers
from normfuse.recognise.terms import Mean, Term, X
from normfuse.recognise.vocabulary import REDUCTIONS
from normfuse.spec import AffineAxes, AffineLayout, ComputeType, NormSpec, PerChannel, PerGroup, Trailing

_CLASH = "a mean without kept dimensions broadcasts along another axis than it averages over"
_COMPUTE_TYPES = {
    ir.DataType.FLOAT16: ComputeType.FLOAT16,
    ir.DataType.BFLOAT16: ComputeType.BFLOAT16,
    ir.DataType.FLOAT: ComputeType.FLOAT,
    ir.DataType.DOUBLE: ComputeType.DOUBLE,
}


@dataclass(frozen=True, slots=True)
class _Finding:
    """A norm, or why it is none, with the nodes that need not be asked again."""

    result: NormSite | Declined
    nodes: tuple[ir.Node, ...]


def find_decomposed(
    graph: Iterable[ir.Node], reading: Reading, claimed: Set[ir.Node]
) -> tuple[NormSite | Declined, ...]:
    """Return the norms of one graph that are written in primitive operators, in the order of their results.

    claimed: nodes that belong to norms already found. Spellings that lose digits (E[x²] − E[x]²) are lifted only where
    ``reading`` says so. Linear in the size of the graph.
    """
    nodes = list(graph)
    if not any(node.op_type in REDUCTIONS for node in nodes):
        return ()
    order = {node: position for position, node in enumerate(nodes)}
    parameters = Parameters(nodes, reading)
    taken = set(claimed)
    tried: set[ir.Value] = set()
    found: list[_Finding] = []
    for node in nodes:
        if node in taken or not is_op(node, *REDUCTIONS):
            continue
        for x in proposals(node):
            if x in tried or parameters.holds(x) or node in taken:
                continue
            tried.add(x)
            for finding in _norms_of(read_cone(x, reading, parameters, order, taken), order):
                found.append(finding)
                taken.update(finding.nodes)
    found.sort(key=lambda finding: order[_place(finding.result)])
    return tuple(finding.result for finding in found)


def _place(result: NormSite | Declined) -> ir.Node:
    return result.root if isinstance(result, NormSite) else result.at


def _norms_of(reader: Reader, order: Mapping[ir.Node, int]) -> list[_Finding]:
    """Return the norms of one x."""
    cores: list[tuple[ir.Node, Core]] = []
    misses: list[tuple[ir.Node, str]] = []
    scaled: list[tuple[ir.Node, str]] = []
    objections: list[tuple[ir.Node, str]] = []
    for value, known in reader.known.items():
        node = value.producer()
        factors = known.term.factors
        if node is None or known.missing or not reader.terms.varies(factors) or not reader.terms.is_rooted(factors):
            continue
        result = core_of(known.term, reader.terms)
        if isinstance(result, NearMiss):
            (scaled if result.is_scaled else misses).append((node, result.reason))
        elif result is not None and known.clashes:
            misses.append((node, _CLASH))
        elif result is not None and result.flag is not None and not reader.reading.lift_flagged:
            misses.append((node, f"{result.flag} {LIFTS}"))
        elif result is not None:
            cores.append((node, result))
    found: list[_Finding] = []
    taken: set[ir.Node] = set()
    for node, core in reversed(cores):
        if node in taken:
            continue
        site = _site(node, core, reader, order)
        if isinstance(site, NormSite) and not taken.intersection(site.interior):
            found.append(_Finding(site, site.interior))
            taken.update(site.interior)
        elif isinstance(site, str):
            objections.append((node, site))
    # An objection to a norm counts before what only looks like one: of objections the innermost, of looks the last.
    for node, reason in (*reversed(objections), *reversed(misses), *reversed(scaled)):
        nodes = interior_of(node, reader, order).nodes
        statistics = {each for each in nodes if each.op_type in REDUCTIONS}
        if not taken & statistics:
            found.append(_Finding(Declined(reason, node, nodes), nodes))
            taken |= set(nodes)
    return found


def _site(root: ir.Node, core: Core, reader: Reader, order: Mapping[ir.Node, int]) -> NormSite | str:
    """Return the norm with the result of ``root``; else why it cannot go."""
    interior = interior_of(root, reader, order)
    unread = unread_readers(interior.nodes, root)
    if unread:
        interior = replace(interior, nodes=(*interior.nodes, *unread))
    objection = removal_refusal(interior.nodes, {root.outputs[0]})
    saved = None if objection is None else saved_statistics(interior.nodes, root, core, reader)
    if saved is not None:
        interior = replace(interior, nodes=(*interior.nodes, *saved.nodes))
        objection = removal_refusal(interior.nodes, {root.outputs[0], saved.mean, saved.inverse_deviation})
    if objection is not None:
        return objection.reason
    rows = rows_of(core, reader, interior.x, set(interior.nodes))
    if isinstance(rows, str):
        return rows
    spec = NormSpec(
        Trailing(core.axes), core.epsilon, centred=core.centred, compute_type=_compute_type(core, interior.x, reader)
    )
    spelling = "·".join(node.op_type for node in interior.nodes)
    plain = NormSite(spec, Operands(interior.x), spelling, root, interior.nodes, flag=core.flag)
    if saved is not None:
        extra = (saved.mean, saved.inverse_deviation)
        plain = replace(plain, extra_outputs=extra, mean=saved.mean, inverse_deviation=saved.inverse_deviation)
    grouped = _of_groups(plain, rows, core, reader) if core.centred and saved is None else None
    if grouped is not None:
        return grouped
    affine = affine_of(rows, core.axes, interior.x, reader.rank, centred=core.centred)
    if isinstance(affine, str):
        return affine
    layout = affine.layout
    described = replace(
        spec,
        statistics=layout.statistics,
        affine=AffineLayout(affine.scale is not None, affine.bias is not None, layout.affine),
        channel_axis=layout.channel_axis,
    )
    return replace(plain, spec=described, operands=Operands(interior.x, affine.scale, affine.bias))


def _of_groups(site: NormSite, rows: tuple[Row | None, Row | None], core: Core, reader: Reader) -> NormSite | None:
    """Return the norm of channel groups of which ``site`` is the norm of the view; None where there is no view."""
    viewed, rank = site.operands.x, reader.rank
    view = view_of(viewed, site.output, core.axes, reader.reading)
    if view is None or rank is None:
        return None
    operands = grouped_rows(rows, view, viewed, rank)
    if operands is None:
        return None
    axes, scale, bias = operands
    statistics = PerChannel() if view.groups == channels(view.x, view.channel_axis) else PerGroup(view.groups)
    axes = AffineAxes.CHANNEL if isinstance(statistics, PerChannel) else axes
    spec = replace(
        site.spec,
        statistics=statistics,
        affine=AffineLayout(scale is not None, bias is not None, axes),
        channel_axis=view.channel_axis,
    )
    interior = (*view.leaving(site.interior), *site.interior, view.back)
    spelling = f"Reshape·{site.spelling}·Reshape"
    found = NormSite(spec, Operands(view.x, scale, bias), spelling, view.back, interior, flag=site.flag)
    return within_casts(with_following_affine(found, reader.reading))


def _compute_type(core: Core, x: ir.Value, reader: Reader) -> ComputeType:
    """Return the narrowest type of a statistic; INPUT where it is that of x or nothing is stated."""
    means = [core.mean]
    if core.centred:
        mean: Term | None = reader.terms.mean(X, core.axes)
        assert mean is not None
        means.append(mean.factors[0][0])
    stated = [reader.mean_types.get(number) for number in means if isinstance(reader.terms.base(number), Mean)]
    types = [dtype for dtype in stated if dtype is not None]
    own = reader.known[x].dtype if x in reader.known else x.dtype
    if not types or own is None:
        return ComputeType.INPUT
    narrowest = min(types, key=lambda dtype: dtype.itemsize)
    return ComputeType.INPUT if narrowest == own else _COMPUTE_TYPES[narrowest]
