"""Emitters: from a NormSite to the nodes of one form; one emitter a form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from normfuse.emit.automatic import best_spelling, emit_auto, runs_as_contrib
from normfuse.emit.custom import custom_operator, emit_custom
from normfuse.emit.ort import MICROSOFT, emit_ort, ort_operator, runs_as_standard
from normfuse.emit.primitive import emit_primitive
from normfuse.emit.standard import emit_standard, operator_of, takes_reshapes
from normfuse.emit.target import Form, Provider
from normfuse.emit.writing import HALVES, type_of
from normfuse.graph.editing import Replacement
from normfuse.graph.reading import is_op, is_standard
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.spec import Activation, Stored

__all__ = [
    "EMITTERS",
    "Emitter",
    "advice",
    "custom_operator",
    "emit",
    "is_written",
    "says_the_same",
]

_CAST = ("", "Cast")

Emitter = Callable[[NormSite, Reading, int, Provider], Replacement | Declined | None]

EMITTERS: dict[Form, Emitter] = {
    Form.AUTO: emit_auto,
    Form.STANDARD: lambda site, reading, opset, _: emit_standard(site, reading, opset),
    Form.CUSTOM: emit_custom,
    Form.ORT: emit_ort,
    Form.PRIMITIVE: lambda site, reading, opset, _: emit_primitive(site, reading, opset),
}


def emit(
    site: NormSite,
    form: Form,
    reading: Reading,
    opset: int,
    provider: Provider = Provider.CPU,
    *,
    native: bool = False,
) -> Replacement | Declined | None:
    """Return ``site`` written anew in ``form`` with the operators of ``opset``; decides, changes nothing.

    native: whether AUTO may count on the library of native operators.

    None where AUTO leaves it as it is. The new nodes already count as readers of their operands: apply the replacement,
    or take it back with :func:`normfuse.emit.writing.detach`.
    """
    if form is Form.AUTO and native:
        return emit_auto(site, reading, opset, provider, native=True)
    return EMITTERS[form](site, reading, opset, provider)


def is_written(
    site: NormSite,
    form: Form,
    reading: Reading,
    opset: int,
    provider: Provider = Provider.CPU,
    *,
    native: bool = False,
) -> bool:
    """Whether ``site`` is already in ``form``, so that emitting it again would only change names.

    Asked before anything is written; :func:`says_the_same` is asked after.
    """
    if isinstance(site.spec.statistics, Stored) and not any(
        is_op(node, "BatchNormalization") for node in site.interior
    ):
        return True  # arithmetic on constants is right everywhere, and exact where a mean is far from zero
    if form is Form.AUTO:
        return best_spelling(site, reading, opset, provider, native=native) is None
    if form is Form.CUSTOM and custom_operator(site, opset, reading.ranks.of(site.operands.x)) is not None:
        return all(node.domain == "ai.normfuse" for node in site.interior)
    if form is Form.ORT and runs_as_contrib(site, provider):
        return True
    if form is Form.ORT:
        operator = ort_operator(site, reading, opset)
        if operator is not None:
            return site.root.op_type == operator and operator != "GroupNorm" and len(site.interior) == 1
        if not runs_as_standard(site, opset, provider):
            return False
    return form is not Form.PRIMITIVE and _is_standard(site, opset)


def _is_standard(site: NormSite, opset: int) -> bool:
    if site.spec.activation is not Activation.NONE or site.operands.residual is not None:
        return False
    if not all(is_standard(node) for node in site.interior):
        return False
    root, operators = site.root, {node.op_type for node in site.interior}
    if "Reshape" in operators:
        return operator_of(site, opset) == "InstanceNormalization" and takes_reshapes(site)
    if root.op_type == "GroupNormalization":
        return opset >= 21  # also with as many groups as channels: an InstanceNormalization is no gain
    return root.op_type == operator_of(site, opset)


_STRUCTURAL = frozenset("Constant Identity Shape Gather Slice Concat Squeeze Unsqueeze CastLike".split())
"""Operators that carry shapes and names, not numbers: how many of them a spelling has says nothing."""


def says_the_same(site: NormSite, replacement: Replacement) -> bool:
    """Whether ``replacement`` computes with the operators that ``site`` has: then nothing is gained, and it stays.

    Casts count as present or absent: a half type whose statistics were not widened before is written anew.
    """
    old, new = (
        Counter((node.domain, node.op_type) for node in nodes if node.op_type not in _STRUCTURAL)
        for nodes in (site.interior, replacement.adds)
    )
    casts, widens = old.pop(_CAST, 0), new.pop(_CAST, 0)
    return old == new and (casts > 0 or widens == 0)


def advice(site: NormSite, form: Form, reading: Reading, opset: int, provider: Provider) -> str | None:
    """Return what a user should know of ``site`` in ``form`` on ``provider``, where the form is not the best there."""
    if form is Form.STANDARD and provider is Provider.CPU and operator_of(site, opset) == "GroupNormalization":
        return (
            "GroupNormalization on onnxruntime's CPU is inlined: 5-16 times a copy of the tensor, and NaN at mean/std "
            "1e4; --form auto avoids it"
        )
    if form is not Form.ORT or site.operands.residual is None:
        return None
    operator = ort_operator(site, reading, opset)
    if operator is None or not operator.startswith("Skip"):
        return None
    if type_of(site) in HALVES:
        return (
            f"{MICROSOFT} {operator} in a half type differs from Add and norm at large magnitudes "
            "(microsoft/onnxruntime 17689, 29034): validate with inputs of the size that you expect"
        )
    if provider is Provider.CPU and operator == "SkipLayerNormalization":
        return (
            f"{MICROSOFT} {operator} is 4-8 times slower than Add and LayerNormalization on onnxruntime's CPU from 1.28 on; "
            "--form auto leaves them"
        )
    return None
