"""The ``custom`` form: one node of domain ``ai.normfuse``, and its body as a function in the model.

Operators of version 1. A name says everything but numbers, so that one name has one signature:
``[Add](GroupNorm | InstanceNorm | LayerNorm | RMSNorm)[Relu | Silu | Gelu][ChannelsLast][WithSum]``.

| part | meaning |
|---|---|
| ``Add`` | the norm is of ``x + residual``, an input of the shape of x |
| ``GroupNorm``, ``InstanceNorm`` | x is (N, C, *positions); scale and bias are (C) |
| ``LayerNorm``, ``RMSNorm`` | the axes from ``axis`` on; scale and bias have exactly their sizes: x.shape[axis:] |
| ``Relu``, ``Silu``, ``Gelu`` | the activation of the result; GELU is the exact one, with the error function |
| ``ChannelsLast`` | of group and instance norms: x is (N, *positions, C) |
| ``WithSum`` | with ``Add``: a second output, ``x + residual`` in the type of x |

Inputs (x, scale, bias), (x, residual, scale, bias) with ``Add``; RMSNorm has no bias. All are there, and of the type of x:
float16, bfloat16, float32 or float64; half types are computed in float32. Attributes: ``epsilon`` (float) of all;
``num_groups`` (int) of GroupNorm; ``axis`` (int, negative or not) of LayerNorm and RMSNorm. Outputs (y), or
(y, sum) with ``WithSum``.

onnxruntime takes a kernel registered under that name, else the body; so does no other runtime need to know the domain
(measured with onnxruntime 1.17 to 1.32). Two norms of one operator whose bodies differ (another type or opset, or below
opset 12 other attributes) cannot both have its name: onnx.reference ignores overloads, and onnxruntime does not find one
inside a function. The first in the model has it; the body of another goes by ``OPERATOR_key``, which has no kernel. So
does a norm without scale or bias whose sizes are not known to fill in ones and zeros; there positions stay, empty.
A norm that no operator here says is written in its standard form; a leaky ReLU follows as a node of its own, so that
the norm before it keeps its kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.emit.functions import CONSTANTS_REFER, DOMAIN, SUFFIXES, VERSION, Signature, body, literals
from normfuse.emit.kernels import has_kernel, is_timed
from normfuse.emit.standard import emit_standard, per_channel
from normfuse.emit.target import Provider
from normfuse.emit.writing import (
    HALVES,
    OLDEST_OPSET,
    Draft,
    channel_count,
    copied,
    lies_along,
    output_type,
    role,
    sizes_of,
    type_of,
    unwritable,
    wide_type,
)
from normfuse.graph.constants import Constants
from normfuse.graph.editing import Replacement
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.spec import Activation, AffineAxes, ComputeType, PerChannel, PerGroup, Trailing, canonical

_TRAILING = ("LayerNorm", "RMSNorm")
_CHANNELS = ("GroupNorm", "InstanceNorm")


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator of ai.normfuse with the attributes that say which norm it is."""

    name: str
    attributes: tuple[tuple[str, int], ...] = ()


def emit_custom(
    site: NormSite, reading: Reading, opset: int, provider: Provider = Provider.CPU, *, narrow: bool = True
) -> Replacement | Declined:
    """Write ``site`` as an operator of ai.normfuse with the body for models of ``opset``, 7 or newer, on ``provider``.

    narrow: whether a norm of a half type with wider parameters may take them in that type, where they fit.
    """
    objection = unwritable(site, opset)
    if objection is not None:
        return objection
    activation = site.spec.activation if site.spec.activation in SUFFIXES else Activation.NONE
    fused = replace(site, spec=replace(site.spec, activation=activation))
    operator = custom_operator(fused, opset, reading.ranks.of(site.operands.x))
    if operator is None:
        return emit_standard(site, reading, opset)
    if site.spec.affine.axes is AffineAxes.GROUP and channel_count(site) is None:
        return Declined(
            f"the number of channels of '{site.operands.x.name}' is unknown (run shape inference)", site.root
        )
    draft = Draft(opset, reading.constants)
    return _emit(site, draft, operator, activation, provider, _type(site, reading.constants, narrow=narrow))


def is_widened(site: NormSite, reading: Reading) -> bool:
    """Whether the operator of ``site`` is of a wider type than x, and stands between Casts."""
    own = type_of(site)
    return own is not None and _type(site, reading.constants) != own


def has_choice(site: NormSite, reading: Reading) -> bool:
    """Whether the operator of ``site`` may be of a half type or of float32: its parameters are float32, and fit."""
    return _type(site, reading.constants) != _type(site, reading.constants, narrow=False)


