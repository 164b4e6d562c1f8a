"""Fold the scale and bias of a norm with statistics of its own into the linear operators behind it.

``W·(γ∘n + β) + b = (W·diag γ)·n + (W·β + b)``: where everything that reads a LayerNorm, RMSNorm, GroupNorm or
InstanceNorm is linear along the axis of γ and β, the norm needs none. All readers at once (Q, K, V), or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from normfuse.affine import (
    ChannelAffine,
    Float64,
    FoldError,
    WeightLayout,
    columns,
    conv_inputs,
    fold_shift,
    rows,
    through_weight,
)
from normfuse.emit import emit, is_written
from normfuse.emit.standard import emit_reshaped, emit_standard
from normfuse.emit.target import Target
from normfuse.emit.writing import detach, is_detached
from normfuse.graph.editing import Replacement, describe, initializer, refusal
from normfuse.graph.reading import is_op
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.passes.linear import (
    Linear,
    Rewritten,
    folded_bias,
    folded_weight,
    is_unpadded,
    like,
    read_linear,
    with_bias,
)
from normfuse.recognise.affine_chain import Channels, Link, read_link
from normfuse.spec import Activation, AffineAxes, AffineLayout, Batch, Stored, Trailing, kind


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """What reads a norm, decided: ``removes`` go, and ``rebuild`` makes what takes the place of ``output``."""

    removes: tuple[ir.Node, ...]
    output: ir.Value
    rebuild: Callable[[ir.Value], Rewritten]


@dataclass(frozen=True, slots=True, eq=False)
class AffineFold:
    """A fold that is decided. ``replacement`` already reads the values that it will; take it back with ``drop``."""

    site: NormSite
    into: tuple[ir.Node, ...]
    replacement: Replacement

    @property
    def note(self) -> str:
        """What was done, in words."""
        return f"the scale and bias of a {kind(self.site.spec)} norm, into {len(self.into)} linear operators"

    def drop(self) -> None:
        """Take the new nodes away from the values that they read."""
        detach(self.replacement.adds)


def fold_norm_affine(sites: Iterable[NormSite], target: Target, reading: Reading) -> list[AffineFold | Declined]:
    """Decide for each of ``sites`` whether its scale and bias fold into what reads it. Changes nothing."""
    outcomes = (_decide(site, target, reading) for site in sites)
    return [outcome for outcome in outcomes if outcome is not None]


def _decide(site: NormSite, target: Target, reading: Reading) -> AffineFold | Declined | None:
    if isinstance(site.spec.statistics, Stored | Batch) or not site.output.uses():
        return None
    try:
        affine = _affine(site, reading)
        if affine is None:
            return None
        layouts = [_layout(node, index, site, affine[1]) for node, index in site.output.uses()]
        readers = [
            _reader(node, layout, *affine, reading)
            for (node, _), layout in zip(site.output.uses(), layouts, strict=True)
        ]
        bare = _without_affine(site, target, reading)
    except FoldError as error:
        return Declined(f"its scale and bias stay: {error}", site.root)
    normalised = dict(bare.rewires)[site.output]
    normalised.shape = site.output.shape if normalised.shape is None else normalised.shape
    normalised.type = site.output.type if normalised.type is None else normalised.type
    rewritten = [reader.rebuild(normalised) for reader in readers]
    replacement = replace(
        bare,
        removes=(*bare.removes, *(node for reader in readers for node in reader.removes)),
        adds=(*bare.adds, *(node for each in rewritten for node in each.nodes)),
        rewires=(
            *(pair for pair in bare.rewires if pair[0] is not site.output),
            *((reader.output, each.output) for reader, each in zip(readers, rewritten, strict=True)),
        ),
        initializers=(*bare.initializers, *(value for each in rewritten for value in each.initializers)),
    )
    objection = refusal(replacement)
    if objection is not None:
        detach(replacement.adds)
        return Declined(f"its scale and bias stay: {objection.reason}", site.root)
    return AffineFold(site, tuple(reader.removes[0] for reader in readers), replacement)


def _affine(site: NormSite, reading: Reading) -> tuple[ChannelAffine, Channels] | None:
    """Return γ and β, and along which axis they lie; None where there is nothing to fold."""
    gamma, beta = _constant(site.operands.scale, reading), _constant(site.operands.bias, reading)
    if (gamma is None or np.all(gamma == 1.0)) and (beta is None or not beta.any()):
        return None
    if site.spec.activation is not Activation.NONE:
        raise FoldError("an activation belongs to it")
    if site.output.is_graph_output():
        raise FoldError("its result is a graph output")
    rank = reading.ranks.of(site.operands.x)
    if rank is None:
        raise FoldError("the rank of its input is not known")
    axis = _axis(site) % rank
    count = max(1 if row is None else row.size for row in (gamma, beta))
    size = None if site.operands.x.shape is None else site.operands.x.shape[axis]
    if count == 1 and isinstance(size, int):
        count = size
    row = ChannelAffine(
        *(np.full(count, empty) if one is None else one * np.ones(count) for empty, one in ((1.0, gamma), (0.0, beta)))
    )
    return row, Channels(count, axis, rank)


def _constant(value: ir.Value | None, reading: Reading) -> Float64 | None:
    """Return a parameter as a flat float64 array."""
    if value is None:
        return None
    stored = value.const_value.numpy() if is_detached(value) and value.const_value is not None else None
    array = reading.constants.array(value) if stored is None else stored
    if array is None:
        raise FoldError(f"'{value.name}' {reading.constants.obstacle(value)}")
    flat = np.asarray(array, np.float64).reshape(-1)
    if not np.isfinite(flat).all():
        raise FoldError(f"'{value.name}' is not finite")
    return flat


def _axis(site: NormSite) -> int:
    """Return the one axis along which γ and β vary."""
    spec = site.spec
    if spec.affine.axes is AffineAxes.CHANNEL:
        return spec.channel_axis
    if spec.affine.axes is AffineAxes.NORMALISED and isinstance(spec.statistics, Trailing):
        if len(spec.statistics.axes) == 1:
            return spec.statistics.axes[0]
        raise FoldError("they vary along several axes")
    raise FoldError(f"they vary per {spec.affine.axes.value}")


LayoutOf = Callable[[tuple[int, ...]], WeightLayout]


def _reader(node: ir.Node, layout_of: LayoutOf, affine: ChannelAffine, channels: Channels, reading: Reading) -> Reader:
    """Decide how ``node`` reads the norm without ``affine``. Raises FoldError where it cannot hold that."""
    name = f"{node.op_type} '{describe(node)}'"
    linear = read_linear(node, reading)
    if isinstance(linear, Declined):
        raise FoldError(linear.reason)
    layout = layout_of(linear.weight.shape)
    if layout.channels != channels.count:
        raise FoldError(f"{name} reads {layout.channels} channels, it has {channels.count}")
    value = node.inputs[linear.weight_at]
    other = None if value is None else _other_reader(value, node)
    if value is not None and other is not None:
        raise FoldError(f"the weight '{value.name}' of {name} is also read by '{describe(other)}'")
    moved = _through(linear, affine.shift, layout)
    weight = folded_weight(
        replace(linear, layout=layout), ChannelAffine(affine.scale, np.zeros(channels.count)), reading
    )
    if not affine.shift.any():
        return Reader((node,), node.outputs[0], lambda x: _with_weight(node, x, weight))
    if node.op_type == "Conv" and not is_unpadded(node):
        raise FoldError(f"{name} pads its input: at the border the bias would be missing")
    shifted = ChannelAffine(np.ones(moved.size), moved)
    if linear.bias_at is not None:
        bias = folded_bias(linear, shifted)
        return Reader((node,), node.outputs[0], lambda x: with_bias(node, x, weight, bias, reading))
    return _matmul_reader(linear, weight, shifted, reading)


def _layout(node: ir.Node, index: int, site: NormSite, channels: Channels) -> LayoutOf:
    """Return how the channels of the norm lie in the weight of ``node``. Raises FoldError where it does not sum over them."""
    name = f"{node.op_type} '{describe(node)}'"
    if node.graph is not site.root.graph:
        raise FoldError(f"{name} of a subgraph reads it")
    is_last = channels.axis == channels.rank - 1
    if index == 0 and is_op(node, "Conv") and channels.axis == 1 and channels.rank > 2:
        group = node.attributes.get_int("group", 1)
        return lambda shape: conv_inputs(shape, group)
    if index == 0 and is_op(node, "Gemm") and is_last and not node.attributes.get_int("transA", 0):
        return columns if node.attributes.get_int("transB", 0) else rows
    if index == 0 and is_op(node, "MatMul") and is_last:
        return rows
    raise FoldError(f"{name}, which reads it, is not linear along axis {channels.axis} of {channels.rank}")


def _other_reader(value: ir.Value, reader: ir.Node) -> ir.Node | None:
    """Return a node other than ``reader`` that reads ``value``, or a constant of which it is made (a tied embedding)."""
    for user, _ in value.uses():
        if user is not reader:
            return user
    producer = value.producer()
    found = () if producer is None else (_other_reader(each, producer) for each in producer.inputs if each is not None)
    return next((node for node in found if node is not None), None)


def _through(linear: Linear, shift: Float64, layout: WeightLayout) -> Float64:
    """Return what a constant ``shift`` per input channel adds to each output channel."""
    if linear.node.op_type == "Conv":
        return through_weight(linear.weight, shift, layout)
    matrix = linear.weight.astype(np.float64)
    alpha = linear.node.attributes.get_float("alpha", 1.0)
    return np.asarray(alpha * (shift @ (matrix if layout == rows(matrix.shape) else matrix.T)))


def _with_weight(node: ir.Node, x: ir.Value, weight: ir.Value) -> Rewritten:
    new = like(node, node.op_type, [x, weight, *node.inputs[2:]], dict(node.attributes))
    return Rewritten((new,), new.outputs[0], (weight,))


def _matmul_reader(linear: Linear, weight: ir.Value, shifted: ChannelAffine, reading: Reading) -> Reader:
    """Give what the bias adds to the Add behind a MatMul, else make a Gemm of it; never an operator more than before."""
    node, dtype = linear.node, linear.weight.dtype
    uses = node.outputs[0].uses()
    follower = uses[0][0] if len(uses) == 1 and not node.outputs[0].is_graph_output() else None  # type: ignore[index]
    link = None
    if follower is not None and is_op(follower, "Add") and follower.graph is node.graph:
        link = read_link(follower, node.outputs[0], linear.channels, {}, reading)
    if isinstance(link, Link) and link.affine is not None:
        bias = initializer(f"{node.name or 'MatMul'}.bias", fold_shift(link.affine.shift, shifted, dtype))
        return Reader(
            (node, link.node), link.node.outputs[0], lambda x: _matmul_and_add(node, link.node, x, weight, bias)
        )
    if linear.channels.rank != 2:
        raise FoldError(f"MatMul '{describe(node)}' has no bias that could take the norm's")
    value = initializer(f"{node.name or 'MatMul'}.bias", fold_shift(None, shifted, dtype))
    return Reader((node,), node.outputs[0], lambda x: _gemm(node, x, weight, value))


def _matmul_and_add(node: ir.Node, add: ir.Node, x: ir.Value, weight: ir.Value, bias: ir.Value) -> Rewritten:
    product = like(node, "MatMul", [x, weight], dict(node.attributes))
    product.outputs[0].type, product.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    new = like(add, "Add", [product.outputs[0], bias], dict(add.attributes))
    return Rewritten((product, new), new.outputs[0], (weight, bias))


def _gemm(node: ir.Node, x: ir.Value, weight: ir.Value, bias: ir.Value) -> Rewritten:
    new = like(node, "Gemm", [x, weight, bias], {})
    return Rewritten((new,), new.outputs[0], (weight, bias))


def _without_affine(site: NormSite, target: Target, reading: Reading) -> Replacement:
    """Return the norm without scale and bias in the form of ``target``. Raises FoldError where it cannot be written."""
    if len(site.interior) == 1 and is_written(site, target.form, reading, reading.opset, target.provider):
        return _with_unit_affine(site, reading)
    plain = replace(
        site,
        spec=replace(site.spec, affine=AffineLayout()),
        operands=replace(site.operands, scale=None, bias=None),
    )
    written = emit(plain, target.form, reading, reading.opset, target.provider)
    if not isinstance(written, Replacement):  # it stays in its spelling
        reshapes = any(is_op(node, "Reshape") for node in site.interior)
        written = (emit_reshaped if reshapes else emit_standard)(plain, reading, reading.opset)
    if isinstance(written, Declined):
        raise FoldError(written.reason)
    return written


def _with_unit_affine(site: NormSite, reading: Reading) -> Replacement:
    """Return the operator of ``site`` with a scale of ones and a bias of zeros, or without the bias where it may lack."""
    root, scale, bias = site.root, site.operands.scale, site.operands.bias
    if site.extra_outputs or (scale is not None and scale is bias):
        raise FoldError("its statistics are read" if site.extra_outputs else "they are one constant")
    constants: dict[ir.Value, ir.Value] = {}
    for value, unit in ((scale, 1.0), (bias, 0.0)):
        array = reading.constants.array(value)
        if value is not None and array is not None:
            constants[value] = initializer(f"{value.name}_folded", np.full(array.shape, unit, array.dtype))
    inputs = [constants.get(value, value) if value is not None else None for value in root.inputs]
    if bias is not None and is_op(root, "LayerNormalization"):
        inputs = inputs[:2]
    node = ir.Node(
        root.domain,
        root.op_type,
        inputs,
        dict(root.attributes),
        overload=root.overload,
        name=root.name,
        doc_string=root.doc_string,
        metadata_props=dict(root.metadata_props),
        version=root.version,
    )
    used = tuple(value for value in constants.values() if value in inputs)
    return Replacement((root,), (node,), ((site.output, node.outputs[0]),), used)
