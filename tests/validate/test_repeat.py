"""What draws without saying so is told by running it twice: nothing of it is called the same, or another, by luck."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import normfuse
from normfuse.report.verdict import ValidationReport, Verdict
from normfuse.validate import scopes, validate
from normfuse.validate.call import OracleCannotRun
from normfuse.validate.fallback import Fallback
from normfuse.validate.sessions import Level, Results, RuntimeLimits, Task, run_tasks
from tests.validate.nets import Array
from tests.validate.planted import body, normal

# A runtime of our own: y = x·w, and z = Relu(x), with the fault that a test asks for in the second and later runs.
RUNTIME = """
import json, os, sys
import numpy as np
job = json.load(open(sys.argv[1]))
for task in job["tasks"]:
    is_candidate = os.path.basename(task["model"]).startswith("candidate")
    for feed in [*range(job["feeds"]), -1]:
        x = np.load(f"{job['folder']}/feed{max(feed, 0)}.npz")["a0"]
        y, z, is_again = 2 * x, np.maximum(x, 0), feed < 0
        FAULT
        target = f"again{task['index']}" if is_again else f"result{task['index']}_{feed}"
        np.savez(f"{job['folder']}/{target}.npz", names=np.array(["y", "z"]), a0=y, a1=z)
    state = {"cause": "", "words": "", "provider": "x", "again": True}
    json.dump(state, open(f"{job['folder']}/done{task['index']}.json", "w"))