def custom_operator(site: NormSite, opset: int, rank: int | None) -> Operator | None:
    """Return the operator that is all of ``site``, its activation included.

    None where there is none: stored statistics, axes with gaps, saved statistics, a leaky ReLU.
    """
    spec = site.spec
    if spec.activation not in SUFFIXES or any(role(site, output) != "sum" for output in site.extra_outputs):
        return None
    statistics = canonical(spec, channels=channel_count(site), rank=rank).statistics
    if rank == 2 and isinstance(spec.statistics, PerGroup):
        statistics = spec.statistics  # an instance norm of one position is a constant, and no operator takes it
    if isinstance(statistics, Trailing):
        return _trailing_operator(site, opset, rank)
    if not spec.centred or (spec.affine.axes is AffineAxes.NORMALISED and (spec.affine.scale or spec.affine.bias)):
        return None
    if isinstance(statistics, PerGroup):
        return Operator("GroupNorm", (("num_groups", statistics.groups),))
    return Operator("InstanceNorm") if isinstance(statistics, PerChannel) else None


def has_plain_name(site: NormSite, opset: int, rank: int | None) -> bool:
    """Whether ``site`` is an operator under the name that kernels go by, whatever else the model holds.

    Its operands are there or can be filled in, and the body does not hold numbers that another one might hold too.
    """
    operator, affine = custom_operator(site, opset, rank), site.spec.affine
    if operator is None or opset < CONSTANTS_REFER or (affine.bias and operator.name == "RMSNorm"):
        return False
    if affine.scale and (affine.bias or operator.name == "RMSNorm"):
        return True
    known = normalised_sizes(site) if operator.name in _TRAILING else channel_count(site)
    return known is not None


def _has_instance_kernel(opset: int, provider: Provider) -> bool:
    """Whether InstanceNormalization runs on ``provider`` in float32, or might: a body computes in that, or by means."""
    operator = "InstanceNormalization"
    return has_kernel(operator, ir.DataType.FLOAT, provider) or not is_timed({operator}, opset, provider)


def _trailing_operator(site: NormSite, opset: int, rank: int | None) -> Operator | None:
    spec = site.spec
    assert isinstance(spec.statistics, Trailing)
    axis = -len(spec.statistics.axes)
    if spec.statistics.axes != tuple(range(axis, 0)):
        return None
    if (spec.affine.scale or spec.affine.bias) and (
        spec.affine.axes is not AffineAxes.NORMALISED or normalised_sizes(site) is None or not lies_along(site)
    ):
        return None
    if opset < 11:
        # The body's Flatten takes negative axes from version 11 on.
        if rank is None:
            return None
        axis += rank
    return Operator("LayerNorm" if spec.centred else "RMSNorm", (("axis", axis),))


def _emit(
    site: NormSite, draft: Draft, operator: Operator, activation: Activation, provider: Provider, dtype: ir.DataType
) -> Replacement:
    spec, operands = site.spec, site.operands
    x = draft.cast(operands.x, dtype)
    residual = operands.residual
    for addend in (operands.residual_bias, None if residual is None or _same_shape(residual, operands.x) else residual):
        if addend is not None:
            x = draft.op("Add", x, draft.cast(addend, dtype))
            x.shape = copied(operands.x.shape)
    if residual is not None and not _same_shape(residual, operands.x):
        residual = None
    scale, bias = _parameters(site, draft, dtype, operator)
    trailing = operator.name in _TRAILING
    numbers: dict[str, int | float] = {**dict(operator.attributes), "epsilon": spec.epsilon}
    signature = Signature(
        operator.name,
        draft.opset,
        dtype,
        scale=scale is not None,
        bias=bias is not None,
        residual=residual is not None,
        sum=residual is not None and bool(site.extra_outputs),
        activation=activation,
        channels_last=spec.channel_axis == -1 and not trailing,
        literals=literals(draft.opset, numbers),
        by_means=operator.name in _CHANNELS and not _has_instance_kernel(draft.opset, provider),
    )
    values = {"x": x, "residual": residual and draft.cast(residual, dtype), "scale": scale, "bias": bias}
    inputs = [values[name] for name in signature.inputs]
    while inputs[-1] is None:
        inputs.pop()
    function = body(signature)
    attributes: dict[str, Any] = {**numbers}
    y = draft.op(
        function.name, *inputs, domain=DOMAIN, overload=function.overload, outputs=1 + signature.sum, **attributes
    )
    node = y.producer()
    assert node is not None
    for output in node.outputs:
        output.shape = copied(x.shape)
    total = node.outputs[1] if signature.sum else x
    if activation is not spec.activation:
        y = draft.activated(y, spec.activation, spec.slope)
    stated = output_type(site)
    rewires = [(site.output, y if stated is None else draft.cast(y, stated))]
    rewires += [
        (output, total if output.dtype is None else draft.cast(total, output.dtype)) for output in site.extra_outputs
    ]
    return draft.replacement(site, rewires, functions=(function,), domains=((DOMAIN, VERSION),))


