"""Random operators with draws that are given: the same in both graphs and in every run.

Two graphs are one function where they agree for every draw. The draws are seeded by the name of the node's result, so
that two graphs which keep that name draw alike; a runtime is fed with the same arrays (:mod:`cuts`).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.validate.call import Call, Results
from normfuse.validate.rounding import Array, is_float

_DEFAULT_RATIO = 0.5


def draw(call: Call, name: str, data: Sequence[Any]) -> Results:
    """Return the outputs of the random operator ``call`` whose first result is ``name``.

    RandomNormal, RandomUniform and their Like forms: of their distribution. Bernoulli: u < p. Multinomial:
    argmax(logits − log(−log u)), u uniform. Dropout in training mode: x times :func:`kept`, and where that is not 0.
    """
    if call.op == "Dropout":
        if len(data) > 2 and data[2] is not None and not np.any(data[2]):
            return (data[0], np.ones(np.shape(data[0]), dtype=bool))
        factor = kept(name, np.shape(data[0]), data[1] if len(data) > 1 else None)
        return (data[0] * factor, factor != 0.0)
    if call.op == "Bernoulli":
        chosen = _uniform(name, np.shape(data[0])) < data[0]
        return (chosen.astype(_result_type(call, np.float64)),)
    if call.op == "Multinomial":
        return (_multinomial(call, name, data[0]),)
    shape = np.shape(data[0]) if call.op.endswith("Like") else call.ints("shape", ())
    if "Normal" in call.op:
        mean, scale = call.float("mean", 0.0), call.float("scale", 1.0)
        return (mean + scale * _generator(name).standard_normal(shape),)
    low, high = call.float("low", 0.0), call.float("high", 1.0)
    return (low + (high - low) * _uniform(name, shape),)


def kept(name: str, shape: tuple[int, ...], ratio: Array | None) -> Array:
    """Return what Dropout in training mode multiplies its input by: 0 for a share ``ratio`` of the elements, else
    1 / (1 − ratio)."""
    share = _DEFAULT_RATIO if ratio is None else float(np.asarray(ratio).reshape(-1)[0])
    factor = 1.0 / (1.0 - share) if share < 1.0 else 0.0
    return np.where(_uniform(name, shape) < share, 0.0, factor)


def _multinomial(call: Call, name: str, logits: Array) -> Array:
    count = call.int("sample_size", 1)
    noise = -np.log(-np.log(np.maximum(_uniform(name, (logits.shape[0], count, logits.shape[1])), 1e-300)))
    chosen = np.argmax(logits[:, None, :] + noise, axis=2)
    return np.asarray(chosen, dtype=_result_type(call, np.int32))


def _result_type(call: Call, default: Any) -> Any:
    """Return NumPy's type for a discrete result; float64 stands for every float."""
    kind = call.attributes.get("dtype")
    if kind is None:
        return default
    return np.float64 if is_float(ir.DataType(kind)) else ir.DataType(kind).numpy()


def _uniform(name: str, shape: Sequence[int]) -> Array:
    return np.asarray(_generator(name).random(tuple(shape)))


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))
