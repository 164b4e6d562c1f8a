"""Time what it takes to find all norms of a graph, and how that grows with the graph.

    python tools/time_finding.py [--rounds 7]

Graphs of 3000 and 30 000 nodes: layer norms in primitive operators, group norms as exporters write them below opset 21,
and batch norms behind convolutions; each with the shapes of its values stated in the file, and without (then reading
them is part of the time). Processor time of the best round, in one thread, of a model that is loaded already.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import onnx
import onnx.parser
import onnx_ir as ir

from normfuse.graph.channels import Ranks
from normfuse.graph.constants import Constants
from normfuse.graph.reading import default_opset
from normfuse.graph.shapes import inferred_shapes
from normfuse.graph.site import NormSite, Reading
from normfuse.memory import uncollected
from normfuse.recognise import find_norms

SIZES = (3000, 30000)


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


def stated(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with the type and shape of every value, which here are those of its input or inferred."""
    return onnx.shape_inference.infer_shapes(model)


@uncollected
def find(model: ir.Model) -> int:
    """Return the number of norms, all shapes read that the finder needs."""
    constants = Constants(model)
    with inferred_shapes(model):
        sites = find_norms(model.graph, Reading(default_opset(model), constants, Ranks(constants)))
    return sum(isinstance(site, NormSite) for site in sites)


def best(proto: onnx.ModelProto, expected: int, rounds: int) -> float:
    """Return the processor seconds of the best of ``rounds`` readings."""
    took = []
    for _ in range(rounds):
        model = ir.from_proto(proto)
        start = time.thread_time()
        found = find(model)
        took.append(time.thread_time() - start)
        if found != expected:
            raise SystemExit(f"{found} norms found instead of {expected}")
    return min(took)


def main() -> None:
    """Parse the command line, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    graphs: tuple[Callable[[int], tuple[onnx.ModelProto, int]], ...] = (layer_norms, group_norms, batch_norms)
    print(f"| graph | shapes | {SIZES[0]} nodes | {SIZES[1]} nodes | growth per node |")
    print("|---|---|---|---|---|")
    for build in graphs:
        for name in ("stated", "not stated"):
            seconds = []
            for size in SIZES:
                proto, count = build(size)
                seconds.append(best(stated(proto) if name == "stated" else proto, count, rounds))
            growth = seconds[1] / seconds[0] * SIZES[0] / SIZES[1]
            cells = f"{1e3 * seconds[0]:.0f} ms | {1e3 * seconds[1]:.0f} ms | {growth:.2f}"
            print(f"| {build.__name__.replace('_', ' ')} | {name} | {cells} |")


if __name__ == "__main__":
    main()
