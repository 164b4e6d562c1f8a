"""Write norms anew in one form.

Everything is decided before anything is done: sites hold values of the graph as it was read, and the new nodes, which
already read those values, follow when an earlier norm of the same graph is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

import onnx_ir as ir

from normfuse.emit import custom_operator, emit, is_written, says_the_same
from normfuse.emit.automatic import best_spelling
from normfuse.emit.custom import emit_custom, has_choice, is_widened
from normfuse.emit.kernels import Spelling
from normfuse.emit.target import Form, Provider
from normfuse.emit.writing import detach, is_detached
from normfuse.graph.editing import Editor, Replacement, describe, refusal
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.recognise import find_norms
from normfuse.recognise.surroundings import with_activation, with_residual
from normfuse.report.records import Rewrite


def lower_norms(
    graph: ir.Graph | ir.Function,
    sites: Sequence[NormSite],
    form: Form,
    reading: Reading,
    editor: Editor,
    wanted: Callable[[str], bool],
    provider: Provider = Provider.CPU,
    names: Mapping[ir.Node, str] | None = None,
    spared: Callable[[ir.Node], bool] = lambda _: False,
    *,
    native: bool = False,
) -> tuple[list[Rewrite], list[Declined]]:
    """Write the ``sites`` of ``graph`` in ``form``; return what was done, and what was left alone and why.

    sites: as :func:`find_norms` read them; those whose operands a fold has replaced meanwhile are read again.
    A norm that is already in ``form`` stays as it is, so doing this twice changes nothing.
    wanted: whether the rewrite of that id is selected. names: those of the norms, by root, of which ids are made; where
    there are none, the name of the norm's output. spared: whether a node around a norm is to be left alone.
    native: whether AUTO may count on the native operators.
    """
    names = names or {}
    decided: list[tuple[NormSite, str, Replacement]] = []
    declined: list[Declined] = []
    current = current_sites(graph, sites, reading)
    claimed = {node for site in current for node in site.interior}
    for site in current:
        rewrite_id = f"emit:{names.get(site.root, site.output.name)}"
        if site.root.graph is not graph or not wanted(rewrite_id):
            continue
        if form is Form.CUSTOM or (form is Form.AUTO and native):
            # Asked of the grown norm: a small tensor may be worth one call for two.
            grown = _grown(site, reading, claimed, spared)
            best = best_spelling(grown, reading, reading.opset, provider, native=native)
            if form is Form.CUSTOM or best is Spelling.NATIVE:
                site = grown
                claimed |= set(grown.interior)
        if is_written(site, form, reading, reading.opset, provider, native=native):
            continue
        replacement = emit(site, form, reading, reading.opset, provider, native=native)
        if isinstance(replacement, Declined):
            declined.append(replacement)
        elif replacement is not None and says_the_same(site, replacement):
            detach(replacement.adds)
        elif replacement is not None:
            decided.append((site, rewrite_id, replacement))
    decided = _of_one_type(decided, reading, editor, provider)
    rewrites: list[Rewrite] = []
    for site, rewrite_id, replacement in decided:
        objection = refusal(replacement)
        if objection is not None:
            detach(replacement.adds)
            declined.append(objection)
            continue
        nodes = tuple(describe(node) for node in site.interior)
        editor.apply(replacement, site.root)
        into = tuple(describe(node) for node in replacement.adds)
        rewrites.append(Rewrite(rewrite_id, "emit", nodes, into, f"{site.spelling} as {form.value}"))
    if any(site.extra_outputs and site.operands.residual is not None for site, _, _ in decided):
        graph.sort()  # a sum is now written where the norm stands, and may be read before
    return rewrites, declined


def _grown(site: NormSite, reading: Reading, claimed: set[ir.Node], spared: Callable[[ir.Node], bool]) -> NormSite:
    """Return ``site`` with the residual before it and the activation after it, where its operator takes them in.

    claimed: the nodes of all norms, and those that norms before it took in.
    """
    for grow in (with_residual, with_activation):
        candidate = grow(site, reading)
        around = set(candidate.interior) - set(site.interior)
        if around & claimed or any(spared(node) for node in around) or _could_loop(candidate, reading):
            continue
        if grow is with_residual and is_widened(candidate, reading):
            continue  # both operands and the sum would take a Cast, x alone takes one
        if custom_operator(candidate, reading.opset, reading.ranks.of(candidate.operands.x)) is not None:
            site = candidate
    return site


def _of_one_type(
    decided: Sequence[tuple[NormSite, str, Replacement]], reading: Reading, editor: Editor, provider: Provider
) -> list[tuple[NormSite, str, Replacement]]:
    """Return ``decided`` with norms that may be of two types in that of the norms of their operator that may not.

    The name that kernels go by has room for one type (:mod:`normfuse.emit.custom`): another would run by its body.
    """
    free = {site.root for site, _, written in decided if written.functions and has_choice(site, reading)}
    taken = {
        function.name: function
        for site, _, written in reversed(decided)
        for function in written.functions
        if site.root not in free
    }
    fitting: list[tuple[NormSite, str, Replacement]] = []
    for site, rewrite_id, written in decided:
        if site.root in free and not all(editor.keeps_name(each, taken.get(each.name)) for each in written.functions):
            wider = emit_custom(site, reading, reading.opset, provider, narrow=False)
            if not isinstance(wider, Declined):
                detach(written.adds)
                fitting.append((site, rewrite_id, wider))
                continue
        fitting.append((site, rewrite_id, written))
    return fitting


def _could_loop(site: NormSite, reading: Reading) -> bool:
    """Whether γ or β may be computed from an extra output of ``site``, which would then read itself."""
    parameters = (site.operands.scale, site.operands.bias)
    return bool(site.extra_outputs) and any(
        value is not None and value.producer() is not None and reading.constants.array(value) is None
        for value in parameters
    )


def current_sites(graph: ir.Graph | ir.Function, sites: Sequence[NormSite], reading: Reading) -> list[NormSite]:
    """Return ``sites`` with the values that their nodes read now; a norm that is no longer one is left out."""
    if all(_is_current(site) for site in sites):
        return list(sites)
    found = find_norms(graph, reading)
    fresh = {site.root: site for site in found if isinstance(site, NormSite)}
    return [fresh[site.root] for site in sites if site.root in fresh]


def _is_current(site: NormSite) -> bool:
    """Whether the nodes of ``site`` still read its operands, constants of the recogniser's own making aside."""
    read = {value for node in site.interior for value in node.inputs}
    operands = (getattr(site.operands, field.name) for field in fields(site.operands))
    return all(value is None or value in read or is_detached(value) for value in operands)
