"""Nodes that a session hands to another provider without a word are named, and a session that hands on all says nothing.

A provider that this machine does not have is played by onnxruntime's CPU: the worker sees its name in the session, and
in the profile for every node but those that it is to have no kernel for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from normfuse.report.verdict import Verdict
from normfuse.validate import validate
from normfuse.validate.backends import parse_backend
from normfuse.validate.inputs import Family
from normfuse.validate.on_backend import across
from normfuse.validate.oracle import Oracle
from normfuse.validate.placement import Placement, read_placement
from normfuse.validate.sessions import Results, RuntimeLimits
from normfuse.validate.truth import evaluate
from tests.validate.nets import blocks, folded, network

CUDA = "CUDAExecutionProvider"
MODELS = network(blocks(1)), folded(blocks(1))


def event(name: str, op: str, provider: str, *types: str) -> dict[str, Any]:
    """Return one event as onnxruntime's profiler writes it."""
    args = {"op_name": op, "provider": provider, "output_type_shape": [{each: [1, 2]} for each in types]}
    return {"cat": "Node", "name": f"{name}_kernel_time", "args": args}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([event("a", "Conv", CUDA, "float"), event("b", "Relu", CUDA, "float")], Placement(2)),
        ([event("a", "Conv", CUDA, "float"), event("b", "Relu", "CPUExecutionProvider", "float16")],
         Placement(2, (("CPUExecutionProvider", "Relu 'b'"),))),
        # Sizes are computed on the CPU on purpose, and a copy between devices is no work.
        ([event("s", "Gather", "CPUExecutionProvider", "int64"), event("m", "MemcpyToHost", "CPUExecutionProvider", "float")],
         Placement()),
        # A loop runs its node several times; it is one node.
        ([event("a", "Relu", "CPUExecutionProvider", "float")] * 3, Placement(1, (("CPUExecutionProvider", "Relu 'a'"),))),
        ([{"cat": "Session", "name": "model_run", "args": {}}], Placement()),
    ],
)  # fmt: skip
def test_reading_a_profile(tmp_path: Path, events: list[dict[str, Any]], expected: Placement) -> None:
    (tmp_path / "profile.json").write_text(json.dumps(events), encoding="utf-8")
    assert read_placement(tmp_path / "profile.json", CUDA) == expected


def test_words() -> None:
    assert Placement(3).words == ""
    found = Placement(9, (("A", "Relu 'r'"), *(("B", f"Conv 'c{index}'") for index in range(7))))
    assert found.words == (
        "1 of 9 nodes ran on A: Relu 'r'; 7 of 9 nodes ran on B: Conv 'c0', Conv 'c1', Conv 'c2', Conv 'c3', Conv 'c4' and 2 more"
    )
    assert not found.is_all_elsewhere
    assert Placement(1, (("A", "Relu 'r'"),)).is_all_elsewhere
    assert not Placement().is_all_elsewhere


PLAYED = """
import json, sys
import onnxruntime as ort

HANDED_ON = {handed_on}
real = ort.InferenceSession

class Session:
    def __init__(self, model, options, providers):
        self.inner = real(model, options, providers=["CPUExecutionProvider"])

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def get_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def end_profiling(self):
        path = self.inner.end_profiling()
        events = json.load(open(path))
        for event in events:
            if event.get("cat") == "Node" and event["args"]["op_name"] not in HANDED_ON:
                event["args"]["provider"] = "CUDAExecutionProvider"
        json.dump(events, open(path, "w"))
        return path

ort.InferenceSession = Session
ort.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
from normfuse.validate.worker import main
sys.exit(main(sys.argv[1:]))
"""


def played(tmp_path: Path, *handed_on: str) -> RuntimeLimits:
    """Return limits under which CUDA has no kernel for ``handed_on``."""
    pytest.importorskip("onnxruntime")
    (tmp_path / "played.py").write_text(PLAYED.format(handed_on=set(handed_on) or "()"), encoding="utf-8")
    return RuntimeLimits(command=(str(tmp_path / "played.py"),))


def test_a_provider_that_runs_everything(tmp_path: Path) -> None:
    report = validate(*MODELS, providers=("cuda",), quick=True, levels=("off",), limits=played(tmp_path), libraries=())
    assert report.legs[1].verdict is Verdict.EQUIVALENT
    assert report.notes == ()


def test_nodes_on_another_provider_are_named(tmp_path: Path) -> None:
    limits = played(tmp_path, "Relu", "BatchNormalization")
    report = validate(*MODELS, providers=("cuda",), levels=("off",), limits=limits, libraries=())
    assert report.legs[1].verdict is Verdict.EQUIVALENT
    assert [note for note in report.notes if "ran on" in note] == [
        "cuda, optimizations off: of the original, 2 of 3 nodes ran on CPUExecutionProvider: BatchNormalization '/norm0', Relu '/relu0'",
        "cuda, optimizations off: of the candidate, 1 of 2 nodes ran on CPUExecutionProvider: Relu '/relu0'",
    ]


def test_a_session_that_hands_on_everything_says_nothing(tmp_path: Path) -> None:
    limits = played(tmp_path, "Conv", "Relu", "BatchNormalization")
    report = validate(*MODELS, providers=("cuda",), levels=("off",), limits=limits, libraries=())
    assert report.legs[1].verdict is Verdict.NOT_RUN
    assert report.legs[1].reason == (
        "the session fell back to another provider: asked for CUDAExecutionProvider, but 3 of 3 nodes ran on "
        "CPUExecutionProvider: Conv '/conv0', BatchNormalization '/norm0', Relu '/relu0'"
    )


@pytest.mark.parametrize(
    ("name", "error", "says_tf32"),
    [("cuda", 2.0**-12, True), ("tensorrt", 2.0**-12, True), ("openvino", 2.0**-12, False), ("cuda", 0.5, False)],
)
def test_tf32_is_named_where_a_provider_has_it_and_it_explains_the_difference(
    name: str, error: float, says_tf32: bool
) -> None:
    oracle = Oracle(ir.from_proto(MODELS[0]))
    feed = {"x": blocks(1)[0].weight[:, :, :1, :1].repeat(8, 2).repeat(8, 3).astype("f")}
    truth = evaluate(oracle, Family("standard normal", (feed,)))
    exact = {"relu0": truth.outputs[0]["relu0"].data.astype("f")}
    other = {"relu0": exact["relu0"] * (1 + error)}
    (note,) = across(
        (parse_backend("cpu"), Results((exact,), "CPUExecutionProvider")),
        (parse_backend(name), Results((other,), "x")),
        [truth],
        oracle.graph.outputs,
    )
    assert note.startswith(f"{name} against cpu, output 'relu0' of the original: error ")
    assert note.endswith("; products in TF32, which this provider can use, would explain it") is says_tf32