"""
TWO = body("y = Mul (x, w)  z = Relu (x)", "float[N,16] x", "float[N,16] y, float[N,16] z", w=np.full(16, 2, "f"))
NOISE = "np.random.default_rng([task['index'], feed + 1]).standard_normal(y.shape).astype('f')"


def runtime(folder: Path, fault: str) -> RuntimeLimits:
    script = folder / "runtime.py"
    script.write_text(RUNTIME.replace("FAULT", fault), encoding="utf-8")
    return RuntimeLimits(seconds=60.0, command=(str(script),))


def leg(report: ValidationReport, name: str) -> tuple[Verdict, str]:
    return next((item.verdict, item.reason) for item in report.legs if item.name == name)


def found(report: ValidationReport, subject: str, leg: str = "cpu") -> set[Verdict]:
    return {check.verdict for check in report.checks if check.leg == leg and check.subject.startswith(subject)}


@pytest.mark.parametrize("size", ["1.0", "0.002"])
def test_an_output_that_the_original_draws_is_left_open(tmp_path: Path, size: str) -> None:
    """Whether the candidate happens to agree or not: of two outputs the one that is steady is judged."""
    for fault in (f"y += {size} * {NOISE}", f"y += {size} * {NOISE} * (is_again and not is_candidate)"):
        report = validate(TWO, TWO, quick=True, limits=runtime(tmp_path, fault))
        verdict, reason = leg(report, "cpu")
        assert verdict is Verdict.NOT_RUN
        assert reason.startswith("output 'y' of the original differs from run to run (by ")
        assert (found(report, "output 'y'"), found(report, "output 'z'")) == ({Verdict.NOT_RUN}, {Verdict.EQUIVALENT})
        assert leg(report, "oracle") == (Verdict.EQUIVALENT, "")
        assert [item.output for item in report.rankings if item.leg == "cpu"] == ["z"]


def test_a_draw_on_one_level_leaves_the_output_open_on_all(tmp_path: Path) -> None:
    fault = f"y += {NOISE} * (task['level'] == 'ORT_ENABLE_ALL' and is_again)"
    report = validate(TWO, TWO, limits=runtime(tmp_path, fault))
    assert leg(report, "cpu")[0] is Verdict.NOT_RUN
    assert found(report, "output 'y'") == {Verdict.NOT_RUN}


def test_a_fault_beside_a_draw_is_found(tmp_path: Path) -> None:
    fault = f"y += {NOISE}; z = z + 0.01 * is_candidate"
    report = validate(TWO, TWO, quick=True, limits=runtime(tmp_path, fault))
    assert leg(report, "cpu")[0] is Verdict.DIVERGENT
    assert found(report, "output 'y'") == {Verdict.NOT_RUN}


def test_runs_that_differ_by_rounding_are_one_result(tmp_path: Path) -> None:
    """Sums whose order changes from run to run, as on a GPU."""
    report = validate(
        TWO, TWO, quick=True, limits=runtime(tmp_path, f"y *= 1 + 1e-8 * {NOISE}; y *= 1 + 6e-8 * is_again")
    )
    assert leg(report, "cpu") == (Verdict.EQUIVALENT, "")
    assert found(report, "output 'y'") == {Verdict.EQUIVALENT}
    assert not [note for note in report.notes if "run to run" in note]


def test_a_candidate_that_draws_where_the_original_does_not_is_accused(tmp_path: Path) -> None:
    """Also where its first run agrees."""
    fault = f"y += {NOISE} * (is_again and is_candidate)"
    report = validate(TWO, TWO, quick=True, limits=runtime(tmp_path, fault))
    assert leg(report, "cpu")[0] is Verdict.DIVERGENT
    assert {check.inputs for check in report.checks if check.verdict is Verdict.DIVERGENT} == {
        "standard normal, optimizations on, again"
    }
    assert "cpu, optimizations on: output 'y' of the candidate differs from run to run (by " in " ".join(report.notes)


DRAWING = """<ir_version: 8, opset_import: ["": 17]> g (float[N,16] x) => (float[N,16] y, float[N,16] h) {
    z = RandomNormalLike <scale = 0.001> (x)  h = Relu (x)  a = Add (h, z)  TAIL }"""


def drawing(tail: str) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(DRAWING.replace("TAIL", tail))
    factors = np.random.default_rng(5).uniform(0.5, 2, size=(2, 16))
    for name, array in (("k", factors[0]), ("l", factors[1]), ("kl", factors[0] * factors[1])):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype("f"), name))
    return proto


def test_an_operator_that_draws_under_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """RandomNormalLike where its name says nothing stands for any operator that we do not know to draw."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(scopes, "RANDOM", frozenset())
    reference = drawing("p = Mul (a, k)  y = Mul (p, l)")
    report = validate(reference, drawing("y = Mul (a, kl)"))
    refusal = "the float64 oracle cannot run RandomNormalLike at node 'z': it gives another result in every run"
    assert report.notes[0] == refusal
    assert "values that differ from run to run, taken from one run of the original: a" in report.notes
    assert leg(report, "oracle") == (Verdict.EQUIVALENT, "")
    verdict, reason = leg(report, "cpu")
    assert verdict is Verdict.NOT_RUN
    assert reason.startswith("output 'y' of the original differs from run to run (by ")
    assert "output 'h'" not in reason
    report = validate(reference, drawing("p = Mul (a, k)  y = Mul (p, k)"), providers=())
    assert report.verdict is Verdict.DIVERGENT


@pytest.mark.parametrize(("op", "draws"), [("RandomNormalLike", True), ("Bernoulli", True), ("Sinh", False)])
def test_the_oracle_refuses_what_gives_another_result_in_every_run(op: str, draws: bool) -> None:
    node = ir.Node("", op, [ir.Value(name="x")], outputs=[ir.Value(name="y")])
    x = np.array([[0.5, np.nan]]) if op == "Sinh" else np.full((8, 8), 0.5)
    if not draws:
        assert Fallback({"": 17}).run(node, [x])[0].shape == x.shape
        return
    with pytest.raises(OracleCannotRun, match=f"cannot run {op} at node 'y': it gives another result in every run"):
        Fallback({"": 17}).run(node, [x])


