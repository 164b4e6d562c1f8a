"""Norms written in primitive operators, in every combination of the choices that exporters make.

A :class:`Spelling` is one such combination; :func:`graph_of` writes it as ONNX text, with the expected norm beside it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from normfuse.spec import Activation, AffineAxes, AffineLayout, NormSpec, PerChannel, PerGroup, Trailing

Array = npt.NDArray[np.generic]

EPSILON = float(np.float32(1e-3))

MEANS = ("mean", "sum/n", "sum*1/n", "unkept, unsqueeze", "unkept, reshape", "twice")
CENTRES = ("sub", "add neg", "reversed", "two copies")
SQUARES = ("pow", "mul", "int pow", "abs mul", "abs pow", "abs int pow", "abs of square")
VARIANCES = (*MEANS, "sum of squares/n", "length mul/n", "length pow/n")
ROOTS = ("sqrt div", "sqrt reciprocal", "one over", "pow -0.5", "pow 0.5")
EPSILONS = ("scalar", "first", "vector", "full rank")
AFFINES = (
    "none",
    "scale",
    "bias",
    "both",
    "scale first",
    "scale on root",
    "x scaled",
    "batch form",
    "full rank",
    "1 + w",
    "sub bias",
)
FOLLOWERS = {
    "none": Activation.NONE,
    "relu": Activation.RELU,
    "silu": Activation.SILU,
    "leaky": Activation.LEAKY_RELU,
    "one slope": Activation.LEAKY_RELU,
    "greater": Activation.LEAKY_RELU,
    "where above": Activation.LEAKY_RELU,
    "where below": Activation.LEAKY_RELU,
}
SLOPE = 0.25
TYPES = ("float", "float16 in float")


@dataclass(frozen=True)
class Family:
    """A norm, the shape of its x, the axes it averages over, and the shape of its parameters."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    parameter: tuple[int, ...]
    statistics: Trailing | PerChannel | PerGroup
    centred: bool = True
    along: AffineAxes = AffineAxes.NORMALISED
    view: tuple[int, ...] | None = None


FAMILIES = (
    Family("layer", (3, 5, 8), (-1,), (8,), Trailing((-1,))),
    Family("layer, two axes", (3, 4, 5, 6), (-2, -1), (5, 6), Trailing((-2, -1))),
    Family("layer, channels first", (2, 6, 4, 5), (-3,), (6, 1, 1), Trailing((-3,))),
    Family("rms", (3, 5, 8), (-1,), (8,), Trailing((-1,)), centred=False),
    Family("instance", (2, 6, 4, 5), (-2, -1), (6, 1, 1), PerChannel(), along=AffineAxes.CHANNEL),
    Family("group", (2, 6, 4, 5), (-3, -2, -1), (6, 1, 1), PerGroup(2), along=AffineAxes.CHANNEL, view=(2, 2, 3, 4, 5)),
)


@dataclass(frozen=True)
class Spelling:
    """One combination of choices."""

    family: Family
    mean: str = "mean"
    centre: str = "sub"
    square: str = "mul"
    variance: str = "mean"
    root: str = "sqrt div"
    epsilon: str = "scalar"
    affine: str = "both"
    dtype: str = "float"
    follower: str = "none"
    positive_axes: bool = False
    opset: int = 17
    dynamic: bool = False
    mutation: str = ""

    def __str__(self) -> str:
        choices = [
            self.mean,
            self.centre,
            self.square,
            self.variance,
            self.root,
            self.epsilon,
            self.affine,
            self.dtype,
            self.follower,
        ]
        return " | ".join([self.family.name, *choices, f"opset {self.opset}", self.mutation])


@dataclass
class Written:
    """The text of a graph, the norm that is in it, and the arrays of its parameters as the norm sees them."""

    text: str
    spec: NormSpec
    arrays: dict[str, Array]
    interior: tuple[str, ...]


@dataclass
class _Writer:
    spelling: Spelling
    lines: list[str] = field(default_factory=list)
    constants: dict[str, tuple[str, Array]] = field(default_factory=dict)
    count: int = 0

    def op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        self.count += 1
        name = f"t{self.count}"
        inner = ", ".join(f"{key} = {_attribute(value)}" for key, value in attributes.items())
        self.lines.append(f"{name} = {op_type}{f' <{inner}>' if inner else ''} ({', '.join(inputs)})")
        return name

    def constant(self, kind: str, values: npt.ArrayLike) -> str:
        name = f"k{len(self.constants)}"
        dtype = {"float": np.float32, "int64": np.int64}[kind]
        self.constants[name] = (kind, np.asarray(values, dtype))
        return name

    def declared(self) -> str:
        rows = []
        for name, (kind, array) in self.constants.items():
            dims = f"[{', '.join(map(str, array.shape))}]" if array.ndim else ""
            entries = ", ".join(
                repr(entry) if kind == "int64" else f"{entry:.9g}" for entry in array.reshape(-1).tolist()
            )
            rows.append(f"{kind}{dims} {name} = {{{entries}}}")
        return ", ".join(rows)


