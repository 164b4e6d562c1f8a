"""What the end-to-end verdict alone could see, measured: for graphs of which no part can be judged alone.

A fault in one channel of a constant changes the output in proportion to its size, while it is small. So one fault planted
in the reference says how small a fault may be before the output's error falls below what rounding is allowed.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from normfuse.validate import tolerance
from normfuse.validate.call import OracleCannotRun, OracleFailed
from normfuse.validate.held import Held
from normfuse.validate.oracle import Oracle
from normfuse.validate.rounding import Array, is_float, widen
from normfuse.validate.truth import Truth, output_type

# Small enough that activations stay on their side of their kinks, large beside rounding.
_PLANTED = 2.0**-7


def smallest_visible(oracle: Oracle, truth: Truth) -> str:
    """Return, in words, the smallest relative fault of one channel that is seen end to end: the largest of those of a
    constant at the beginning, in the middle and at the end. Empty where there is no constant or no float output."""
    outputs = [value for value in oracle.graph.outputs if value.name and is_float(truth.outputs[0][value.name].dtype)]
    constants = _constants(oracle)
    if not outputs or not constants:
        return ""
    chosen = dict.fromkeys(constants[index] for index in (0, len(constants) // 2, len(constants) - 1))
    seen: list[tuple[float, str]] = []
    for constant in chosen:
        try:
            seen.append((_smallest(oracle, truth, constant, outputs), constant.name or ""))
        except (OracleCannotRun, OracleFailed):
            continue
    if not seen:
        return ""
    amount, name = max(seen)
    if amount >= 1.0:
        return f"end to end, no fault of one channel of '{name}' is seen"
    return f"end to end, a channel of '{name}' that is off by less than {amount:.1e} of its value is not seen"


def _constants(oracle: Oracle) -> list[ir.Value]:
    """Return the float tensors of more than one channel that operators read, in the graph's order."""
    found: dict[ir.Value, None] = {}
    for node in oracle.nodes:
        for value in node.inputs:
            tensor = None if value is None else value.const_value
            if value is not None and tensor is not None and is_float(tensor.dtype) and _channels(tensor) > 1:
                found[value] = None
    return list(found)


def _channels(tensor: ir.TensorProtocol) -> int:
    sizes = tensor.numpy().shape
    return int(sizes[0]) if sizes else 1


def _smallest(oracle: Oracle, truth: Truth, constant: ir.Value, outputs: list[ir.Value]) -> float:
    """Return what is seen of the channel in the middle; where that is dead, of the first, then of the last."""
    tensor = constant.const_value
    assert tensor is not None
    known: dict[ir.Value, Held] = {}
    for value in oracle.graph.inputs:
        if value.name in truth.family.feeds[0]:
            array = np.asarray(truth.family.feeds[0][value.name])
            known[value] = Held(widen(array), value.dtype or ir.DataType.from_numpy(array.dtype))
    count = _channels(tensor)
    amount = math.inf
    for channel in (count // 2, 0, count - 1):
        data = widen(tensor.numpy()).copy()
        data[channel] *= 1.0 + _PLANTED
        result = oracle.evaluate({**known, constant: Held(data, tensor.dtype)}, outputs)
        amount = min(_amount(truth, value, result[value].data) for value in outputs)
        if amount < 1.0:
            break
    return amount


def _amount(truth: Truth, value: ir.Value, changed: Array) -> float:
    held = truth.outputs[0][value.name or ""]
    noise = [_rms(run[value.name or ""].data - held.data) for run in truth.perturbed[0]]
    size = _rms(held.data)
    floor = tolerance.budget(
        0.0, math.sqrt(sum(item**2 for item in noise) / len(noise)), size, output_type(value, held)
    )
    moved = _rms(changed - held.data)
    return _PLANTED * tolerance.OUTPUT_FACTOR * floor / moved if moved > 0 else math.inf


def _rms(array: Array) -> float:
    with np.errstate(all="ignore"):
        return float(np.sqrt(np.mean(np.square(array)))) if array.size else 0.0