def _parameters(
    site: NormSite, draft: Draft, dtype: ir.DataType, operator: Operator
) -> tuple[ir.Value | None, ir.Value | None]:
    """Return γ and β as the operator takes them; ones and zeros where the norm has none and their sizes are known."""
    affine, trailing = site.spec.affine, operator.name in _TRAILING
    channels = channel_count(site)
    sizes = normalised_sizes(site) if trailing else None if channels is None else (channels,)
    given: list[ir.Value | None] = []
    for present, value in ((affine.scale, site.operands.scale), (affine.bias, site.operands.bias)):
        if not present or value is None:
            given.append(None)
        elif trailing:
            assert sizes is not None
            given.append(_exactly(draft, draft.cast(value, dtype), sizes))
        else:
            given.append(per_channel(site, draft, value, 0.0, dtype, channels))
    scale, bias = given
    if sizes is not None and scale is None:
        scale = draft.constant("ones", np.ones(sizes), dtype)
    if sizes is not None and bias is None and operator.name != "RMSNorm":
        bias = draft.constant("zeros", np.zeros(sizes), dtype)
    return scale, bias


def normalised_sizes(site: NormSite) -> tuple[int, ...] | None:
    """Return the sizes of the normalised axes: from x, or from a parameter, whose sizes above 1 must be those of x."""
    statistics = site.spec.statistics
    assert isinstance(statistics, Trailing)
    count = len(statistics.axes)
    sizes = sizes_of(site.operands.x, count)
    if sizes is not None:
        return sizes
    for value in (site.operands.scale, site.operands.bias):
        sizes = None if value is None else sizes_of(value, count)
        if sizes is not None and min(sizes) > 1:
            return sizes
    return None


def _exactly(draft: Draft, value: ir.Value, sizes: tuple[int, ...]) -> ir.Value:
    """Return a parameter that broadcasts against ``sizes`` in that shape."""
    assert value.shape is not None
    if value.shape == ir.Shape(sizes):
        return value
    array, dtype = draft.array(value), value.dtype
    assert dtype is not None
    if array is not None:
        # Leading axes are of size one: it lies along the normalised axes.
        flat = array.reshape(array.shape[max(0, array.ndim - len(sizes)) :])
        return draft.constant(f"{value.name}_along", np.broadcast_to(flat, sizes), dtype)
    if value.shape.is_static() and math.prod(value.shape.numpy()) == math.prod(sizes):
        return draft.reshaped(value, sizes)
    # 1 · γ is γ, at every opset.
    ones = draft.constant("ones", np.ones(sizes), dtype)
    product = draft.op("Mul", ones, value)
    return product if value.shape.rank() <= len(sizes) else draft.reshaped(product, sizes)


def _type(site: NormSite, constants: Constants, *, narrow: bool = True) -> ir.DataType:
    """Return the type of every operand: that of x, or a wider one where a parameter, the statistics or the result are wider.

    Half types need none: body and kernels compute in float32. A parameter of float32 whose entries all are numbers of
    the half type, as a half γ that was widened for the norm, is one of that where ``narrow``.
    """
    own, operands = type_of(site), site.operands
    assert own is not None
    values = (operands.scale, operands.bias, operands.residual, operands.residual_bias)
    wider = [value for value in values if value is not None and value.dtype not in (None, own)]
    if narrow and own in HALVES:
        parameters = (operands.scale, operands.bias)
        wider = [value for value in wider if value not in parameters or not _fits(value, own, constants)]
    if wider or site.spec.compute_type is ComputeType.DOUBLE or output_type(site) != own:
        return wide_type(site)
    return wide_type(site) if own in HALVES and operands.residual_bias is not None else own


def _fits(value: ir.Value, dtype: ir.DataType, constants: Constants) -> bool:
    """Whether every entry of a constant is a number of ``dtype``."""
    array = Draft(OLDEST_OPSET, constants).array(value)
    if array is None:
        return False
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype.numpy())
    return bool((narrow.astype(np.float64) == array).all())


def _same_shape(residual: ir.Value, x: ir.Value) -> bool:
    """Whether both shapes are known, and the same axis by axis."""
    return residual.shape is not None and x.shape is not None and residual.shape == x.shape