def _attribute(value: object) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def graph_of(spelling: Spelling) -> Written:
    """Write ``spelling``."""
    family, writer = spelling.family, _Writer(spelling)
    x = "x"
    if spelling.dtype == "float16 in float":
        x = writer.op("Cast", x, to=1)
    seen = x
    shape = family.shape
    if family.view is not None:
        shape = family.view
        target = (0, *shape[1:]) if spelling.dynamic else shape
        seen = writer.op("Reshape", x, writer.constant("int64", target))
    rng = np.random.default_rng(7)
    scale: Array = rng.uniform(0.5, 1.5, family.parameter).astype(np.float32)
    bias: Array = rng.standard_normal(family.parameter).astype(np.float32)
    wanted = _affine(spelling)
    core, interior = _core(spelling, writer, seen, shape, scale, bias)
    y = core
    if family.view is not None:
        outer = ("0", *map(str, family.shape[1:]))
        y = writer.op("Reshape", y, writer.constant("int64", [int(size) for size in outer]))
    y = _with_affine(spelling, writer, y, scale, bias)
    if spelling.dtype == "float16 in float":
        y = writer.op("Cast", y, to=10)
    y = _followed(spelling, writer, y)
    outputs = f"{_type(spelling)}[{', '.join(_dims(spelling))}] y"
    if spelling.mutation.startswith("shared "):
        shared = interior[spelling.mutation.removeprefix("shared ")]
        outputs += f", float[{', '.join(f's{axis}' for axis in range(len(shape)))}] {shared}"
    writer.lines.append(f"y = Identity ({y})")
    body = "\n".join(writer.lines)
    text = (
        f'<ir_version: 8, opset_import: ["" : {spelling.opset}]>\n'
        f"g ({_type(spelling)}[{', '.join(_dims(spelling))}] x) => ({outputs})\n<{writer.declared()}>\n{{\n{body}\n}}"
    )
    spec = NormSpec(family.statistics, EPSILON, centred=family.centred, affine=wanted)
    arrays: dict[str, Array] = {}
    if wanted.scale:
        arrays["scale"] = scale
    if wanted.bias:
        arrays["bias"] = bias
    return Written(text, spec, arrays, tuple(interior.values()))


def _type(spelling: Spelling) -> str:
    return "float" if spelling.dtype == "float" else "float16"


def _dims(spelling: Spelling) -> list[str]:
    sizes = [str(size) for size in spelling.family.shape]
    return ["N", *sizes[1:]] if spelling.dynamic else sizes


def _affine(spelling: Spelling) -> AffineLayout:
    has_scale = spelling.affine not in ("none", "bias")
    has_bias = spelling.affine not in ("none", "scale", "x scaled", "scale on root") and spelling.family.centred
    return AffineLayout(has_scale, has_bias, spelling.family.along) if has_scale or has_bias else AffineLayout()


def _mean(
    spelling: Spelling, writer: _Writer, how: str, value: str, shape: tuple[int, ...], axes: tuple[int, ...]
) -> str:
    """Write a mean with kept dimensions."""
    rank = len(shape)
    spelled = tuple(axis + rank for axis in axes) if spelling.positive_axes else tuple(reversed(axes))
    count = int(np.prod([shape[axis] for axis in axes]))
    if how == "twice" and len(axes) > 1:
        inner = _reduce(spelling, writer, "ReduceMean", value, spelled[:1], keepdims=1)
        return _reduce(spelling, writer, "ReduceMean", inner, spelled[1:], keepdims=1)
    if how == "sum/n":
        total = _reduce(spelling, writer, "ReduceSum", value, spelled, keepdims=1)
        return writer.op("Div", total, writer.constant("float", count))
    if how == "sum*1/n":
        total = _reduce(spelling, writer, "ReduceSum", value, spelled, keepdims=1)
        return writer.op("Mul", writer.constant("float", 1.0 / count), total)
    if how == "unkept, unsqueeze":
        mean = _reduce(spelling, writer, "ReduceMean", value, spelled, keepdims=0)
        if spelling.opset >= 13:
            return writer.op("Unsqueeze", mean, writer.constant("int64", spelled))
        return writer.op("Unsqueeze", mean, axes=spelled)
    if how == "unkept, reshape":
        mean = _reduce(spelling, writer, "ReduceMean", value, spelled, keepdims=0)
        target = [1 if axis - rank in axes else size for axis, size in enumerate(shape)]
        if spelling.dynamic:
            target[0] = -1
        return writer.op("Reshape", mean, writer.constant("int64", target))
    if how == "unkept":
        return _reduce(spelling, writer, "ReduceMean", value, spelled, keepdims=0)
    return _reduce(spelling, writer, "ReduceMean", value, spelled, keepdims=1)


