"""Perturbed runs: every initializer and every result moved by as much as rounding would move it.

The draws are seeded by the run and the name of the value, so that two graphs which share a value perturb it alike.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.validate.call import Call
from normfuse.validate.held import Held
from normfuse.validate.noise import Noise, deviation
from normfuse.validate.rounding import Array, is_float, unit_roundoff
from normfuse.validate.scopes import label


class Perturbation:
    """The noise of one graph's runs. Deviations of top-level results are kept from one perturbed run to the next."""

    def __init__(self, top_level: frozenset[ir.Node]) -> None:
        self._top_level = top_level
        self._deviations: dict[tuple[ir.Node, int], Array | None] = {}

    def forget(self) -> None:
        """Drop the deviations that perturbed runs have collected: they belong to one set of inputs."""
        self._deviations.clear()

    @staticmethod
    def shaken(held: Held, noise: Noise, name: str) -> Held:
        """Return a constant times 1 + u·U(−1, 1)."""
        draw = _generator(noise, name).random(held.data.shape, dtype=np.float32)
        draw -= np.float32(0.5)
        # In place: this runs over every weight of every perturbed run.
        shaken: Array = np.multiply(held.data, draw, dtype=np.float64)
        shaken *= 2.0 * noise.scale * unit_roundoff(held.dtype)
        shaken += held.data
        return Held(shaken, held.dtype)

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
        draw = _generator(noise, f"{label(node)}:{index}").standard_normal(held.data.shape, dtype=np.float32)
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


@functools.lru_cache(maxsize=4096)
def _digest(text: str) -> int:
    return zlib.crc32(text.encode())


def _generator(noise: Noise, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64([noise.seed, _digest(name)]))
