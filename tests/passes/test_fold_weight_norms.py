"""Norms of weights: folded where nothing but constants goes into them, exactly, and nowhere else."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import normfuse
from normfuse.graph.constants import Constants
from normfuse.passes.fold_weight_norms import weight_norms
from tests.folding import BN, assert_same, build, normal, parameters

X, Y = "float[2,3,6,6] x", "float[2,4,6,6] y"
SPELLINGS = {
    "weight normalization": "n = ReduceL2 <axes = [1,2,3], keepdims = 1> (W)  u = Div (W, n)  w = Mul (u, g)",
    "weight standardisation": "M = ReduceMean <axes = [1,2,3]> (W)  d = Sub (W, M)  q = Mul (d, d)  "
    "k = ReduceMean <axes = [1,2,3]> (q)  a = Add (k, e)  r = Sqrt (a)  w = Div (d, r)",
    "spectral normalization": "f = Flatten <axis = 1> (W)  k = MatMul (U, f)  t = MatMul (k, V)  w = Div (W, t)",
    "as an instance norm": "i = Unsqueeze <axes = [0]> (F)  n = InstanceNormalization (i, one, zero)  w = Reshape (n, shape)",
    "as a batch norm of the weight": "i = Unsqueeze <axes = [0]> (F)  n = BatchNormalization (i, one, zero, mean, var)  "
    "w = Reshape (n, shape)",
}
ARRAYS = {
    "W": np.asarray(normal(4, 3, 1, 1, seed=1), np.float32) + 0.5, "g": np.abs(np.asarray(normal(4, 1, 1, 1, seed=2), np.float32)), "e": np.array([1e-5], np.float32),
    "U": normal(1, 4, seed=3), "V": normal(3, 1, seed=4), "F": normal(4, 3, seed=5), "one": np.ones(4, np.float32),
    "zero": np.zeros(4, np.float32), "mean": normal(4, seed=6), "var": np.abs(np.asarray(normal(4, seed=7), np.float32)) + 1,
    "shape": np.array([4, 3, 1, 1]),
}  # fmt: skip


def model(weight: str, *, tail: str = "y = Conv (x, w)", outputs: str = Y, inputs: str = X) -> onnx.ModelProto:
    return build(f"g ({inputs}) => ({outputs}) {{ {weight}  {tail} }}", {**ARRAYS, **parameters(4)}, opset=11)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_folds_to_a_weight(spelling: str) -> None:
    original = model(SPELLINGS[spelling])
    fused, report = normfuse.fuse(original, validate=True)
    assert [node.op_type for node in fused.graph] == ["Conv"]
    assert [rewrite.kind for rewrite in report.rewrites] == ["fold-weight-norm"]
    assert (report.norms, report.declined) == ((), ())
    assert report.validation is not None
    assert report.validation.verdict is normfuse.Verdict.EQUIVALENT
    assert_same(original, fused)
    assert normfuse.fuse(fused)[1].rewrites == ()


def test_the_batch_norm_behind_folds_into_the_folded_weight() -> None:
    original = model(SPELLINGS["weight normalization"], tail=f"c = Conv (x, w)  y = {BN}")
    fused, report = normfuse.fuse(original)
    assert [node.op_type for node in fused.graph] == ["Conv"]
    assert [rewrite.kind for rewrite in report.rewrites] == ["fold-weight-norm", "fold-batchnorm"]
    assert_same(original, fused)


def test_a_weight_that_something_else_reads_is_folded_for_both() -> None:
    original = model(
        SPELLINGS["weight normalization"], tail="y = Conv (x, w)  z = Identity (w)", outputs=f"{Y}, float[4,3,1,1] z"
    )
    fused, _ = normfuse.fuse(original)
    assert [node.op_type for node in fused.graph] == ["Conv", "Identity"]
    assert_same(original, fused)


@pytest.mark.parametrize(
    ("weight", "inputs"),
    [
        ("a = Abs (W)  w = Mul (a, g)", X),
        ("n = ReduceL2 <axes = [1,2,3], keepdims = 1> (P)  w = Div (P, n)", f"{X}, float[4,3,1,1] P"),
    ],
    ids=["no norm", "a weight that is an input"],
)
def test_other_weights_stay(weight: str, inputs: str) -> None:
    _, report = normfuse.fuse(model(weight, inputs=inputs))
    assert not [rewrite for rewrite in report.rewrites if rewrite.kind == "fold-weight-norm"]


def test_a_filter_of_zeros_is_declined() -> None:
    arrays = {**ARRAYS, "W": np.zeros((4, 3, 1, 1), np.float32)}
    text = f"g ({X}) => ({Y}) {{ {SPELLINGS['weight normalization']}  y = Conv (x, w) }}"
    _, report = normfuse.fuse(build(text, arrays, opset=11))
    assert [entry.reason for entry in report.declined] == ["the norm of its weight 'w' is not finite in its type"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_are_declined(dtype: str) -> None:
    number = ir.DataType[dtype.upper()].numpy()
    arrays = {name: array.astype(number) for name, array in ARRAYS.items() if name in ("W", "g")}
    text = f"g ({dtype}[2,3,6,6] x) => ({dtype}[2,4,6,6] y) {{ {SPELLINGS['weight normalization']}  y = Conv (x, w) }}"
    _, report = normfuse.fuse(build(text, arrays, opset=13))
    assert report.rewrites == ()
    assert [entry.reason for entry in report.declined] == [
        f"the norm of its weight 'w' is of type {dtype}, "
        "and a weight rounded to that type differs from one that is computed by more than rounding may"
    ]


FUNCTION = """<ir_version: 8, opset_import: ["": 13, "my": 1]>
    g (float[2,2,5,5] x) => (float[2,2,5,5] y) { y = my.layer (x) }
    <domain: "my", opset_import: ["": 13]> layer (p) => (q) {
        W = Constant <value = float[2,2,1,1] {1.0, 2.0, -3.0, 0.5}> ()  g = Constant <value = float[2,1,1,1] {0.7, 1.3}> ()
        n = ReduceL2 <axes = [1,2,3], keepdims = 1> (W)  u = Div (W, n)  w = Mul (u, g)  q = Conv (p, w) }"""


def test_folds_inside_a_function() -> None:
    original = onnx.parser.parse_model(FUNCTION)
    fused, report = normfuse.fuse(original)
    (function,) = fused.functions.values()
    assert [node.op_type for node in function] == ["Constant", "Conv"]
    assert [rewrite.kind for rewrite in report.rewrites] == ["fold-weight-norm"]
    assert_same(original, fused)
    assert normfuse.fuse(fused)[1].rewrites == ()


def test_a_parameter_of_a_function_is_no_constant_weight() -> None:
    text = FUNCTION.replace("layer (p)", "layer (p, W)").replace(
        "W = Constant <value = float[2,2,1,1] {1.0, 2.0, -3.0, 0.5}> ()", ""
    )
    text = text.replace("g (float[2,2,5,5] x)", "g (float[2,2,5,5] x, float[2,2,1,1] v)").replace(
        "my.layer (x)", "my.layer (x, v)"
    )
    assert normfuse.fuse(onnx.parser.parse_model(text))[1].rewrites == ()


def test_the_report_says_why_the_weights_grew() -> None:
    original = model(
        SPELLINGS["weight normalization"], tail="y = Conv (x, w)  z = Identity (W)", outputs=f"{Y}, float[4,3,1,1] z"
    )
    _, report = normfuse.fuse(original)
    grown = report.size.after - report.size.before
    assert grown == 4 * (12 - 4)  # w is stored, g goes
    assert report.notes == (
        f"the weights grew by {grown} bytes: a weight that was computed is stored beside what else reads its parts, "
        "or what several nodes shared has a copy each, or a form has constants of its own",
    )


def test_skip_leaves_it() -> None:
    original = model(SPELLINGS["weight normalization"])
    original.graph.node[1].name = "/weight/Div"
    assert normfuse.fuse(original, skip="weight")[1].rewrites == ()


def test_the_way_of_the_data_is_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many linear operators stand one behind the other."""

    def asked(count: int) -> int:
        lines = [
            "h0 = Relu (x)",
            *(f"c{i} = Conv (h{i}, W)  r{i} = Relu (c{i})  h{i + 1} = Neg (r{i})" for i in range(count)),
        ]
        text = f"g (float[2,3,6,6] x) => (float[2,3,6,6] y) {{ {'  '.join(lines)}  y = Identity (h{count}) }}"
        read = ir.from_proto(build(text, {"W": normal(3, 3, 1, 1)}, opset=11))
        calls = 0

        def tensor(constants: Constants, value: ir.Value | None) -> ir.TensorProtocol | None:
            nonlocal calls
            calls += 1
            return original(constants, value)

        original = Constants.tensor
        with monkeypatch.context() as patch:
            patch.setattr(Constants, "tensor", tensor)
            assert weight_norms(read.graph, Constants(read)) == []
        return calls

    assert asked(40) <= 4 * asked(10)