def _reduce(spelling: Spelling, writer: _Writer, op_type: str, value: str, axes: tuple[int, ...], keepdims: int) -> str:
    if spelling.opset >= (13 if op_type == "ReduceSum" else 18):
        return writer.op(op_type, value, writer.constant("int64", axes), keepdims=keepdims)
    return writer.op(op_type, value, axes=axes, keepdims=keepdims)


def _is_inside(spelling: Spelling) -> bool:
    """Whether γ is multiplied in before the result of the norm is there."""
    if spelling.family.view is not None:
        return False
    return spelling.affine in ("scale on root", "x scaled") or (
        spelling.affine == "batch form" and spelling.family.centred and spelling.mutation != "keepdims"
    )


def _core(
    spelling: Spelling, writer: _Writer, x: str, shape: tuple[int, ...], scale: Array, bias: Array
) -> tuple[str, dict[str, str]]:
    """Write ``(x − μ) · (mean((x − μ)²) + ε)^(−1/2)``; return it with the names of its inner values."""
    family, mutation = spelling.family, spelling.mutation
    interior: dict[str, str] = {}
    deviation, copy, sign = x, x, ""
    if family.centred:
        how = "unkept" if mutation == "keepdims" else spelling.mean
        mean = _mean(spelling, writer, how, x, shape, family.axes)
        interior["mean"] = mean
        deviation = copy = _centred(spelling, writer, x, mean)
        interior["deviation"] = deviation
        if spelling.centre == "two copies" and not (spelling.affine == "batch form" and _is_inside(spelling)):
            copy = _centred(spelling, writer, x, _mean(spelling, writer, how, x, shape, family.axes))
        sign = "-" if spelling.centre == "reversed" else ""
    has_square = spelling.variance in MEANS or mutation in ("exponent", "shared square")
    square = _square(spelling, writer, copy) if has_square else copy
    interior["square"] = square
    axes = ((-2,) if family.axes != (-2,) else (-1,)) if mutation == "axes" else family.axes
    if has_square:
        variance = _mean(spelling, writer, spelling.variance, square, shape, axes)
    else:
        variance = _mean_square(spelling, writer, copy, shape, axes)
    if mutation == "unbiased":
        count = float(np.prod([shape[axis] for axis in family.axes]))
        variance = writer.op("Mul", variance, writer.constant("float", count / (count - 1)))
    interior["variance"] = variance
    epsilon = _epsilon(spelling, writer, len(shape))
    if mutation == "epsilon outside":
        deviated = writer.op("Add", writer.op("Sqrt", variance), epsilon)
        return writer.op("Div", deviation, deviated), interior
    added = writer.op("Add", *((epsilon, variance) if spelling.epsilon == "first" else (variance, epsilon)))
    interior["sum"] = added
    if not _is_inside(spelling):
        y = _divided(spelling, writer, deviation, added)
        # μ − x was normalised: the sign is taken back at the end.
        return writer.op("Neg", y) if sign else y, interior
    gamma = writer.constant("float", scale)
    if spelling.affine == "x scaled":
        y = _divided(spelling, writer, writer.op("Mul", deviation, gamma), added)
        return writer.op("Neg", y) if sign else y, interior
    inverse = writer.op("Mul", gamma, writer.op("Pow", added, writer.constant("float", -0.5)))
    if spelling.affine == "scale on root":
        y = writer.op("Mul", deviation, inverse)
        return writer.op("Neg", y) if sign else y, interior
    shift = writer.op("Sub", writer.constant("float", bias), writer.op("Mul", interior["mean"], inverse))
    return writer.op("Add", writer.op("Mul", x, inverse), shift), interior


def _centred(spelling: Spelling, writer: _Writer, x: str, mean: str) -> str:
    if spelling.centre == "add neg":
        return writer.op("Add", writer.op("Neg", mean), x)
    return writer.op("Sub", mean, x) if spelling.centre == "reversed" else writer.op("Sub", x, mean)


def _square(spelling: Spelling, writer: _Writer, value: str) -> str:
    if spelling.mutation == "exponent":
        return writer.op("Pow", value, writer.constant("float", 4.0))
    if spelling.square == "abs of square":
        return writer.op("Abs", writer.op("Mul", value, value))
    if spelling.square.startswith("abs"):
        value = writer.op("Abs", value)
    if spelling.square.endswith("mul"):
        return writer.op("Mul", value, value)
    if spelling.square.endswith("int pow") and spelling.opset >= 12:
        return writer.op("Pow", value, writer.constant("int64", 2))
    return writer.op("Pow", value, writer.constant("float", [2.0]))


