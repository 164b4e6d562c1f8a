"""Multiply-adds, parameters and bytes against numbers counted by hand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from normfuse.passes.work import Meter
from normfuse.report.records import Work
from tests.folding import Array, build, fuse, normal, parameters
from tests.passes.test_move_affine import ints

CASES: list[tuple[str, str, str, dict[str, Array], Work]] = [
    # 2·4·6·6 results of 3·3·3 products; x 2·3·8·8, W 4·27, y 2·4·6·6 numbers of 4 bytes
    ("Conv", "float[2,3,8,8] x", "y = Conv (x, W)", {"W": normal(4, 3, 3, 3)},
     Work(288 * 27, 108, 4 * (384 + 108 + 288), False)),
    # strides 2, pads 1, dilation 2: ⌊(8 + 2 − 5)/2⌋ + 1 = 3; two groups of one input channel each
    ("Conv, grouped", "float[1,2,8,8] x", "y = Conv <group = 2, strides = [2,2], dilations = [2,2], pads = [1,1,1,1]> (x, W, B)",
     {"W": normal(4, 1, 3, 3), "B": normal(4)}, Work(36 * 9, 40, 4 * (128 + 36 + 4 + 36), False)),
    # every one of the 2·3·5 inputs meets 4·2 weights
    ("ConvTranspose", "float[2,3,5] x", "y = ConvTranspose (x, W)", {"W": normal(3, 4, 2)}, Work(30 * 8, 24, None, False)),
    ("Gemm", "float[5,3] x", "y = Gemm <transB = 1> (x, W)", {"W": normal(7, 3)}, Work(35 * 3, 21, 4 * (15 + 21 + 35), False)),
    ("MatMul", "float[2,5,3] x", "y = MatMul (x, W)", {"W": normal(3, 7)}, Work(70 * 3, 21, 4 * (30 + 21 + 70), False)),
    ("BatchNormalization", "float[2,4,3,3] x", "y = BatchNormalization (x, s, b, m, v)", dict(parameters(4)),
     Work(72, 16, 4 * (72 + 16 + 72), False)),
    ("a view", "float[2,6] x", "k = Add (x, K) y = Reshape (k, A)", {"K": normal(6), "A": ints(3, 4)},
     Work(12, 6, 4 * (12 + 6 + 12), False)),
    ("float16", "float16[2,6] x", "y = Mul (x, K)", {"K": normal(6).astype(np.float16)}, Work(12, 6, 2 * (12 + 6 + 12), False)),
    ("one sample", "float[n,3] x", "y = Gemm (x, W)", {"W": normal(3, 7)}, Work(21, 21, 4 * (3 + 21 + 7), True)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "body", "arrays", "work"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_by_hand(inputs: str, body: str, arrays: dict[str, Array], work: Work) -> None:
    kind = inputs.partition("[")[0]
    axes = ",".join("abcde"[: 3 if "5] x" in inputs or "2,5,3" in inputs else 2 if inputs.count(",") == 1 else 4])
    found = Meter().measure(ir.from_proto(build(f"g ({inputs}) => ({kind}[{axes}] y) {{ {body} }}", arrays, opset=18)))
    assert (found.multiply_adds, found.parameters) == (work.multiply_adds, work.parameters)
    if work.moved is not None:
        assert found.moved == work.moved
        assert found.symbolic == work.symbolic


def test_the_report_says_it() -> None:
    """A Conv and its norm: 288 results of 27 products, and as many of the norm that goes; the norm's 16 numbers, with the
    bias that came; what the norm read and wrote."""
    text = "g (float[2,3,8,8] x) => (float[2,4,6,6] y) { c = Conv (x, W) y = BatchNormalization (c, s, b, m, v) }"
    _, report = fuse(build(text, {"W": normal(4, 3, 3, 3), **parameters(4)}))
    assert report.work_before == Work(288 * 28, 124, 4 * (384 + 108 + 288 + 288 + 16 + 288), False)
    assert report.work_after == Work(288 * 27, 112, 4 * (384 + 108 + 4 + 288), False)
    assert "8.06 K → 7.78 K multiply-adds, 124 → 112 parameters, 5.5 KB → 3.1 KB moved" in report.table()
    assert report.json()["work"] == {
        "multiply_adds": {"before": 8064, "after": 7776},
        "parameters": {"before": 124, "after": 112},
        "bytes_moved": {"before": 5488, "after": 3136},
        "symbolic_sizes_count_as_one": False,
    }


def test_what_is_not_known_is_said() -> None:
    proto = build("g (float[2,3] x) => (float[a,b] y) { y = Gemm (x, W) }", {"W": normal(3, 7)})
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert Meter().measure(ir.from_proto(proto)) == Work(None, 21, None, True)
    assert "unknown multiply-adds, 21 → 21 parameters, unknown bytes moved" in fuse(proto)[1].table()
