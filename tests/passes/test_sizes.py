"""Sizes that a graph proves: stated, followed from operator to operator, and read out of what computes shapes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from normfuse.graph.channels import Ranks
from normfuse.graph.constants import Constants
from normfuse.graph.site import Reading
from normfuse.passes.sizes import Sizes
from tests.folding import Array, build, normal

C = "s = Shape (r)  c = Gather (s, O)"
"""The channels of a value whose shape is not stated, 6 of them."""

BODIES = [
    ("the shape of a value", "s = Shape (r)  y = Reshape (x, s)", (None, 6, 8, 5)),
    ("a quotient without rest", f"{C}  d = Div (c, T)  v = Unsqueeze (d, A)  t = Concat <axis = 0> (Z, T, v, M)  y = Reshape (x, t)", (None, 2, 3, 40)),
    ("a product", f"{C}  d = Mul (c, T)  t = Concat <axis = 0> (Z, d, M)  y = Reshape (x, t)", (None, 12, 20)),
    ("a quotient of numbers that were cast", f"{C}  f = Cast <to = 1> (c)  q = Cast <to = 7> (f)  d = Div (q, F)  v = Unsqueeze (d, A)  t = Concat <axis = 0> (Z, v, M)  y = Reshape (x, t)", (None, None, None)),
    ("Slice", "y = Slice (x, A, B, B)", (None, 1, 8, 5)),
    ("Slice from the end, by steps", "y = Slice (x, N, E, B, T)", (None, 2, 8, 5)),
    ("Slice to a computed place", f"{C}  d = Div (c, T)  v = Unsqueeze (d, A)  y = Slice (x, A, v, B)", (None, 3, 8, 5)),
    ("Slice to an unknown place", "u = ReduceMax <keepdims = 0> (k)  y = Slice (x, A, k, B)", (None, None, 8, 5)),
    ("Slice along unknown axes", "y = Slice (x, A, B, k)", (None, None, None, None)),
    ("Resize to sizes", "s = Shape (r)  h = Slice (s, A, T)  t = Concat <axis = 0> (h, H)  y = Resize (x, E0, E0, t)", (None, 6, 16, 10)),
    ("Split", f"{C}  d = Div (c, T)  v = Unsqueeze (d, A)  t = Concat <axis = 0> (v, v)  y, z = Split <axis = 1> (x, t)", (None, 3, 8, 5)),
    ("ConvTranspose", "y = ConvTranspose <group = 2, strides = [2,3], dilations = [2,1], output_padding = [1,2], pads = [1,0,2,1]> (x, V)", (None, 4, 17, 15)),
    ("ConvTranspose to a stated shape", "y = ConvTranspose <strides = [2,2], output_shape = [17,11]> (x, V)", (None, 2, 17, 11)),
    ("ConvTranspose, as many as strides say", "y = ConvTranspose <strides = [2,2], auto_pad = \"SAME_LOWER\"> (x, V)", (None, 2, 16, 10)),
    ("ConvTranspose, too short for that", "y = ConvTranspose <strides = [2,3], auto_pad = \"SAME_UPPER\"> (x, V)", (None, 2, 16, None)),
    ("ConvTranspose of unknown sizes", "t = Concat <axis = 0> (B, O6, k, k)  e = Resize (x, E0, E0, t)  y = ConvTranspose (e, V)", (None, 2, None, None)),
    ("ReduceSum", "y = ReduceSum <keepdims = 0> (x, B)", (None, 8, 5)),
]  # fmt: skip

INTEGERS: dict[str, Array] = {
    "O": np.array(1), "T": np.array([2]), "F": np.array(4), "A": np.array([0]), "B": np.array([1]), "Z": np.array([0]),
    "M": np.array([-1]), "N": np.array([-4]), "E": np.array([2**62]), "H": np.array([16, 10]),
    "O6": np.array([6]), "V": normal(6, 2, 3, 2),
    "E0": np.zeros(0, np.float32), "W": normal(6, 3, 1, 1),
}  # fmt: skip


def sizes_of(body: str) -> tuple[tuple[int | None, ...] | None, ir.Model]:
    text = f"g (float[n,3,8,5] i, int64[1] k) => (float y) {{ x = Conv (i, W)  r = Relu (x)  {body} }}"
    model = ir.from_proto(build(text, INTEGERS, opset=17))
    model.graph.outputs[0].shape = None
    return Sizes(Reading(17, Constants(model), Ranks(Constants(model)))).of(model.graph.outputs[0]), model


@pytest.mark.parametrize(("body", "wanted"), [case[1:] for case in BODIES], ids=[case[0] for case in BODIES])
def test_sizes(body: str, wanted: tuple[int | None, ...]) -> None:
    assert sizes_of(body)[0] == wanted


@pytest.mark.parametrize(
    "body", [case[1] for case in BODIES if case[1].startswith("y = ConvTranspose") and case[2][3] is not None]
)
def test_sizes_are_those_that_onnx_infers(body: str) -> None:
    found, model = sizes_of(body)
    (inferred,) = onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True).graph.output
    assert tuple(axis.dim_value or None for axis in inferred.type.tensor_type.shape.dim) == found
