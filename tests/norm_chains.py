"""Long graphs that are chains of one norm, for what is measured as graphs grow: no shape inside is stated."""

from __future__ import annotations

import onnx
import onnx.parser


def layer_norms(nodes: int) -> tuple[onnx.ModelProto, int]:
    """Return residual blocks of (N, 8) with a layer norm in primitives, 12 nodes each, and how many there are."""
    count = nodes // 12
    lines = ["h0 = Identity (x)"]
    for i in range(count):
        lines += [
            f"m{i} = ReduceMean <axes = [-1]> (h{i})",
            f"d{i} = Sub (h{i}, m{i})",
            f"q{i} = Pow (d{i}, two)",
            f"v{i} = ReduceMean <axes = [-1]> (q{i})",
            f"s{i} = Add (v{i}, e)",
            f"r{i} = Sqrt (s{i})",
            f"n{i} = Div (d{i}, r{i})",
            f"a{i} = Mul (n{i}, w)",
            f"b{i} = Add (a{i}, w)",
            f"g{i} = Tanh (b{i})",
            f"p{i} = MatMul (g{i}, k)",
            f"h{i + 1} = Add (p{i}, h{i})",
        ]
    lines.append(f"y = Identity (h{count})")
    constants = (
        f"float two = {{2.0}}, float e = {{0.001}}, float[8] w = {{{row(8, 1)}}}, float[8, 8] k = {{{row(64, 0.1)}}}"
    )
    return parsed("float[4, 8]", constants, lines), count


def group_norms(nodes: int) -> tuple[onnx.ModelProto, int]:
    """Return Conv · (Reshape · InstanceNormalization · Reshape · Mul · Add) · SiLU of (1, 8, 4, 4), 8 nodes each."""
    count = nodes // 8
    lines = ["h0 = Identity (x)"]
    for i in range(count):
        lines += [
            f"c{i} = Conv (h{i}, k)",
            f"t{i} = Reshape (c{i}, groups)",
            f"n{i} = InstanceNormalization (t{i}, ones, zeros)",
            f"u{i} = Reshape (n{i}, image)",
            f"a{i} = Mul (u{i}, w)",
            f"b{i} = Add (a{i}, w)",
            f"g{i} = Sigmoid (b{i})",
            f"h{i + 1} = Mul (b{i}, g{i})",
        ]
    lines.append(f"y = Identity (h{count})")
    constants = (
        f"int64[3] groups = {{0, 2, -1}}, int64[4] image = {{1, 8, 4, 4}}, float[2] ones = {{1, 1}}, "
        f"float[2] zeros = {{0, 0}}, float[8, 1, 1] w = {{{row(8, 2)}}}, float[8, 8, 1, 1] k = {{{row(64, 0.1)}}}"
    )
    return parsed("float[1, 8, 4, 4]", constants, lines), count


def batch_norms(nodes: int) -> tuple[onnx.ModelProto, int]:
    """Return Conv · BatchNormalization · Relu of (1, 8, 4, 4), 3 nodes each."""
    count = nodes // 3
    lines = []
    for i in range(count):
        lines += [
            f"c{i} = Conv (h{i}, k)",
            f"n{i} = BatchNormalization (c{i}, w, w, w, w)",
            f"h{i + 1} = Relu (n{i})",
        ]
    constants = f"float[8] w = {{{row(8, 2)}}}, float[8, 8, 1, 1] k = {{{row(64, 0.1)}}}"
    return parsed("float[1, 8, 4, 4]", constants, ["h0 = Identity (x)", *lines, f"y = Identity (h{count})"]), count


def row(length: int, value: float) -> str:
    """Return ``length`` times ``value`` as the text of a tensor."""
    return ", ".join([str(value)] * length)


def parsed(shape: str, constants: str, lines: list[str]) -> onnx.ModelProto:
    """Return the model of opset 17 with one input and output of ``shape``."""
    head = f'<ir_version: 8, opset_import: ["" : 17]> g ({shape} x) => ({shape} y) <{constants}>'
    return onnx.parser.parse_model(head + " {" + "\n".join(lines) + "}")
