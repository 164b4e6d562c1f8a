"""Time what it takes to find all norms of a graph, and how that grows with the graph.

    python tools/time_finding.py [--rounds 7]

Graphs of 3000 and 30 000 nodes: layer norms in primitive operators, group norms as exporters write them below opset 21,
and batch norms behind convolutions; each with the shapes of its values stated in the file, and without (then reading
them is part of the time). Processor time of the best round, in one thread, of a model that is loaded already.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from normfuse.graph.channels import Ranks
from normfuse.graph.constants import Constants
from normfuse.graph.reading import default_opset
from normfuse.graph.shapes import inferred_shapes
from normfuse.graph.site import NormSite, Reading
from normfuse.memory import uncollected
from normfuse.recognise import find_norms
from tests.norm_chains import batch_norms, group_norms, layer_norms

SIZES = (3000, 30000)


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
