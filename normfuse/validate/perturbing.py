"""Perturbed runs: every initializer and every result moved by as much as rounding would move it.

The draws are decided by the run and the name of the value, so that two graphs which share a value perturb it alike. They
are taken from pools, each value's at another place: drawing them anew would take as long as the graph itself.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.validate.call import Call
from normfuse.validate.held import Held
from normfuse.validate.noise import Noise, deviation
from normfuse.validate.rounding import Array, is_float, unit_roundoff
from normfuse.validate.scopes import label

# A prime, so that values longer than the pool do not repeat in step with a plane or a channel.
_POOL = 1_000_003
# Shaken constants are kept up to this many bytes.
_KEPT_BYTES = 2**29


class Perturbation:
    """The noise of one graph's runs. Deviations of top-level results are kept from one perturbed run to the next, and so
    are shaken constants, which are the same for every set of inputs."""

    def __init__(self, top_level: frozenset[ir.Node]) -> None:
        self._top_level = top_level
        self._deviations: dict[tuple[ir.Node, int], Array | None] = {}
        self._shaken: dict[tuple[ir.Value, Noise], Held] = {}
        self._kept = 0

    def forget(self) -> None:
        """Drop the deviations that perturbed runs have collected: they belong to one set of inputs."""
        self._deviations.clear()

    def release(self) -> None:
        """Drop everything that is kept."""
        self._deviations.clear()
        self._shaken.clear()
        self._kept = 0

    def shaken(self, value: ir.Value, held: Held, noise: Noise) -> Held:
        """Return the constant ``value``, which is ``held``, times 1 + u·U(−1, 1)."""
        known = self._shaken.get((value, noise))
        if known is not None:
            return known
        shaken: Array = np.multiply(
            held.data, _draws(_uniform, noise, value.name or "", held.data.shape), dtype=np.float64
        )
        # In place: this runs over every weight.
        shaken *= noise.scale * unit_roundoff(held.dtype)
        shaken += held.data
        found = Held(shaken, held.dtype)
        if self._kept + found.nbytes < _KEPT_BYTES:
            self._kept += found.nbytes
            self._shaken[value, noise] = found
        return found

    def perturbed(
        self,
        node: ir.Node,
        call: Call,
        data: list[Any],
        held: Held,
        index: int,
        inputs: Sequence[Held | None],
        noise: Noise,
    ) -> Held:
        """Return output ``index`` of ``node`` plus u·κ·N(0, 1)."""
        if not is_float(held.dtype) or not isinstance(held.data, np.ndarray):
            return held
        if call.op in ("Cast", "CastLike"):
            source = inputs[0].dtype if inputs[0] is not None else held.dtype
            if is_float(source) and unit_roundoff(source) >= unit_roundoff(held.dtype):
                return held
        spread = self._spread(node, call, data, held, index)
        if spread is None:
            return held
        draw = _draws(_normal, noise, f"{label(node)}:{index}", held.data.shape)
        return Held(held.data + noise.scale * spread * draw, held.dtype)

    def _spread(self, node: ir.Node, call: Call, data: list[Any], held: Held, index: int) -> Array | None:
        key = (node, index)
        if key in self._deviations and _fits(self._deviations[key], held.data):
            return self._deviations[key]
        spread = _deviation(call, data, held, index)
        if node in self._top_level:
            self._deviations[key] = spread
        return spread


def _deviation(call: Call, data: list[Any], held: Held, index: int) -> Array | None:
    roundoff = unit_roundoff(held.dtype)
    if index:
        return np.asarray(roundoff / math.sqrt(3.0) * np.abs(held.data))
    spread = deviation(call, data, held.data, roundoff)
    return None if spread is None else spread.astype(np.float32)


def _fits(spread: Array | None, data: Array) -> bool:
    return spread is None or all(a in (1, b) for a, b in zip(spread.shape[::-1], data.shape[::-1], strict=False))


@functools.cache
def _normal() -> Array:
    return _twice(np.random.default_rng(0).standard_normal(_POOL, dtype=np.float32))


@functools.cache
def _uniform() -> Array:
    return _twice(2.0 * np.random.default_rng(1).random(_POOL, dtype=np.float32) - 1.0)


def _twice(pool: Array) -> Array:
    return np.concatenate([pool, pool]).astype(np.float32)


def _draws(pool: Callable[[], Array], noise: Noise, name: str, shape: tuple[int, ...]) -> Array:
    """Return as many draws as ``shape`` has elements, from a place of the pool that the run and the name decide."""
    start = zlib.crc32(f"{noise.seed}:{name}".encode()) % _POOL
    count = math.prod(shape)
    if count <= _POOL:
        return pool()[start : start + count].reshape(shape)
    return np.resize(pool()[start : start + _POOL], shape)