def _mean_square(spelling: Spelling, writer: _Writer, value: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> str:
    """Write a mean of squares whose squares are no values of the graph; of ``|value|`` where squares are spelled so."""
    if spelling.square.startswith("abs"):
        value = writer.op("Abs", value)
    count = writer.constant("float", int(np.prod([shape[axis] for axis in axes])))
    if spelling.variance == "sum of squares/n":
        return writer.op("Div", _reduce(spelling, writer, "ReduceSumSquare", value, axes, keepdims=1), count)
    length = _reduce(spelling, writer, "ReduceL2", value, axes, keepdims=1)
    if spelling.variance == "length mul/n":
        return writer.op("Div", writer.op("Mul", length, length), count)
    return writer.op("Div", writer.op("Pow", length, writer.constant("float", 2.0)), count)


def _epsilon(spelling: Spelling, writer: _Writer, rank: int) -> str:
    shape = {"vector": (1,), "full rank": (1,) * rank}.get(spelling.epsilon, ())
    return writer.constant("float", np.full(shape, EPSILON))


def _divided(spelling: Spelling, writer: _Writer, value: str, added: str) -> str:
    if spelling.root == "pow -0.5":
        return writer.op("Mul", value, writer.op("Pow", added, writer.constant("float", -0.5)))
    if spelling.root == "pow 0.5":
        return writer.op("Div", value, writer.op("Pow", added, writer.constant("float", 0.5)))
    root = writer.op("Sqrt", added)
    if spelling.root == "sqrt reciprocal":
        return writer.op("Mul", writer.op("Reciprocal", root), value)
    if spelling.root == "one over":
        return writer.op("Mul", value, writer.op("Div", writer.constant("float", 1.0), root))
    return writer.op("Div", value, root)


def _with_affine(spelling: Spelling, writer: _Writer, y: str, scale: Array, bias: Array) -> str:
    how, rank = spelling.affine, len(spelling.family.shape)
    if _is_inside(spelling):
        return y
    full = (1,) * (rank - scale.ndim) + scale.shape
    if how in ("scale", "both", "x scaled", "scale on root", "batch form", "sub bias"):
        y = writer.op("Mul", y, writer.constant("float", scale))
    elif how == "scale first":
        y = writer.op("Mul", writer.constant("float", scale), y)
    elif how == "full rank":
        y = writer.op("Mul", y, writer.constant("float", scale.reshape(full)))
    elif how == "1 + w":
        one = writer.constant("float", 1.0)
        y = writer.op("Mul", y, writer.op("Add", one, writer.constant("float", scale.astype(np.float64) - 1.0)))
    if not _affine(spelling).bias:
        return y
    if how == "sub bias":
        return writer.op("Sub", y, writer.constant("float", -bias.astype(np.float64)))
    return writer.op("Add", y, writer.constant("float", bias.reshape(full) if how == "full rank" else bias))


def _followed(spelling: Spelling, writer: _Writer, y: str) -> str:
    """Write the activation behind ``y``."""
    how = spelling.follower
    if how == "none":
        return y
    if how == "relu":
        return writer.op("Relu", y)
    if how == "silu":
        return writer.op("Mul", writer.op("Sigmoid", y), y)
    if how == "leaky":
        return writer.op("LeakyRelu", y, alpha=SLOPE)

    def number(value: float) -> str:
        constant = writer.constant("float", value)
        return constant if spelling.dtype == "float" else writer.op("Cast", constant, to=10)

    if how == "one slope":
        return writer.op("PRelu", y, number(SLOPE))
    scaled = writer.op("Mul", number(SLOPE), y)
    if how == "greater":
        return writer.op("Max", scaled, y)
    if how == "where above":
        return writer.op("Where", writer.op("Greater", y, number(0.0)), y, scaled)
    return writer.op("Where", writer.op("Less", y, number(0.0)), scaled, y)


def spellings(count: int, seed: int = 1) -> Iterator[Spelling]:
    """Yield every single choice in every family once, then ``count`` random combinations."""
    plain = [Spelling(family) for family in FAMILIES]
    choices: dict[str, tuple[object, ...]] = {
        "mean": MEANS,
        "centre": CENTRES,
        "square": SQUARES,
        "variance": VARIANCES,
        "root": ROOTS,
        "epsilon": EPSILONS,
        "affine": AFFINES,
        "dtype": TYPES,
        "follower": tuple(FOLLOWERS),
        "positive_axes": (False, True),
        "opset": (11, 13, 17, 18, 20),
        "dynamic": (False, True),
    }
    for base, (name, options) in itertools.product(plain, choices.items()):
        for option in options:
            yield replace(base, **{name: option})  # type: ignore[arg-type]
    rng = random.Random(seed)
    for _ in range(count):
        picked = {name: rng.choice(options) for name, options in choices.items()}
        yield replace(rng.choice(plain), **picked)  # type: ignore[arg-type]
