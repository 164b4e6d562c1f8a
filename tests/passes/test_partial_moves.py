"""Norms that move in halves or in part: what is left is written where it is less work, and said."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from normfuse import Form, Target
from normfuse.passes.spread import Spread
from normfuse.validate.oracle import Oracle
from tests.folding import Array, assert_same, build, count, fuse, normal, reasons
from tests.passes.random_graphs import move_all
from tests.passes.test_move_affine import BN, ints, operators, rows

W, V, U = normal(4, 3, 3, 3), normal(4, 4, 3, 3, seed=5), normal(4, 3, 1, 1, seed=6)
SLOPES = np.array([[[0.3]], [[0.2]], [[0.1]], [[0.4]]], np.float32)
POOL = "MaxPool <kernel_shape = [2,2], strides = [2,2]>"

CASES: list[tuple[str, str, dict[str, Array], int, str, str, str]] = [
    ("the shift back, the scale on", f"c = Conv (x, W) p = {POOL} (c) n = {BN.format('p')} y = Conv <pads = [1,1,1,1]> (n, V)",
     {"W": W, "V": V}, 4, "any", "Conv MaxPool Conv", "back through MaxPool 'MaxPool → p'"),
    ("the scale back, the shift on", f"c = Conv (x, W) r = Relu (c) d = Conv (x, W) t = Sigmoid (d) n = {BN.format('r')} a = Add (n, t) y = Conv (a, V)",
     {"W": W, "V": V}, 4, "positive", "Conv Relu Conv Sigmoid Add Conv", "back through Relu 'Relu → r'; on through Add 'Add → a'"),
    ("one operand of a Concat", f"c = Conv (x, U) t = Sigmoid (x) k = Concat <axis = 1> (c, t) n = {BN.format('k')} y = Sigmoid (n)",
     {"U": U}, 7, "any", "Conv Sigmoid BatchNormalization Concat Sigmoid", "back through Concat 'Concat → k'; a norm remains before Concat 'Concat → k'"),
    ("a small operand of a sum", f"c = Conv (x, U) g = GlobalAveragePool (x) h = Conv (g, U) t = Sigmoid (h) k = Add (c, t) n = {BN.format('k')} y = Sigmoid (n)",
     {"U": U}, 4, "any", "Conv GlobalAveragePool Conv Sigmoid BatchNormalization Add Sigmoid",
     "back through Add 'Add → k'; its scale remains before Add 'Add → k'"),
    ("behind a pooling", f"n = {BN.format('x')} p = {POOL} (n) y = Sigmoid (p)",
     {}, 3, "positive", "MaxPool BatchNormalization Sigmoid", "on through MaxPool 'MaxPool → p'; a norm remains behind MaxPool 'MaxPool → p'"),
    ("behind a pooling, before what could only take the scale", f"n = {BN.format('x')} p = {POOL} (n) y = Conv <pads = [1,1,1,1]> (p, W)",
     {"W": W}, 3, "positive", "MaxPool BatchNormalization Conv", "on through MaxPool 'MaxPool → p'; a norm remains behind MaxPool 'MaxPool → p'"),
    ("the end of the graph", f"n = {BN.format('x')} y = {POOL} (n)",
     {}, 3, "positive", "MaxPool BatchNormalization", "on through MaxPool 'MaxPool → y'; a norm remains behind MaxPool 'MaxPool → y'"),
    ("one part of a Split", f"n = {BN.format('x')} p, q = Split <axis = 1> (n, A) t = Conv (p, K) r = Sigmoid (q) y = Concat <axis = 1> (t, r)",
     {"A": ints(1, 2), "K": normal(2, 1, 1, 1)}, 3, "near", "Split BatchNormalization Conv Sigmoid Concat", "on through Split 'Split → p'; a norm remains behind Split 'Split → p'"),
    ("two operators become one", f"n = {BN.format('x')} k = Add (n, M) y = Sigmoid (k)",
     {"M": normal(3, 1, 1)}, 3, "any", "BatchNormalization Sigmoid", "a norm remains in its place"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "arrays", "channels", "kind", "after", "note"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_moves_in_part(body: str, arrays: dict[str, Array], channels: int, kind: str, after: str, note: str) -> None:
    found = rows(channels, kind)
    if kind == "near":
        found["m"] = np.asarray(found["m"].astype(np.float32) * np.float32(0.2))
    proto = build(f"g (float[2,3,8,6] x) => (float[a,b,c,d] y) {{ {body} }}", {**arrays, **found}, opset=18)
    fused, report = fuse(proto)
    assert operators(fused) == after
    assert [rewrite.note for rewrite in report.rewrites if rewrite.kind == "move-batchnorm"] == [note]
    assert_same(proto, fused)
    assert not fuse(ir.to_proto(fused))[1].rewrites


@pytest.mark.parametrize("sizes", ["2,3,8,6", "1,3,32,40"])
@pytest.mark.parametrize(
    ("body", "arrays", "channels", "kind"),
    [
        *(case[1:5] for case in CASES),
        (
            f"c = Conv <pads = [1,1,1,1]> (x, W) r = PRelu (c, P) t = Sigmoid (x) k = Concat <axis = 1> (r, t) n = {BN.format('k')} y = Sigmoid (n)",
            {"W": W, "P": SLOPES},
            7,
            "any",
        ),
    ],
    ids=[*(case[0] for case in CASES), "the scale alone of one operand"],
)
def test_what_is_left_in_elementary_operators_is_two_of_them(
    body: str, arrays: dict[str, Array], channels: int, kind: str, sizes: str
) -> None:
    """Where a norm becomes Mul and Add in the end, what is less work is counted so: fusing again finds nothing."""
    proto = build(
        f"g (float[{sizes}] x) => (float[a,b,c,d] y) {{ {body} }}", {**arrays, **rows(channels, kind)}, opset=18
    )
    proto = onnx.shape_inference.infer_shapes(proto)
    fused, _ = fuse(proto, target=Target(Form.PRIMITIVE))
    assert count(fused, "BatchNormalization") == 0
    assert_same(proto, fused)
    again, report = fuse(ir.to_proto(fused), target=Target(Form.PRIMITIVE))
    assert (operators(again), report.rewrites) == (operators(fused), ())


@pytest.mark.parametrize("sizes", ["1,3,40,40", "2,3,8,8", "N,3,H,W"])
def test_the_shift_of_an_input_stays_as_one_add(sizes: str) -> None:
    """A norm of the graph's input before a padded Conv, as in MXNet's models: nothing is blocked."""
    text = f"g (float[{sizes}] x) => (float[a,b,c,d] y) {{ n = {BN.format('x')} y = Conv <pads = [1,1,1,1]> (n, W) }}"
    arrays: dict[str, Array] = {"W": W, **rows(3)}
    proto = build(text, arrays, opset=18)
    fused, report = fuse(proto)
    assert operators(fused) == "Add Conv"
    assert [record.plan for record in report.norms] == ["fold into Conv → y; its shift remains in its place"]  # fmt: skip
    assert_same(proto, fused)


@pytest.mark.parametrize("size", [8, 56])
def test_between_convolutions_an_add_would_be_slower(size: int) -> None:
    text = f"g (float[1,3,{size},{size}] x) => (float[a,b,c,d] y) {{ c = Conv (x, W) r = Relu (c) n = {BN.format('r')} y = Conv <pads = [1,1,1,1]> (n, V) }}"
    fused, report = fuse(build(text, {"W": W, "V": V, **rows(4)}, opset=18))
    assert count(fused, "BatchNormalization") == 1
    assert len(reasons(report)) == 1


def test_an_output_keeps_its_name() -> None:
    text = f"g (float[2,3,8,6] x) => (float[a,b,c,d] y) {{ n = {BN.format('x')} y = {POOL} (n) }}"
    fused, _ = fuse(build(text, rows(3, "positive"), opset=18))
    assert [node.outputs[0].name for node in fused.graph] == ["y_before", "y"]


def test_a_scale_of_zero_cannot_come_behind_its_shift() -> None:
    assert len(Spread(np.array([[0.0, 2.0]]), np.array([[1.0, 3.0]])).split()) == 1
    (scaled, shift), (first, second) = Spread(np.array([[4.0, 2.0]]), np.array([[1.0, 3.0]])).split()
    assert (scaled.scale.tolist(), shift.shift.tolist()) == ([[4.0, 2.0]], [[1.0, 3.0]])
    assert (first.shift.tolist(), second.scale.tolist()) == ([[0.25, 1.5]], [[4.0, 2.0]])


def test_a_pad_whose_value_is_not_said_is_given_one() -> None:
    """One shift for all channels: what is filled in becomes it."""
    arrays = {"W": W, "A": ints(0, 0, 1, 1, 0, 0, 2, 0), **rows(4)}
    arrays["b"], arrays["m"] = np.full(4, 0.7, np.float32), np.zeros(4, np.float32)
    text = f"g (float[2,3,8,6] x) => (float[a,b,c,d] y) {{ c = Conv (x, W) e = Pad (c, A) y = {BN.format('e')} }}"
    proto = onnx.shape_inference.infer_shapes(build(text, arrays, opset=18))
    fused, _ = fuse(proto)
    assert operators(fused) == "Conv Pad"
    assert_same(proto, fused)


def test_a_pad_behind_the_norm_gets_what_becomes_its_value() -> None:
    """One map for all channels: the norm makes the constant of what is padded in its place."""
    arrays: dict[str, Array] = {"W": W, "A": ints(0, 0, 1, 1, 0, 0, 2, 0), "F": np.array(0.4, np.float32),
              **{name: np.full(3, value, np.float32) for name, value in (("s", 1.7), ("b", 0.6), ("m", 0.3), ("v", 2.0))}}  # fmt: skip
    text = f"g (float[2,3,8,6] x) => (float[a,b,c,d] y) {{ n = {BN.format('x')} e = Pad (n, A, F) y = Conv (e, W) }}"
    proto = onnx.shape_inference.infer_shapes(build(text, arrays, opset=18))
    fused, _ = fuse(proto)
    assert operators(fused) == "Pad Conv"
    assert_same(proto, fused)


def test_halves_of_float16_stay_together() -> None:
    """Between scale and shift a float16 may leave its range where the norm's own result did not."""
    body = f"c = Conv (x, W) p = {POOL} (c) n = {BN.format('p')} y = Conv <pads = [1,1,1,1]> (n, V)"
    halves = {name: array.astype(np.float16) for name, array in {"W": W, "V": V, **rows(4)}.items()}
    proto = build(f"g (float16[2,3,8,6] x) => (float16[a,b,c,d] y) {{ {body} }}", halves, opset=18)
    proto = onnx.shape_inference.infer_shapes(proto)
    assert count(fuse(proto)[0], "BatchNormalization") == 1


