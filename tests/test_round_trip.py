"""The grid: every norm, in every form at every opset, is the same norm when read back, with the same numbers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
import onnx.reference
import onnx_ir as ir
import pytest

import normfuse
from normfuse import io
from normfuse.emit import emit
from normfuse.emit.kernels import has_kernel
from normfuse.emit.target import Form, Target
from normfuse.graph.editing import Editor, Replacement, initializer
from normfuse.graph.site import Declined, NormSite, Operands, Reading
from normfuse.recognise import find_norms
from normfuse.recognise.surroundings import with_activation
from normfuse.reference import evaluate
from normfuse.spec import (
    Activation,
    AffineAxes,
    AffineLayout,
    Batch,
    ComputeType,
    NormSpec,
    PerChannel,
    PerGroup,
    Stored,
    Trailing,
    canonical,
)
from tests.graphs import node_types, reading_of, run

Array = npt.NDArray[np.generic]

F16, BF16 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16
F32, F64 = ir.DataType.FLOAT, ir.DataType.DOUBLE
# ONNX stores epsilon as float32; a float64 norm would show the difference.
MILLI, TEN_MICRO, MICRO = (float(np.float32(value)) for value in (1e-3, 1e-5, 1e-6))
HALF = 0.5
NEWEST = onnx.defs.onnx_opset_version()
IMAGE, SEQUENCE = (2, 6, 4, 5), (2, 3, 4, 32)
BOTH = AffineLayout(True, True)
ALONG = AffineLayout(True, True, AffineAxes.NORMALISED)
NATIVE = {
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "RMSNormalization",
}


@dataclass(frozen=True)
class Case:
    """A norm, the shape of its x, and that of γ and β where it is not the obvious one.

    reads: False where what is written out is read as another spec of the same function, or without its affine.
    """

    name: str
    spec: NormSpec
    shape: tuple[int, ...] = IMAGE
    residual: bool = False
    along: tuple[int, ...] | None = None
    reads: bool = True

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("batch", NormSpec(Stored(), MILLI, affine=BOTH)),
    Case("batch, rank 2", NormSpec(Stored(), MILLI, affine=BOTH), (5, 6)),
    Case("instance", NormSpec(PerChannel(), TEN_MICRO, affine=BOTH)),
    Case("instance, rank 3", NormSpec(PerChannel(), TEN_MICRO, affine=BOTH), (2, 6, 20)),
    Case("instance, no affine", NormSpec(PerChannel(), TEN_MICRO)),
    Case("group", NormSpec(PerGroup(2), TEN_MICRO, affine=BOTH)),
    Case("group, rank 3", NormSpec(PerGroup(3), TEN_MICRO, affine=BOTH), (2, 6, 20)),
    Case("group, rank 2", NormSpec(PerGroup(2), TEN_MICRO, affine=BOTH), (2, 24)),
    Case("group, rank 2, as many as channels", NormSpec(PerGroup(6), TEN_MICRO, affine=BOTH), (2, 6)),
    Case("group, rank 5", NormSpec(PerGroup(2), TEN_MICRO, affine=BOTH), (2, 4, 3, 2, 4)),
    Case("group, no affine", NormSpec(PerGroup(2), TEN_MICRO)),
    Case("group, scale", NormSpec(PerGroup(2), TEN_MICRO, affine=AffineLayout(True))),
    Case("group, bias", NormSpec(PerGroup(2), TEN_MICRO, affine=AffineLayout(bias=True))),
    Case(
        "group, affine per group", NormSpec(PerGroup(2), TEN_MICRO, affine=AffineLayout(True, True, AffineAxes.GROUP))
    ),
    Case("group, one group", NormSpec(PerGroup(1), TEN_MICRO, affine=BOTH)),
    Case("group, as many as channels", NormSpec(PerGroup(6), TEN_MICRO, affine=BOTH)),
    Case("group, SiLU", NormSpec(PerGroup(2), TEN_MICRO, affine=BOTH, activation=Activation.SILU)),
    Case("group, channels last", NormSpec(PerGroup(2), TEN_MICRO, affine=BOTH, channel_axis=-1), (2, 4, 5, 6)),
    Case("instance, channels last", NormSpec(PerChannel(), TEN_MICRO, affine=BOTH, channel_axis=-1), (2, 4, 5, 6)),
    Case("layer", NormSpec(Trailing((-1,)), TEN_MICRO, affine=ALONG), SEQUENCE),
    Case("layer, two axes", NormSpec(Trailing((-2, -1)), TEN_MICRO, affine=ALONG), SEQUENCE),
    Case("layer, no bias", NormSpec(Trailing((-1,)), TEN_MICRO, affine=replace(ALONG, bias=False)), SEQUENCE),
    Case("layer, residual", NormSpec(Trailing((-1,)), TEN_MICRO, affine=ALONG), SEQUENCE, residual=True),
    Case("layer, scale per row", NormSpec(Trailing((-2, -1)), TEN_MICRO, affine=ALONG), SEQUENCE, along=(4, 1)),
    Case(
        "layer, scale of the last axis",
        NormSpec(Trailing((-2, -1)), TEN_MICRO, affine=ALONG),
        SEQUENCE,
        along=(32,),
    ),
    Case("layer, no affine", NormSpec(Trailing((-1,)), TEN_MICRO), SEQUENCE),
    Case("layer, bias", NormSpec(Trailing((-1,)), TEN_MICRO, affine=replace(ALONG, scale=False)), SEQUENCE),
    Case("layer, GELU", NormSpec(Trailing((-1,)), TEN_MICRO, affine=ALONG, activation=Activation.GELU), SEQUENCE),
    Case("layer, an inner axis", NormSpec(Trailing((-2,)), TEN_MICRO), SEQUENCE),
    Case("layer, axes with a gap", NormSpec(Trailing((-3, -1)), TEN_MICRO), SEQUENCE),
    Case("layer, of channels", NormSpec(Trailing((-3,)), TEN_MICRO, affine=ALONG), along=(6, 1, 1)),
    Case(
        "layer, no bias, residual, SiLU",
        NormSpec(Trailing((-1,)), TEN_MICRO, affine=replace(ALONG, bias=False), activation=Activation.SILU),
        SEQUENCE,
        residual=True,
    ),
    Case("group, residual", NormSpec(PerGroup(2), TEN_MICRO, affine=BOTH), residual=True),
    Case("instance, ReLU", NormSpec(PerChannel(), TEN_MICRO, affine=BOTH, activation=Activation.RELU)),
    Case(
        "instance, leaky ReLU",
        NormSpec(PerChannel(), TEN_MICRO, affine=BOTH, activation=Activation.LEAKY_RELU, slope=MILLI),
    ),
    Case(
        "layer, residual, leaky ReLU",
        NormSpec(Trailing((-1,)), TEN_MICRO, affine=ALONG, activation=Activation.LEAKY_RELU, slope=HALF),
        SEQUENCE,
        residual=True,
    ),
    Case("instance, bias", NormSpec(PerChannel(), TEN_MICRO, affine=AffineLayout(bias=True))),
    Case("batch statistics", NormSpec(Batch(), TEN_MICRO, affine=BOTH)),
    Case("batch, channels last", NormSpec(Stored(), MILLI, affine=BOTH, channel_axis=-1), (2, 4, 5, 6)),
    Case(
        "rms, of channels",
        NormSpec(Trailing((-3,)), MICRO, centred=False, affine=replace(ALONG, bias=False)),
        along=(6, 1, 1),
    ),
    Case("rms, of positions", NormSpec(PerChannel(), MICRO, centred=False, affine=BOTH), reads=False),
    Case("rms, of groups", NormSpec(PerGroup(2), MICRO, centred=False, affine=BOTH), reads=False),
    Case("rms, no affine", NormSpec(Trailing((-1,)), MICRO, centred=False), SEQUENCE),
    Case(
        "rms, scale of the shape of x",
        NormSpec(Trailing((-1,)), MICRO, centred=False, affine=replace(ALONG, bias=False)),
        SEQUENCE,
        along=SEQUENCE,
        reads=False,
    ),
    Case("rms, bias", NormSpec(Trailing((-1,)), MICRO, centred=False, affine=ALONG), SEQUENCE, reads=False),
    Case(
        "rms, residual",
        NormSpec(Trailing((-1,)), MICRO, centred=False, affine=replace(ALONG, bias=False)),
        SEQUENCE,
        residual=True,
    ),
    Case(
        "layer, float32 statistics",
        NormSpec(Trailing((-1,)), TEN_MICRO, affine=ALONG, compute_type=ComputeType.FLOAT),
        SEQUENCE,
    ),
    Case("rms", NormSpec(Trailing((-1,)), MICRO, centred=False, affine=replace(ALONG, bias=False)), SEQUENCE),
    Case(
        "rms, two axes", NormSpec(Trailing((-2, -1)), MICRO, centred=False, affine=replace(ALONG, bias=False)), SEQUENCE
    ),
)

GRID = [
    *((F32, opset, True) for opset in (7, 9, 11, 13, 15, 17, 18, 20, 21, 22, 23, NEWEST)),
    *((F32, opset, False) for opset in (7, 12, 17, 21, 23)),
    *((F64, opset, False) for opset in (7, 13, 17, 18, 21, 23)),
    *((F16, opset, True) for opset in (7, 13, 17, 18, 21, 23)),
    *((BF16, opset, True) for opset in (13, 17, 18, 21, 23)),
]


@pytest.mark.parametrize("form", [Form.STANDARD, Form.PRIMITIVE, Form.CUSTOM, Form.ORT], ids=lambda form: form.value)
@pytest.mark.parametrize(("dtype", "opset", "static"), GRID)
def test_reads_back_and_computes_the_same(dtype: ir.DataType, opset: int, static: bool, form: Form) -> None:
    for case in CASES:
        if case.spec.activation is Activation.GELU and opset < 9:
            continue  # declined: Erf came with opset 9
        model, site, arrays = placeholder(case, dtype, opset, static=static)
        reading = reading_of(model)
        replacement = emit(site, form, reading, opset)
        if form is Form.ORT and isinstance(replacement, Declined):
            assert replacement.reason == "onnxruntime's CPU provider has no kernel for com.microsoft GroupNorm"
            continue
        assert isinstance(replacement, Replacement), (case, replacement)
        editor = Editor(model)
        editor.apply(replacement, site.root)
        editor.finish()
        if form is not Form.ORT:  # onnx.checker does not know what onnxruntime adds to the default domain
            onnx.checker.check_model(ir.to_proto(model), full_check=True)
        assert [value.name for value in model.graph.outputs] == ["y"]
        if case.reads or model.functions:
            check_reading(case, dtype, opset, form, model, static=static)
        check_numbers(case, dtype, opset, model, arrays)


def check_reading(case: Case, dtype: ir.DataType, opset: int, form: Form, model: ir.Model, *, static: bool) -> None:
    reading = reading_of(model)
    found = [site for site in find_norms(model.graph, reading) if isinstance(site, NormSite)]
    types = set(node_types(model))
    if form is Form.PRIMITIVE:
        assert not types & NATIVE, case
    if isinstance(case.spec.statistics, Stored) and not types & NATIVE:
        return  # Mul and Add by constants: recognised by what they fold into
    assert len(found) == 1, (case, node_types(model))
    (site,) = found
    is_custom = site.root.domain == "ai.normfuse"
    is_chain = not any("Norm" in op_type for op_type in types)
    affine = case.spec.affine
    if is_chain and not static and affine.axes is AffineAxes.NORMALISED:
        # The last axis could be 1, and γ would then widen the result: it is no part of the norm.
        affine = AffineLayout()
    elif dtype not in (F16, BF16):  # half types may be rounded in between
        followed = with_activation(site, reading).spec
        assert (followed.activation, followed.slope) == (case.spec.activation, case.spec.slope), case
    channels = case.shape[case.spec.channel_axis]
    expected = canonical(
        # Activations, residuals and the Transposes around a channels-first operator stay outside the site.
        replace(
            case.spec,
            activation=site.spec.activation if is_custom else Activation.NONE,
            slope=0.0,
            channel_axis=case.spec.channel_axis if is_chain or is_custom else 1,
            affine=affine,
        ),
        channels=channels,
        rank=len(case.shape),
    )
    actual = canonical(without_unit_affine(site, case, reading), channels=channels, rank=len(case.shape))
    if dtype in (F16, BF16):
        # Half types are never narrowed, and may be widened: InstanceNormalization has no stash_type to say so.
        expected, actual = (replace(spec, compute_type=ComputeType.INPUT) for spec in (expected, actual))
    elif expected.compute_type is ComputeType.FLOAT:
        expected = replace(expected, compute_type=ComputeType.INPUT)  # not wider than x: it says nothing
    assert actual == expected, (case, opset, node_types(model))


def without_unit_affine(site: NormSite, case: Case, reading: Reading) -> NormSpec:
    """Return the spec found, without the ones and zeros that an operator demands where the norm has no affine."""
    found, wanted = site.spec.affine, case.spec.affine
    if found.scale and not wanted.scale:
        assert site.operands.scale is not None
        scale = reading.constants.array(site.operands.scale)
        assert scale is not None
        assert (scale == 1).all()
        found = replace(found, scale=False)
    if found.bias and not wanted.bias:
        bias = reading.constants.array(site.operands.bias)
        assert bias is not None
        assert (bias == 0).all()
        found = replace(found, bias=False)
    return replace(site.spec, affine=found)


def check_numbers(case: Case, dtype: ir.DataType, opset: int, model: ir.Model, arrays: dict[str, Array]) -> None:
    feeds = {name: arrays[name].astype(np.float32 if dtype == BF16 else dtype.numpy()) for name in ("x", "residual")}
    if not case.residual:
        del feeds["residual"]
    runs = all(
        has_kernel(node.op_type, _type(node)) for node in model.graph if node.op_type in NATIVE - {"GroupNormalization"}
    )
    if dtype == BF16 and (not runs or {"GroupNormalization", "Add"} & set(node_types(model))):
        return  # no runtime here computes it
    if dtype == F64 and case.spec.activation is Activation.GELU:
        return  # onnxruntime has no Erf for float64, and onnx.reference computes it in float32
    # onnxruntime does not know the newest opset yet, and has Max for float64 from version 8 on.
    missing = dtype == F64 and opset < 8 and "Max" in node_types(model)
    on_runtime = runs and opset < NEWEST and not missing
    results = [run(model, feeds)[0]] if on_runtime else []
    if not on_runtime or model.functions:
        # The bodies of ai.normfuse are promised to be right on onnx.reference too.
        results.append(np.asarray(next(iter(onnx.reference.ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)))))
    expected = evaluate(case.spec, arrays)
    for actual in results:
        error = np.abs(actual.astype(np.float64) - expected).max()
        assert error <= tolerance(dtype, expected), (case, opset, node_types(model))


def tolerance(dtype: ir.DataType, expected: Array) -> float:
    """Return the largest error of a right result, absolute.

    In the type of the computation (float32 for halves): ten roundings and a mean over at most 128 elements, summed
    pairwise (log2 128 = 7 roundings), amplified by |x| / sqrt(σ² + ε) < 8 where x − μ cancels: 17 · 8 < 2^8 units, of
    values up to max |y|. In a half type: one more rounding, of the result, at most one unit.
    """
    largest = max(1.0, float(np.abs(expected).max()))
    wide = np.finfo(np.float64 if dtype == F64 else np.float32).eps
    narrow = {F16: 2.0**-10, BF16: 2.0**-7}.get(dtype, 0.0)
    return (2**8 * float(wide) + narrow) * largest


def _type(node: ir.Node) -> ir.DataType:
    value = node.inputs[0]
    assert value is not None
    assert value.dtype is not None
    return value.dtype


def placeholder(
    case: Case, dtype: ir.DataType, opset: int, *, static: bool
) -> tuple[ir.Model, NormSite, dict[str, Array]]:
    """Return a model whose only norm is a placeholder node, the site to write in its stead, and the arrays of it all.

    bfloat16, which onnxruntime takes from NumPy neither in nor out, is cast from and to float32 at the ends.
    """
    arrays = arrays_of(case, dtype)
    shape = ir.Shape(case.shape if static else dynamic(case))
    outer = F32 if dtype == BF16 else dtype
    inputs = [ir.Value(name="x", shape=shape, type=ir.TensorType(outer))]
    if case.residual:
        inputs.append(ir.Value(name="residual", shape=shape, type=ir.TensorType(outer)))
    nodes: list[ir.Node] = []
    inner = inputs
    if dtype == BF16:
        nodes = [ir.node("Cast", [value], {"to": int(BF16)}, name=f"to_{value.name}") for value in inputs]
        inner = [node.outputs[0] for node in nodes]
        for value in inner:
            value.dtype, value.shape = BF16, shape
    parameters = {
        name: initializer(name, ir.tensor(array.astype(dtype.numpy()), dtype=dtype, name=name))
        for name, array in arrays.items()
        if name not in ("x", "residual")
    }
    root = ir.node("Placeholder", [*inner, *parameters.values()], domain="test", name="norm")
    root.outputs[0].dtype, root.outputs[0].shape, root.outputs[0].name = dtype, shape, "y"
    nodes.append(root)
    output = root.outputs[0]
    if dtype == BF16:
        output.name = "norm_y"
        nodes.append(ir.node("Cast", [output], {"to": int(F32)}, name="from_y"))
        output = nodes[-1].outputs[0]
        output.name, output.dtype, output.shape = "y", F32, shape
    graph = ir.Graph(
        inputs, [output], nodes=nodes, initializers=tuple(parameters.values()), opset_imports={"": opset}, name="main"
    )
    model = ir.Model(graph, ir_version=10)
    operands = Operands(inner[0], residual=inner[1] if case.residual else None, **parameters)
    return model, NormSite(case.spec, operands, "placeholder", root, (root,)), arrays


def dynamic(case: Case) -> list[int | str]:
    """Return the shape with every axis symbolic but the channels; with all of them where no operator asks for those."""
    statics = () if isinstance(case.spec.statistics, Trailing) else (case.spec.channel_axis % len(case.shape),)
    return [size if axis in statics else f"d{axis}" for axis, size in enumerate(case.shape)]


def arrays_of(case: Case, dtype: ir.DataType) -> dict[str, Array]:
    """Return random arrays, rounded to ``dtype``; the first sample is small, so that a lost epsilon shows."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal(case.shape) + 0.5
    x[0] *= 3e-3
    arrays = {"x": x, "residual": rng.standard_normal(case.shape) * 0.5 if case.residual else np.zeros(case.shape)}
    statistics, affine = case.spec.statistics, case.spec.affine
    size: tuple[int, ...] = (case.shape[case.spec.channel_axis],)
    if affine.axes is AffineAxes.GROUP:
        assert isinstance(statistics, PerGroup)
        size = (statistics.groups,)
    if affine.axes is AffineAxes.NORMALISED:
        assert isinstance(statistics, Trailing)
        size = case.along or case.shape[statistics.axes[0] :]
    if affine.scale:
        arrays["scale"] = rng.uniform(0.5, 1.5, size)
    if affine.bias:
        arrays["bias"] = rng.standard_normal(size)
    if isinstance(statistics, Stored):
        arrays["mean"], arrays["var"] = rng.standard_normal(size), rng.uniform(0.5, 2.0, size)
    return {name: array.astype(dtype.numpy()).astype(np.float64) for name, array in arrays.items()}


