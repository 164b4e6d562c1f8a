"""The ``auto`` form: the fastest spelling that is exact on the provider, by the measured table; else the norm stays.

It writes standard operators, each with a kernel on the provider, and elementary ones that the provider fuses where the
opset has no operator; operators of ``ai.normfuse`` only where the library that has their kernels was found (``native``)
and the tensor is not known to be so small that their call costs more than they save; and never another that
onnx.checker does not know.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from normfuse.emit.custom import emit_custom, has_plain_name
from normfuse.emit.fusible import emit_fusible, is_fused, is_fusible
from normfuse.emit.kernels import Spelling, fastest, has_kernel, is_timed, is_worth_its_call, native_wins
from normfuse.emit.primitive import emit_primitive
from normfuse.emit.standard import emit_reshaped, emit_standard, operator_of
from normfuse.emit.target import Provider
from normfuse.emit.writing import channel_count, sizes_of, type_of
from normfuse.graph.editing import Replacement
from normfuse.graph.reading import is_standard
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.spec import Activation, AffineAxes, PerChannel, PerGroup, Stored, Trailing, canonical
from normfuse.spec import kind as kind_of

_MICROSOFT = "com.microsoft"
_NATIVE = frozenset(
    "BatchNormalization InstanceNormalization GroupNormalization LayerNormalization RMSNormalization "
    "SimplifiedLayerNormalization".split()
)


def emit_auto(
    site: NormSite, reading: Reading, opset: int, provider: Provider, *, native: bool = False
) -> Replacement | Declined | None:
    """Write ``site`` in its fastest spelling on ``provider``; None where it stays."""
    spelling = best_spelling(site, reading, opset, provider, native=native)
    if spelling is Spelling.NATIVE:
        return emit_custom(site, reading, opset, provider)
    if spelling is Spelling.RESHAPED:
        return emit_reshaped(site, reading, opset)
    if spelling is Spelling.PRIMITIVE:
        return emit_primitive(site, reading, opset)
    if spelling is Spelling.FUSIBLE:
        return emit_fusible(site, reading, opset)
    return None if spelling is None else emit_standard(site, reading, opset)


def best_spelling(
    site: NormSite, reading: Reading, opset: int, provider: Provider, *, native: bool = False
) -> Spelling | None:
    """Return the spelling that ``auto`` wants for ``site``; None where it stays: already right, or nothing known."""
    own = type_of(site)
    if own is None or isinstance(site.spec.statistics, Stored):
        return None
    if any(node.domain == "ai.normfuse" for node in site.interior) or runs_as_contrib(site, provider):
        return None
    kind = _kind(site, reading)
    spelling = fastest(kind, own, provider)
    fuses = provider is Provider.CPU and is_fusible(site, opset)
    beside = operator_of(site, opset) if spelling is Spelling.OPERATOR else None
    wins = native_wins(kind, own, provider, alone=spelling is Spelling.OPERATOR and beside is None)
    if native and wins and has_plain_name(site, opset, reading.ranks.of(site.operands.x)):
        has_rival = (
            spelling is not Spelling.OPERATOR or fuses or (beside is not None and has_kernel(beside, own, provider))
        )
        if not has_rival or _is_worth_its_call(site, kind, own, provider):
            return Spelling.NATIVE
    operators = {node.op_type for node in site.interior if is_standard(node)}
    if fuses:
        return None if is_fused(site) or operators & _NATIVE else Spelling.FUSIBLE
    if spelling is Spelling.PRIMITIVE:
        is_slow = bool(_runs_in(site) & {own, None}) and is_timed(operators, opset, provider)
        return spelling if is_slow else None
    if spelling is Spelling.RESHAPED:
        affine = site.spec.affine
        by_two = affine.scale and affine.bias and affine.axes is AffineAxes.CHANNEL
        done = {"Reshape", "InstanceNormalization", *(("BatchNormalization",) if by_two else ())}
        return None if done <= operators else spelling
    # Where the opset has no operator, elementary ones would only be written in another way.
    operator = operator_of(site, opset)
    if operator is None or not has_kernel(operator, own, provider):
        return None
    return None if operator in operators and "Reshape" not in operators else spelling


def _runs_in(site: NormSite) -> set[ir.DataType | None]:
    """Return the types of what the operators of ``site`` normalise: float32 between Casts of a half type."""
    operators = [node for node in site.interior if is_standard(node) and node.op_type in _NATIVE]
    return {None if node.inputs[0] is None else node.inputs[0].dtype for node in operators}


def _kind(site: NormSite, reading: Reading) -> str:
    """Return instance, group, layer or rms, of the canonical norm: as many groups as channels are an instance norm."""
    rank = reading.ranks.of(site.operands.x)
    if rank == 2 and isinstance(site.spec.statistics, Trailing):
        return kind_of(site.spec)  # a group norm in one group too: InstanceNormalization does not take rank 2
    statistics = canonical(site.spec, channels=channel_count(site), rank=rank).statistics
    if isinstance(statistics, PerChannel) and rank != 2:
        return "instance"
    return "group" if isinstance(statistics, PerGroup) else kind_of(site.spec)


def _is_worth_its_call(site: NormSite, kind: str, own: ir.DataType, provider: Provider) -> bool:
    """Whether the tensor is large enough for a native operator; unknown sizes are taken to be."""
    x, statistics = site.operands.x, site.spec.statistics
    rank = 0 if x.shape is None else x.shape.rank()
    last = not isinstance(statistics, Trailing) and site.spec.channel_axis == -1
    beside = len(statistics.axes) if isinstance(statistics, Trailing) else 1 if last else rank - 2
    line = sizes_of(x, beside) if 0 < beside < rank else None
    if line is None:
        return True
    sizes = sizes_of(x, rank)
    length = math.prod(line)
    lines = None if sizes is None else math.prod(sizes) // max(length, 1)
    joined = site.operands.residual is not None or site.spec.activation is not Activation.NONE
    return is_worth_its_call(kind, own, provider, joined=joined, last=last, lines=lines, length=length)


def runs_as_contrib(site: NormSite, provider: Provider) -> bool:
    """Whether ``site`` is an operator of onnxruntime's own that has a kernel: its author chose it."""
    own = type_of(site)
    foreign = [node for node in site.interior if node.domain == _MICROSOFT]
    return (
        own is not None
        and bool(foreign)
        and all(has_kernel(f"{_MICROSOFT}.{node.op_type}", own, provider) for node in foreign)
    )