GROWN = [
    ("2 of 4 channels", "AveragePool <kernel_shape = [2,2], pads = [1,1,1,1]> (e)", ints(2, 3), True),
    ("3 of 4 channels, 49 of 36 positions", "AveragePool <kernel_shape = [2,2], pads = [1,1,1,1]> (e)", ints(1, 2, 3), False),
    ("3 of 4 channels, as many positions", "AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (e)", ints(1, 2, 3), True),
]  # fmt: skip


@pytest.mark.parametrize("size", ["6", "H"])
@pytest.mark.parametrize(("pool", "kept", "moves"), [case[1:] for case in GROWN], ids=[case[0] for case in GROWN])
def test_a_pool_that_pads_past_its_window_makes_more(size: str, pool: str, kept: Array, moves: bool) -> None:
    """A norm goes on to fewer channels only where that is less in all, and never there and back again."""
    text = f"""g (float[2,4,{size},{size}] x) => (float[a,b,c,d] y) {{ a = Elu (x)  e = {BN.format("a")}
        p = {pool}  q = Gather <axis = 1> (p, K)  r = Relu (q)  y = ConvTranspose (r, T) }}"""
    arrays = {"K": kept, "T": normal(len(kept), 2, 1, 1), **rows(4)}
    proto = build(text, arrays)
    moved, found, _ = move_all(proto)
    assert bool(found) == (moves and size == "6")  # a Gather of sizes that are not known may make more
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 6, 6))}
    before, after = (Oracle(source).run(feeds)["y"].data for source in (ir.from_proto(proto), moved))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