def test_the_runtime_says_whether_a_second_run_is_the_same(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    onnx.save(drawing("y = Mul (a, kl)"), tmp_path / "draws.onnx")
    onnx.save(body("y = Log (x)", "float[N,16] x", "float[N,16] y"), tmp_path / "steady.onnx")
    feed = {"x": normal(4, 16)}
    for name, is_steady in (("draws", False), ("steady", True)):
        answer = run_tasks([Task(tmp_path / f"{name}.onnx", Level.ALL)], [feed], "CPUExecutionProvider")[0]
        assert isinstance(answer, Results)
        assert np.isnan(answer.outputs[0]["y"]).any() == is_steady
        assert (answer.again is None) == is_steady
        if answer.again is not None:
            assert np.array_equal(answer.outputs[0]["h"], answer.again["h"])
            assert not np.array_equal(answer.outputs[0]["y"], answer.again["y"])


def modules() -> dict[str, Any]:
    """Return modules that are not the same in two runs; export gives them as they were once."""
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, how: str) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.how, self.norm, self.linear = how, torch.nn.LayerNorm(16), torch.nn.Linear(16, 16)
            self.register_buffer("runs", torch.zeros(()))

        def forward(self, x: Any) -> Any:
            h = self.norm(self.linear(x))
            if torch.compiler.is_exporting():
                return h, x * 2.0
            if self.how == "draws":
                return h + 1e-3 * torch.rand_like(h), x * 2.0
            if self.how == "drops":
                return torch.nn.functional.dropout(h, 0.5), x * 2.0
            self.runs += 1.0
            return h * self.runs, x * 2.0

    return {how: Net(how).eval() for how in ("draws", "drops", "counts")}


@pytest.mark.parametrize("how", ["draws", "drops", "counts"])
def test_an_output_that_a_module_has_otherwise_in_every_run_is_left_open(how: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    module = modules()[how]
    model = normfuse.export(module, [torch.randn(4, 16)])
    first, second = (value.name for value in model.graph.outputs)
    report = validate(module, model, quick=True)
    for name in ("oracle", "cpu"):
        verdict, reason = leg(report, name)
        assert verdict is Verdict.NOT_RUN, report.table()
        assert reason.startswith(f"output '{first}' of the module differs from run to run (by ")
        assert found(report, f"output '{first}'", name) == {Verdict.NOT_RUN}
        assert found(report, f"output '{second}'", name) == {Verdict.EQUIVALENT}
    assert report.verdict is Verdict.NOT_RUN
    with torch.no_grad():
        module.norm.bias[3] += 0.02
    assert leg(validate(module, model, quick=True, providers=()), "oracle")[0] is Verdict.DIVERGENT


def test_a_norm_layer_that_draws_is_left_open() -> None:
    torch = pytest.importorskip("torch")

    class NoisyNorm(torch.nn.LayerNorm):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            y = super().forward(x)
            return y if torch.compiler.is_exporting() else y + 1e-3 * torch.rand_like(y)

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.LayerNorm(16), NoisyNorm(16)).eval()
    report = validate(module, normfuse.export(module, [torch.randn(4, 16)]), quick=True, providers=())
    assert report.verdict is Verdict.NOT_RUN, report.table()
    assert "norm layers whose result differs from run to run, not judged: 2" in report.notes
    assert found(report, "norm '1' (LayerNorm)", "oracle") == {Verdict.EQUIVALENT}


def test_how_far_two_runs_are_apart_is_told() -> None:
    from normfuse.validate.repeat import differing

    def words(first: Array, again: Array) -> list[str]:
        return list(differing({"y": first}, {"y": again}, "original").values())

    start = "output 'y' of the original differs from run to run"
    one = np.array([3.0, 4.0], "f")
    assert words(one, one) == []
    assert words(one, one * np.float32(1.5)) == [f"{start} (by 0.5 of its size)"]
    assert words(0 * one, one) == [f"{start} (from zero)"]
    assert words(one, np.array([np.nan, 4.0], "f")) == [f"{start} (in which elements are finite)"]
    assert words(np.array([np.nan, 4.0], "f"), np.array([np.nan, 4.0], "f")) == []
    assert words(one, one[:1]) == [f"{start} (its shape is [2], then [1])"]
    assert words(np.array([1, 2]), np.array([1, 3])) == [f"{start} (in 1 of 2 elements)"]
    assert words(np.array(["a", "b"], object), np.array(["a", "c"], object)) == [f"{start} (in 1 of 2 elements)"]