TWICE = [
    # What was written once reads as another norm: one of float32 between Casts, one whose groups are of one channel.
    ("instance", Form.CUSTOM, Form.ORT, BF16, 17, True),
    ("group, rank 2, as many as channels", Form.CUSTOM, Form.STANDARD, F64, 13, False),
    *(
        (case.name, source, target, *row)
        for index, (case, source, target, row) in enumerate(
            itertools.product(CASES, (Form.STANDARD, Form.PRIMITIVE, Form.CUSTOM, Form.ORT), Form, GRID)
        )
        if index % 97 == 0
    ),
]


def test_fusing_from_any_form_to_any_other_is_done_once() -> None:
    """The second time changes no byte."""
    for name, source, target, dtype, opset, static in TWICE:
        (case,) = (each for each in CASES if each.name == name)
        model, site, _ = placeholder(case, dtype, opset, static=static)
        replacement = emit(site, source, reading_of(model), opset)
        if not isinstance(replacement, Replacement):
            continue
        editor = Editor(model)
        editor.apply(replacement, site.root)
        editor.finish()
        once = io.to_proto(normfuse.fuse(io.to_proto(model), Target(target))[0])
        twice, report = normfuse.fuse(once, Target(target))
        assert not report.rewrites, (name, source, target, dtype, opset, static)
        assert io.to_proto(twice).SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)


@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("form", list(Form))
def test_saved_statistics_keep_their_shape(form: Form, axis: int) -> None:
    """Mean and InvStdDev are read: over all axes but the first, the norm is one of a group, whose view has other shapes."""

    def typed(dims: list[int]) -> str:
        return f"float[{','.join(map(str, dims))}]"

    sizes = [2, 3, 4, 5]
    size, kept = sizes[axis:], [*sizes[:axis], *[1] * len(sizes[axis:])]
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g ({typed(sizes)} x, {typed(size)} s, {typed(size)} b) => ({typed(sizes)} y, {typed(kept)} m, {typed(kept)} r)
        {{ y, m, r = LayerNormalization <axis = {axis}> (x, s, b) }}"""
    model = onnx.parser.parse_model(text)
    fused, _ = normfuse.fuse(model, Target(form, native=False))
    report = normfuse.validate(model, fused, providers=())
    assert report.verdict.value == "EQUIVALENT", report.table()
    again, _ = normfuse.fuse(fused, Target(form, native=False))
    assert ir.to_proto(again).SerializeToString(deterministic=True) == ir.to_proto(fused).SerializeToString(
        deterministic=True
    )
