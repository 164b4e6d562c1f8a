"""The input families: each is aimed at one failure that others do not show.

Same model, same numbers: every array is seeded by its family and input name. Families that only concern float inputs
are left out where there is none; those of half types where no input is one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.validate.inputs import Feed, InputSpec, Role, Sizes, resolve
from normfuse.validate.rounding import Array, is_float, round_to
from normfuse.validate.tolerance import QUIET_DEVIATION

_SMALL_INTEGER = 4
# Squares of values of 300 deviations overflow float16: a variance that is not widened becomes infinite.
_NEAR_OVERFLOW = 300.0
# The smallest normal float16 is 6e-5.
_SUBNORMAL = 1e-6
_OUTLIER = 1e3

Transform = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class Aim:
    """One family. transform: from standard normal values. half_only: it says nothing of wider types.

    on_providers: runtimes are held to it. They are not to NaN and infinity: kernels of
    one runtime differ in what a maximum of NaN is.
    """

    name: str
    transform: Transform
    half_only: bool = False
    on_providers: bool = True


def _with_constant_planes(x: Array) -> Array:
    """Even channels constant, of the odd ones every other row: variances of exactly zero."""
    if x.ndim < 2:
        return np.full_like(x, 1.5)
    y = x.copy()
    y[:, ::2] = y[:, ::2].mean(axis=tuple(range(2, x.ndim)), keepdims=True) + 1.0
    if x.ndim > 2:
        y[..., ::2, :] = y[..., ::2, :].mean(axis=-1, keepdims=True)
    return y


def _with_outliers(x: Array) -> Array:
    """Every 61st element a thousand times as large; one at least."""
    y = x.copy()
    y.reshape(-1)[y.size // 2 % 61 :: 61] *= _OUTLIER
    return y


def _with_ends(value: float) -> Transform:
    """Return what puts ``value`` in the place of the first and the last element."""

    def transform(x: Array) -> Array:
        y = x.copy()
        flat = y.reshape(-1)
        flat[0] = flat[-1] = value
        return y

    return transform


NAN = "NaN"
"""What is finite in the original is finite in the candidate, and the reverse: a NaN shows what a result reads. NaN and the
infinities that come of it are one class."""

INFINITY = "infinity"
"""There the algebra that a rewrite stands on does not hold: ∞ − ∞ of two branches is NaN where their one kernel gives −∞,
and a Relu behind makes 0 of that. What is finite on both sides is judged."""

NOT_FINITE = (NAN, INFINITY)

ORDINARY = Aim("standard normal", lambda x: x)
AIMS = (
    Aim("tiny variance", lambda x: QUIET_DEVIATION * x),
    Aim("large mean", lambda x: x + 100.0),
    Aim("constant planes", _with_constant_planes),
    Aim("outliers", _with_outliers),
    Aim("near overflow", lambda x: _NEAR_OVERFLOW * x, half_only=True),
    Aim("subnormal", lambda x: _SUBNORMAL * x, half_only=True),
    Aim("mean 1000", lambda x: x + 1e3),
    Aim("mean 10000", lambda x: x + 1e4),
    Aim(NAN, _with_ends(np.nan), on_providers=False),
    Aim(INFINITY, _with_ends(np.inf), on_providers=False),
)
"""In the order of what they find: a large model gets the first ones."""


def aims_for(specs: Sequence[InputSpec]) -> tuple[Aim, ...]:
    """Return the aimed families that differ from the ordinary one for this graph."""
    floats = {spec.dtype for spec in specs if is_float(spec.dtype) and spec.role is Role.DATA}
    half = bool(floats & {ir.DataType.FLOAT16})
    return tuple(aim for aim in AIMS if floats and (half or not aim.half_only))


def least_feeds(specs: Sequence[InputSpec]) -> int:
    """Return how many feeds it takes to see both values of every flag, and masks of two kinds."""
    return 2 if any(spec.role is Role.MASK or _is_flag(spec) for spec in specs) else 1


def synthesise(specs: Sequence[InputSpec], aim: Aim, sizes: Sizes, index: int, *, seed: str = "") -> Feed:
    """Return feed number ``index`` of the family of ``aim``; ``seed`` tells families of one aim apart."""
    table = resolve(specs, sizes)
    return {
        spec.name: _array(spec, aim, table, sizes, f"{seed or aim.name}|{spec.name}|{index}", index) for spec in specs
    }


def _array(spec: InputSpec, aim: Aim, table: Mapping[str, int], sizes: Sizes, seed: str, index: int) -> Array:
    shape = tuple(dim if isinstance(dim, int) else table[dim] for dim in spec.dims)
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    if spec.role is Role.MASK:
        mask = _mask(shape, rng, index)
        return round_to(mask, spec.dtype) if is_float(spec.dtype) else mask.astype(spec.dtype.numpy())
    if is_float(spec.dtype):
        x = rng.standard_normal(shape)
        return round_to(x if spec.role is Role.ADDED_MASK else aim.transform(x), spec.dtype)
    if spec.dtype == ir.DataType.BOOL:
        return np.full(shape, index % 2 == 0) if _is_flag(spec) else rng.random(shape) < 0.5
    if spec.dtype == ir.DataType.STRING:
        return np.full(shape, "text", dtype=object)
    kind = spec.dtype.numpy()
    if spec.role is Role.TRIPS:
        return np.full(shape, 2 + index, dtype=kind)
    if spec.bound is None and spec.role is Role.LENGTH:
        return np.full(shape, sizes.other, dtype=kind)
    bound = _SMALL_INTEGER if spec.bound is None else max(1, spec.bound)
    return rng.integers(0, bound, size=shape).astype(kind)


def _is_flag(spec: InputSpec) -> bool:
    return spec.dtype == ir.DataType.BOOL and spec.is_scalar


def _mask(shape: tuple[int, ...], rng: np.random.Generator, index: int) -> Array:
    """Return a mask as padding makes it: every row begins with ones, and no row is all ones where it can have a zero.

    Both conventions (1 keeps, 1 hides) leave something of every row. The lengths differ from row to row. Single numbers
    take turns.
    """
    if not shape or shape[-1] == 1:
        ones = rng.random(shape) < 0.5
        ones.reshape(-1)[:1] = index % 2 == 0
        return ones
    lengths = rng.integers(1, shape[-1], size=(*shape[:-1], 1))
    return np.arange(shape[-1]) < np.broadcast_to(lengths, shape)
