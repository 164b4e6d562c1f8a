"""The ``ort`` form: onnxruntime's own operators, where the chosen provider has their kernel.

SkipLayerNormalization and SkipSimplifiedLayerNormalization take the residual (com.microsoft). Below the opsets that
brought LayerNormalization (17) and RMSNormalization (23) onnxruntime keeps LayerNormalization and
SimplifiedLayerNormalization in the default domain, where onnx.checker does not know them. Everything else is written
in its standard form.
A norm of groups would be GroupNorm, which onnxruntime has for GPUs only: it is declined by name, and stays.

Source: onnxruntime docs/ContribOperators.md, contrib_ops/bert_defs.cc (1.32); kernels as measured (kernels.py).
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from normfuse.emit.kernels import has_kernel
from normfuse.emit.primitive import emit_primitive, total
from normfuse.emit.standard import emit_standard, operator_of
from normfuse.emit.target import Provider
from normfuse.emit.writing import (
    Draft,
    channel_count,
    copied,
    lies_along,
    output_type,
    role,
    type_of,
    unwritable,
    wide_type,
)
from normfuse.graph.editing import Replacement
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.spec import AffineAxes, ComputeType, PerGroup, Trailing, canonical

MICROSOFT = "com.microsoft"
_DEFAULT_DOMAIN = ("LayerNormalization", "SimplifiedLayerNormalization")


def emit_ort(site: NormSite, reading: Reading, opset: int, provider: Provider) -> Replacement | Declined:
    """Write ``site`` with the operators that onnxruntime has a kernel for on ``provider``."""
    objection = unwritable(site, opset)
    if objection is not None:
        return objection
    dtype, operator = _type(site), ort_operator(site, reading, opset)
    if operator is None:
        runs = runs_as_standard(site, opset, provider)
        return emit_standard(site, reading, opset) if runs else emit_primitive(site, reading, opset)
    name = operator if operator in _DEFAULT_DOMAIN else f"{MICROSOFT}.{operator}"
    if not has_kernel(name, dtype, provider):
        return Declined(_no_kernel(name, dtype, provider), site.root)
    return _emit(site, Draft(opset, reading.constants), operator, dtype)


def runs_as_standard(site: NormSite, opset: int, provider: Provider) -> bool:
    """Whether the standard form of ``site`` is no operator that is known to have no kernel on ``provider``."""
    operator = operator_of(site, opset)
    if operator is None or provider is not Provider.CPU or type_of(site) is None:
        return True
    return has_kernel(operator, _type(site), provider)


def ort_operator(site: NormSite, reading: Reading, opset: int) -> str | None:
    """Return the operator of onnxruntime's that says ``site``; None where the standard form does."""
    spec, rank = site.spec, reading.ranks.of(site.operands.x)
    statistics = canonical(spec, channels=channel_count(site), rank=rank).statistics
    if isinstance(statistics, PerGroup) or (rank == 2 and isinstance(spec.statistics, PerGroup)):
        return "GroupNorm"
    if not isinstance(statistics, Trailing) or statistics.axes != tuple(range(-len(statistics.axes), 0)):
        return None
    along = spec.affine.scale and spec.affine.axes is AffineAxes.NORMALISED
    saved = any(role(site, output) != "sum" for output in site.extra_outputs)
    if not along or not lies_along(site) or saved or (spec.affine.bias and not spec.centred):
        return None  # the kernels compute no saved statistics
    if statistics.axes == (-1,) and _takes_residual(site, reading, rank):
        return "SkipLayerNormalization" if spec.centred else "SkipSimplifiedLayerNormalization"
    if spec.centred:
        return "LayerNormalization" if opset < 17 else None
    # RMSNormalization-23 has no kernel for bfloat16.
    return "SimplifiedLayerNormalization" if opset < 23 or _type(site) == ir.DataType.BFLOAT16 else None


def _takes_residual(site: NormSite, reading: Reading, rank: int | None) -> bool:
    """Whether x and residual are of one shape of two or three axes, as the kernel demands, and γ and β vectors."""
    x, residual = site.operands.x, site.operands.residual
    if residual is None or rank not in (2, 3) or x.shape is None or residual.shape != x.shape:
        return False
    if site.operands.residual_bias is not None and not _is_vector(site.operands.residual_bias, reading):
        return False
    return all(value is None or _is_vector(value, reading) for value in (site.operands.scale, site.operands.bias))


def _is_vector(value: ir.Value | None, reading: Reading) -> bool:
    """Whether ``value`` is of rank 1 but for leading axes of size one (microsoft/onnxruntime 27455)."""
    if value is None:
        return False
    if value.shape is not None:
        return value.shape.rank() >= 1 and all(size == 1 for size in list(value.shape)[:-1])
    return reading.ranks.of(value) == 1


def _type(site: NormSite) -> ir.DataType:
    """Return the type in which the operator runs: that of x, or a wider one where an operand, statistics or the result are."""
    own, operands = type_of(site), site.operands
    assert own is not None
    values = (operands.scale, operands.bias, operands.residual, operands.residual_bias)
    wider = any(value is not None and value.dtype not in (None, own) for value in values) or output_type(site) != own
    return wide_type(site) if wider or site.spec.compute_type is ComputeType.DOUBLE else own


def _no_kernel(name: str, dtype: ir.DataType, provider: Provider) -> str:
    words = name.replace(f"{MICROSOFT}.", f"{MICROSOFT} ")
    if provider is not Provider.CPU:
        return f"no kernel for {words} is known of onnxruntime's {provider.value.upper()} provider"
    of_type = "" if name.endswith("GroupNorm") else f" of {dtype.name.lower()}"
    return f"onnxruntime's CPU provider has no kernel for {words}{of_type}"


def _emit(site: NormSite, draft: Draft, operator: str, dtype: ir.DataType) -> Replacement:
    spec, operands = site.spec, site.operands
    assert isinstance(spec.statistics, Trailing)
    skips = operator.startswith("Skip")
    vectors = (operands.scale, operands.bias) if spec.centred else (operands.scale,)
    if skips:
        assert operands.residual is not None
        x = draft.cast(operands.x, dtype)
        leading = [x, draft.cast(operands.residual, dtype)]
        vectors = (*vectors, operands.residual_bias)
    else:
        x = total(site, draft, dtype)
        leading = [x]
    parameters = [None if v is None else draft.cast(v, dtype) for v in vectors]
    if len(spec.statistics.axes) == 1:
        parameters = [None if v is None else draft.reshaped(v, (-1,)) for v in parameters]
    while parameters[-1] is None:
        parameters.pop()
    # The Skip operators always take the last axis.
    axis: dict[str, Any] = {} if skips else {"axis": -len(spec.statistics.axes)}
    y = draft.op(
        operator,
        *leading,
        *parameters,
        domain=MICROSOFT if skips else "",
        outputs=4 if skips and site.extra_outputs else 1,
        epsilon=spec.epsilon,
        **axis,
    )
    node = y.producer()
    assert node is not None
    y.shape = copied(operands.x.shape)
    y = draft.activated(y, spec.activation, spec.slope)
    stated = output_type(site)
    rewires = [(site.output, y if stated is None else draft.cast(y, stated))]
    for output in node.outputs[1:3]:
        output.name = ""  # the statistics, for training only
    added = node.outputs[3] if skips and site.extra_outputs else x
    rewires += [(out, added if out.dtype is None else draft.cast(added, out.dtype)) for out in site.extra_outputs]
    return draft.replacement(site, rewires, domains=((MICROSOFT, 1),) if skips else ())
