"""Rules of BatchNormalization. At inference only attributes changed; in training mode nearly everything did.

Training is an attribute from version 14 on, and the presence of further outputs in versions 7 to 9. A training-mode
node goes down as its formula: the statistics of the batch, and the running ones updated by the momentum.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from normfuse.graph.reading import reads_output
from normfuse.passes.opset.operation import Context, NoEquivalent, Operation, Result, Rule


def batchnorm_7_up(operation: Operation, context: Context) -> Result:
    """Version 6 trains unless ``is_test``; without it there must be further outputs, as in version 7."""
    if not operation.integer("is_test", 0) and not _has_statistics(context):
        raise NoEquivalent("it has no is_test: it trains")
    if operation.integer("is_test", 0) and _has_statistics(context):
        raise NoEquivalent("it has is_test and outputs of training")
    return operation.without("is_test", "consumed_inputs")


def batchnorm_9_up(operation: Operation, context: Context) -> Result:
    """Without ``spatial`` statistics are per element: those of a BatchNormalization of x seen as (N, elements)."""
    if operation.integer("spatial", 1):
        return operation.without("spatial")
    if _has_statistics(context):
        raise NoEquivalent("it trains, with one statistic per element")
    x = operation.x()
    parameters = [context.reshaped(value, (-1,)) for value in operation.inputs[1:] if value is not None]
    y = context.op(
        "BatchNormalization", context.flattened(x, 1), *parameters, epsilon=operation.number("epsilon", 1e-5)
    )
    return (context.op("Reshape", y, context.shape(x)),)


def batchnorm_14_up(operation: Operation, context: Context) -> Result:
    """Training becomes an attribute; the saved statistics go."""
    if not _has_statistics(context):
        return Operation(operation.op_type, operation.inputs, operation.attributes, 1)
    if any(reads_output(context.node, index) for index in (3, 4)):
        raise NoEquivalent("its saved statistics, which version 14 does not give, are read")
    trained = operation.having(training_mode=1)
    return Operation(trained.op_type, trained.inputs, trained.attributes, min(operation.outputs, 3))


def batchnorm_14_down(operation: Operation, context: Context) -> Result:
    """Inference loses an attribute; training is written out."""
    if operation.integer("training_mode", 0):
        return _trained(operation, context)
    # Outputs that were ill-formed without training_mode mean training in version 9.
    if any(reads_output(context.node, index) for index in range(1, operation.outputs)):
        raise NoEquivalent("its statistics are read, and it does not train")
    operation = operation.without("training_mode")
    return Operation(operation.op_type, operation.inputs, operation.attributes, 1)


def _has_statistics(context: Context) -> bool:
    return sum(output.name != "" for output in context.node.outputs) > 1


def _trained(operation: Operation, context: Context) -> Result:
    """Write ``(x − E[x]) / sqrt(E[(x − E[x])²] + ε) · scale + B``, E over all axes but the channels, in float32 at least."""
    x, scale, bias, mean, var = (operation.operand(index) for index in range(5))
    if x is None or scale is None or bias is None or mean is None or var is None:
        raise NoEquivalent("one of its inputs is missing")
    rank, own = context.rank_of(x), context.type_of(x)
    wide = ir.DataType.DOUBLE if own == ir.DataType.DOUBLE else ir.DataType.FLOAT
    axes = tuple(axis for axis in range(rank) if axis != 1)
    column = (-1, *(1,) * (rank - 2))
    widened = context.cast(x, wide)
    batch_mean = context.mean(widened, axes)
    deviation = context.op("Sub", widened, batch_mean)
    batch_var = context.mean(context.op("Mul", deviation, deviation), axes)
    epsilon = context.constant("epsilon", operation.number("epsilon", 1e-5), wide)
    y = context.op("Div", deviation, context.op("Sqrt", context.op("Add", batch_var, epsilon)))
    y = context.op("Mul", y, context.reshaped(context.cast(scale, wide), column))
    y = context.op("Add", y, context.reshaped(context.cast(bias, wide), column))
    results = [context.cast(y, own)]
    momentum = operation.number("momentum", 0.9)
    for index, (running, batch) in enumerate(((mean, batch_mean), (var, batch_var)), start=1):
        if index >= operation.outputs:
            break
        kept = context.op("Mul", context.cast(running, wide), context.constant("momentum", momentum, wide))
        share = context.constant("share", float(np.float32(1) - np.float32(momentum)), wide)
        fresh = context.op("Reshape", context.op("Mul", batch, share), context.integers("channels", (-1,)))
        results.append(context.cast(context.op("Add", kept, fresh), context.type_of(running)))
    return tuple(results)


RAISING: dict[tuple[str, int], Rule] = {
    ("BatchNormalization", 7): batchnorm_7_up,
    ("BatchNormalization", 9): batchnorm_9_up,
    ("BatchNormalization", 14): batchnorm_14_up,
}
LOWERING: dict[tuple[str, int], Rule] = {("BatchNormalization", 14): batchnorm_14_down}
