"""The smallest fault that validation still finds, at the first, middle and last layer of a net of 100 layers.

    python tools/smallest_fault.py [--layers 100]

The net is a chain of Conv, BatchNormalization, Relu; one of its norms is folded, with one channel of one parameter off by a
relative (γ, variance) or absolute (β, mean) amount. Halved until the verdict is EQUIVALENT; printed is the last that was
found, for one channel.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import onnx
import onnx_ir as ir

from normfuse import Verdict
from normfuse.validate.inputs import input_specs
from normfuse.validate.legs import local
from normfuse.validate.oracle import Oracle
from normfuse.validate.plan import families
from normfuse.validate.truth import Truth, evaluate
from tests.validate.nets import Block, blocks, folded, network

PARAMETERS = {"γ": ("scale", True), "variance": ("var", True), "β": ("bias", False), "mean": ("mean", False)}
CHANNELS = (3,)


def with_fold(parameters: tuple[Block, ...], place: int, block: Block) -> onnx.ModelProto:
    """Return the net with the norm at ``place`` folded, computed from ``block``."""
    model = network(parameters)
    whole = folded(tuple(block if index == place else item for index, item in enumerate(parameters)))
    fold = next(node for node in whole.graph.node if node.name == f"/conv{place}")
    graph = model.graph
    kept = [node for node in graph.node if node.name not in (f"/conv{place}", f"/norm{place}")]
    position = next(index for index, node in enumerate(graph.node) if node.name == f"/conv{place}")
    del graph.node[:]
    graph.node.extend([*kept[:position], fold, *kept[position:]])
    graph.initializer.extend(item for item in whole.graph.initializer if item.name in fold.input)
    return model


def spoilt(block: Block, name: str, channel: int, amount: float, *, relative: bool) -> Block:
    """Return ``block`` with one channel of one parameter off."""
    array = getattr(block, name).copy()
    array[channel] = array[channel] * (1 + amount) if relative else array[channel] + amount
    return replace(block, **{name: array})


def smallest(
    reference: Oracle, truth: Truth, parameters: tuple[Block, ...], place: int, name: str, channel: int
) -> float:
    """Return the smallest amount that is found in its segment, to a factor of two."""
    attribute, relative = PARAMETERS[name]
    amount, found = 1e-2, float("nan")
    while amount > 1e-9:
        block = spoilt(parameters[place], attribute, channel, amount, relative=relative)
        candidate = Oracle(ir.from_proto(with_fold(parameters, place, block)))
        if local(reference, candidate, truth).verdict is not Verdict.DIVERGENT:
            break
        amount, found = amount / 2, amount
    return found


def main() -> None:
    """Print one row per layer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=100)
    layers = parser.parse_args().layers
    parameters = blocks(layers)
    reference = Oracle(ir.from_proto(network(parameters)))
    family = families(reference, input_specs(reference.model), quick=True)[0][0]
    print("| layer | " + " | ".join(PARAMETERS) + " |")
    for place in (0, layers // 2, layers - 1):
        before = (f"relu{place - 1}",) if place else ()
        truth = evaluate(reference, family, capture=before)
        row = [
            max(smallest(reference, truth, parameters, place, name, channel) for channel in CHANNELS)
            for name in PARAMETERS
        ]
        print(f"| {place + 1} | " + " | ".join(f"{amount:.1e}" for amount in row) + " |", flush=True)


if __name__ == "__main__":
    main()
