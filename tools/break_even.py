"""Measure from which size on a native operator is worth its call; print the tables NATIVE and BREAK_EVEN from it.

    python tools/break_even.py [--only TEXT] [--save FILE.json] [--load FILE.json]...

What is compared is what ``auto`` chooses between: the norm as it writes it without the library, and as an operator of
ai.normfuse, both made by ``normfuse.fuse`` and run by ``normfuse.session``. A model is a chain of 32 norms of one tensor, so
that what a run of a session takes beside its nodes hardly counts. One process, one thread; both chains are timed in turn, by
processor time. Printed are the medians in microseconds a norm, the median of the ratio within a round, and whether
``emit/kernels.py`` takes the native operator, with WRONG where it takes one that is slower by more than a twelfth or leaves
one that is faster by more than a fifth.

Then the tables, over the sizes of one kind, type and neighbourhood: how many times as fast the native operator is at the
largest size, and the ``BreakEven`` by which the least time is lost. ``--save`` keeps what was measured, ``--load`` takes
what was kept for measured, so that the whole can be measured in pieces. Needs onnxruntime and the native library.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import onnx_ir as ir

import normfuse
from normfuse.emit.kernels import is_worth_its_call, native_wins
from normfuse.emit.target import Provider
from normfuse.runtime.library import find_library

LENGTH = 32
"""Norms in a chain."""
ROUNDS = 15
LEAST = 1e-3
"""Seconds that one timing lasts at least."""

SIZES = [(1, 16), (4, 64), (64, 16), (2, 256), (1, 1024), (32, 64), (256, 16), (4, 1024), (64, 256), (64, 1024)]
OPERATORS = {
    "layer": ("LayerNormalization", "LayerNorm"),
    "rms": ("RMSNormalization", "RMSNorm"),
    "instance": ("InstanceNormalization", "InstanceNorm"),
    "group": ("GroupNormalization", "GroupNorm"),
}
JOINED = {
    "layer": ("", "Add", "WithSum", "Relu"),
    "rms": ("", "Add", "WithSum", "Relu"),
    "instance": ("", "Relu", "ChannelsLast"),
    "group": ("", "Silu", "ChannelsLast"),
}
TYPES = {
    "float": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "double": TensorProto.DOUBLE,
}
BESIDE = 4
"""Channels of a group."""
CALLS = (0, -256, -512, -1024, 256, 512, 768, 1024, 1536, 2048, 4096)
ROWS = (0, 8, 12, 16, 24, 32, 48, 64, 96, 128)


@dataclass(frozen=True)
class Case:
    """A norm and what is joined with it, on ``rows`` rows of ``length`` elements, each with statistics of its own."""

    kind: str
    joined: str
    dtype: str
    rows: int
    length: int

    @property
    def operator(self) -> str:
        """Return the name of the native operator."""
        name = OPERATORS[self.kind][1]
        return {"Add": f"Add{name}", "WithSum": f"Add{name}WithSum"}.get(self.joined, name + self.joined)

    @property
    def name(self) -> str:
        """Return what the table calls it."""
        return f"{self.operator} {self.dtype} {self.rows}x{self.length}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of x."""
        if self.kind in ("layer", "rms"):
            return self.rows, self.length
        shape = (
            (1, self.rows, self.length) if self.kind == "instance" else (1, self.rows * BESIDE, self.length // BESIDE)
        )
        return (1, shape[2], 1, shape[1]) if self.joined == "ChannelsLast" else shape

    @property
    def lines(self) -> int:
        """Return how many runs of consecutive elements the norm treats alike: what a row of BREAK_EVEN is."""
        return self.rows * self.length // (self.shape[-1])

    def is_taken(self) -> bool:
        """Whether the automatic form takes the native operator."""
        own = ir.DataType[self.dtype.upper()]
        if not native_wins(self.kind, own, Provider.CPU):
            return False
        last = self.joined == "ChannelsLast"
        joined = bool(self.joined) and not last
        return is_worth_its_call(
            self.kind, own, Provider.CPU, joined=joined, last=last, lines=self.lines, length=self.shape[-1]
        )


def runs_without(joined: str, dtype: str) -> bool:
    """Whether onnxruntime has kernels for what is joined, and for channels that lie last, where ours are not used."""
    return dtype in {"": TYPES, "ChannelsLast": ("float", "float16")}.get(joined, ("float", "float16", "double"))


def steps(case: Case) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of the chain, from x to y: with Add to one addend, WithSum to the sum before."""
    parameters = ["scale"] if case.kind == "rms" else ["scale", "bias"]
    attributes = {"group": {"num_groups": case.rows}, "instance": {}}.get(case.kind, {"axis": -1})
    values = ["x", *(f"v{index}" for index in range(1, LENGTH)), "y"]
    addend = "addend"
    for x, y in itertools.pairwise(values):
        if case.joined == "ChannelsLast":
            groups = {"groups": case.rows, "activation": 0, "channels_last": 1, "epsilon": 1e-5}
            yield helper.make_node("GroupNorm", [x, *parameters], [y], domain="com.microsoft", **groups)
            continue
        if case.joined in ("Add", "WithSum"):
            yield helper.make_node("Add", [x, addend], [f"{y}_sum"])
            x, addend = f"{y}_sum", f"{y}_sum" if case.joined == "WithSum" else addend
        result = f"{y}_norm" if case.joined in ("Relu", "Silu") else y
        yield helper.make_node(OPERATORS[case.kind][0], [x, *parameters], [result], **attributes)
        if case.joined == "Relu":
            yield helper.make_node("Relu", [result], [y])
        if case.joined == "Silu":
            yield helper.make_node("Sigmoid", [result], [f"{y}_gate"])
            yield helper.make_node("Mul", [result, f"{y}_gate"], [y])


def chain(case: Case) -> onnx.ModelProto:
    """Return the chain, from and to float32 where NumPy has not the type."""
    own = TYPES[case.dtype]
    outside = TensorProto.FLOAT if own == TensorProto.BFLOAT16 else own
    count = case.shape[-1 if case.kind in ("layer", "rms") or case.joined == "ChannelsLast" else 1]
    parameters = TensorProto.FLOAT if case.joined == "ChannelsLast" else own
    held = [
        helper.make_tensor(name, parameters, (count,), np.full(count, v)) for name, v in (("scale", 1.0), ("bias", 0.0))
    ]
    nodes = list(steps(case))
    if own != outside:
        nodes[0].input[0], nodes[-1].output[0] = "x_half", "y_half"
        first = helper.make_node("Cast", ["x"], ["x_half"], to=own)
        nodes = [first, *nodes, helper.make_node("Cast", ["y_half"], ["y"], to=outside)]
    names = ("x", "addend") if case.joined in ("Add", "WithSum") else ("x",)
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info(name, outside, case.shape) for name in names],
        [helper.make_tensor_value_info("y", outside, case.shape)],
        [tensor for tensor in held if any(tensor.name in node.input for node in nodes)],
    )
    imports = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def runner(case: Case, *, native: bool) -> Callable[[], object]:
    """Return what runs the chain once, its tensors bound."""
    target = normfuse.Target("custom" if native else "auto", native=native)  # type: ignore[arg-type]
    model, _ = normfuse.fuse(chain(case), target=target)
    names = [node.op_type for node in model.graph if node.domain == "ai.normfuse"]
    wanted = [case.operator] * LENGTH
    wanted[-1] = wanted[-1].removesuffix("WithSum")  # nobody reads the last sum
    assert names == (wanted if native else []), f"{case.name}: {names}"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = normfuse.session(model, session_options=options)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(session_type(case)))
    binding = session.io_binding()
    for value in session.get_inputs():
        binding.bind_cpu_input(value.name, np.random.default_rng(0).standard_normal(case.shape).astype(dtype))
    y = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(case.shape), dtype.type, "cpu")
    binding.bind_ortvalue_output("y", y)
    return lambda: session.run_with_iobinding(binding)


def session_type(case: Case) -> int:
    """Return the type of x and y of the chain."""
    return TensorProto.FLOAT if case.dtype == "bfloat16" else TYPES[case.dtype]


def timed(run: Callable[[], object], repeat: int) -> float:
    """Return the processor seconds of one norm."""
    start = time.process_time()
    for _ in range(repeat):
        run()
    return (time.process_time() - start) / repeat / LENGTH


@dataclass(frozen=True)
class Times:
    """Medians in seconds a norm, and of how many times as fast the native one is."""

    native: float
    own: float
    ratio: float


def measure(case: Case) -> Times:
    """Return the times of both spellings."""
    runs = [runner(case, native=native) for native in (True, False)]
    for run in runs:
        timed(run, 3)
    repeat = math.ceil(LEAST / max(1e-7, LENGTH * timed(runs[0], 3)))
    rounds = [[timed(run, repeat) for run in runs] for _ in range(ROUNDS)]
    native, own = (statistics.median(column) for column in zip(*rounds, strict=True))
    return Times(native, own, statistics.median(own / native for native, own in rounds))


def break_even(found: dict[Case, Times]) -> str:
    """Return the entry of the table by which the least time is lost, as a share of each, over sizes of one kind."""
    native = np.array([times.ratio for times in found.values()])  # the other spelling's time by ours
    lines = np.array([case.lines for case in found])
    elements = np.array([case.rows * case.length for case in found])

    def lost(entry: tuple[int, int]) -> float:
        taken = elements >= entry[0] + entry[1] * lines
        return float(np.sum(np.log(np.where(taken, np.maximum(1 / native, 1), np.maximum(native, 1)))))

    call, row = min(itertools.product(CALLS, ROWS), key=lambda entry: (round(lost(entry), 2), abs(entry[0]), entry[1]))
    return "wins at every size" if call == row == 0 else f"BreakEven({call}, {row})"


def tables(found: dict[Case, Times]) -> Iterator[str]:
    """Yield both tables, a line each for kind, type and what is joined."""

    def group(case: Case) -> tuple[str, str, str]:
        return case.kind, case.dtype, case.joined

    for (kind, dtype, joined), cases in itertools.groupby(sorted(found, key=group), key=group):
        part = {case: found[case] for case in cases}
        largest = max(part, key=lambda case: case.rows * case.length)
        at_large = f"{part[largest].ratio:.2f} times as fast at {largest.rows}x{largest.length}"
        yield f"{kind:8} {dtype:8} {joined or 'alone':12} {at_large}; {break_even(part)}"


def load(paths: list[Path]) -> dict[Case, Times]:
    """Return what was measured before."""
    entries = [entry for path in paths for entry in json.loads(path.read_text(encoding="utf-8"))]
    return {Case(**entry["case"]): Times(**entry["times"]) for entry in entries}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="measure the cases that have this in their name")
    parser.add_argument("--save", type=Path, help="write what was measured, and what was loaded")
    parser.add_argument("--load", type=Path, nargs="*", default=[], help="add what was measured before")
    arguments = parser.parse_args()
    print(f"onnxruntime {onnxruntime.__version__}, {find_library().instruction_set}, one thread")
    found = load(arguments.load)
    wanted = [
        Case(kind, joined, dtype, rows, length)
        for dtype in TYPES for kind in OPERATORS for joined in JOINED[kind] for rows, length in SIZES
        if runs_without(joined, dtype)
    ]  # fmt: skip
    wrong = 0
    for case in wanted:
        if case not in found and arguments.only not in case.name:
            continue
        times = found[case] if case in found else measure(case)
        found[case] = times
        far = times.ratio < 11 / 12 if case.is_taken() else times.ratio > 6 / 5
        wrong += far
        verdict = ("native" if case.is_taken() else "left") + (", WRONG" if far else "")
        print(
            f"{case.name:36} {times.native * 1e6:8.2f} {times.own * 1e6:8.2f} {times.ratio:6.2f}  {verdict}", flush=True
        )
    print(*tables(found), sep="\n")
    if arguments.save:
        entries = [{"case": dataclasses.asdict(case), "times": dataclasses.asdict(found[case])} for case in found]
        arguments.save.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
