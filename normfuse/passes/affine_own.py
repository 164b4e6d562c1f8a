"""The maps that nodes are themselves: BatchNormalization, Neg, and Mul, Add, Sub, Div by a constant."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from normfuse.affine import Array
from normfuse.graph.reading import has_parameters, input_at, is_op
from normfuse.graph.site import Declined
from normfuse.passes.affine_plan import MOST_CONSTANT, Ground
from normfuse.passes.spread import Spread
from normfuse.recognise.affine_chain import norm_affine


def own_map(node: ir.Node, ground: Ground) -> tuple[int, Spread] | Declined | None:
    """Return the map that a node is, and of which input; a Declined for a norm whose map is not known.

    The output has the shape of that input: a constant that would broadcast it further makes no map.
    """
    if is_op(node, "BatchNormalization"):
        affine = norm_affine(node, None, ground.norms, ground.reading)
        if isinstance(affine, Declined):
            return affine
        rank = ground.rank(input_at(node, 0))
        if affine is None or rank is None or rank < 2:
            return None
        return 0, Spread.along(affine, 1, rank)
    if has_parameters(node) or ground.reading.opset < 7:
        return None
    if is_op(node, "Neg"):
        rank = ground.rank(input_at(node, 0))
        ones = None if rank is None else np.ones((1,) * rank)
        return None if ones is None else (0, Spread(-ones, 0.0 * ones))
    if not is_op(node, "Mul", "Add", "Sub", "Div") or len(node.inputs) != 2:
        return None
    arrays = [ground.reading.constants.array(operand) for operand in node.inputs]
    if (arrays[0] is None) == (arrays[1] is None):
        return None
    index = 0 if arrays[0] is None else 1
    array = arrays[1 - index]
    assert array is not None
    return _arithmetic(node, index, array, ground)


def _arithmetic(node: ir.Node, index: int, array: Array, ground: Ground) -> tuple[int, Spread] | None:
    dims = ground.context.sizes.of(node.inputs[index])
    if dims is None or array.ndim > len(dims) or array.dtype.kind in "iubc" or array.size > MOST_CONSTANT:
        return None
    if node.op_type == "Div" and index == 1:
        return None
    rank = len(dims)
    row = np.asarray(array, np.float64).reshape((1,) * (rank - array.ndim) + array.shape)
    if any(size not in (1, dims[axis]) for axis, size in enumerate(row.shape)) or not np.isfinite(row).all():
        return None
    ones, zeros = np.ones((1,) * rank), np.zeros((1,) * rank)
    if node.op_type == "Mul":
        return index, Spread.of(row, zeros)
    if node.op_type == "Add":
        return index, Spread.of(ones, row)
    if node.op_type == "Sub":
        return index, Spread.of(ones, -row) if index == 0 else Spread.of(-ones, row)
    return (index, Spread.of(1.0 / row, zeros)) if row.all() else None
