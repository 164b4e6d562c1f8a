"""Whatever the child does, the parent gets a value."""

from __future__ import annotations

import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from normfuse.validate.sessions import (
    Cause,
    Failure,
    Level,
    Results,
    RuntimeLimits,
    Task,
    load_arrays,
    run_tasks,
    save_arrays,
)
from tests.validate.nets import info, model

CPU = "CPUExecutionProvider"
FEED = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}


def relu(path: Path, op: str = "Relu") -> Path:
    shape: list[int | str] = ["N", 3]
    onnx.save(
        model([helper.make_node(op, ["x"], ["y"])], [info("x", "float32", shape)], [info("y", "float32", shape)], {}),
        path,
    )
    return path


def test_results_of_both_optimization_levels(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = relu(tmp_path / "relu.onnx")
    answers = run_tasks([Task(path, Level.OFF), Task(path, Level.ALL)], [FEED, {"x": -FEED["x"]}], CPU)
    for answer in answers:
        assert isinstance(answer, Results)
        assert answer.provider == CPU
        assert [item["y"].tolist() for item in answer.outputs] == [FEED["x"].tolist(), (0 * FEED["x"]).tolist()]


def test_bfloat16_goes_in_and_out(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    x = np.array([[1.0, -2.5, 3.0]], dtype=ml_dtypes.bfloat16)
    infos = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [1, 3]) for name in "xy"]
    onnx.save(model([helper.make_node("Identity", ["x"], ["y"])], infos[:1], infos[1:], {}), tmp_path / "b.onnx")
    answer = run_tasks([Task(tmp_path / "b.onnx", Level.ALL)], [{"x": x}], CPU)[0]
    assert isinstance(answer, Results)
    assert answer.outputs[0]["y"].dtype == ml_dtypes.bfloat16
    assert answer.outputs[0]["y"].tolist() == x.tolist()


def test_one_bad_model_does_not_end_the_others(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    good, bad = relu(tmp_path / "good.onnx"), relu(tmp_path / "bad.onnx", "Nothing")
    answers = run_tasks([Task(bad, Level.ALL), Task(good, Level.ALL)], [FEED], CPU)
    assert isinstance(answers[0], Failure)
    assert answers[0].cause is Cause.LOAD
    assert "Nothing" in answers[0].words
    assert isinstance(answers[1], Results)


def test_inputs_of_a_wrong_size_are_a_failure_to_run(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    answer = run_tasks([Task(relu(tmp_path / "r.onnx"), Level.ALL)], [{"x": np.zeros((2, 4), "f")}], CPU)[0]
    assert isinstance(answer, Failure)
    assert answer.cause is Cause.RUN


def test_absent_provider(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    answer = run_tasks([Task(relu(tmp_path / "r.onnx"), Level.ALL)], [FEED], "NoSuchExecutionProvider")[0]
    assert isinstance(answer, Failure)
    assert answer.cause is Cause.NO_PROVIDER


def fake(tmp_path: Path, body: str) -> RuntimeLimits:
    """A worker of our own: ``job`` is what the parent asked for."""
    script = tmp_path / "fake.py"
    script.write_text(
        f"import json, os, signal, sys, time\njob = json.load(open(sys.argv[1]))\n{body}\n", encoding="utf-8"
    )
    return RuntimeLimits(seconds=1.0 if "sleep" in body else 20.0, command=(str(script),))


@pytest.mark.parametrize(
    ("body", "cause", "words"),
    [
        ("time.sleep(60)", Cause.HANG, "no answer within 1 s"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", Cause.CRASH, "SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", Cause.MEMORY, "SIGKILL"),
        ("print('no more words'); sys.exit(7)", Cause.CRASH, "exit status 7; no more words"),
        ("pass", Cause.CRASH, "exit status 0"),
    ],
)
def test_death_of_the_child(tmp_path: Path, body: str, cause: Cause, words: str) -> None:
    answers = run_tasks([Task(tmp_path / "m.onnx", Level.ALL)], [FEED], CPU, limits=fake(tmp_path, body))
    assert answers == (Failure(cause, words),)


def test_a_real_runtime_dies_in_one_model_and_goes_on_with_the_next(tmp_path: Path) -> None:
    """onnxruntime 1.32 ends with SIGSEGV on a batch norm in training mode whose last two outputs have no name."""
    pytest.importorskip("onnxruntime")
    tensors = {name: np.ones(3, "f") for name in ("s", "b", "m", "v")}
    node = helper.make_node("BatchNormalization", ["x", *tensors], ["y", "", ""], training_mode=1)
    shape: list[int | str] = ["N", 3]
    deadly = model([node], [info("x", "float32", shape)], [info("y", "float32", shape)], tensors)
    onnx.checker.check_model(deadly, full_check=True)
    onnx.save(deadly, tmp_path / "deadly.onnx")
    tasks = [Task(tmp_path / "deadly.onnx", Level.OFF), Task(relu(tmp_path / "relu.onnx"), Level.OFF)]
    died, ran = run_tasks(tasks, [FEED], CPU)
    assert isinstance(ran, Results)
    if isinstance(died, Results):
        pytest.skip("this onnxruntime runs it")
    assert (died.cause, died.words[:7]) == (Cause.CRASH, "SIGSEGV")


def test_a_real_model_that_does_not_end(tmp_path: Path) -> None:
    """A loop of 2^62 trips: the child is stopped, and the next model is run."""
    pytest.importorskip("onnxruntime")
    body = "(int64 i, bool go, float[N, 3] h) => (bool on, float[N, 3] k) { on = Identity (go)  k = Relu (h) }"
    text = f"""<ir_version: 8, opset_import: ["": 17]> g (float[N, 3] x) => (float[N, 3] y)
        <int64 trips = {{4611686018427387904}}, bool go = {{1}}> {{ y = Loop <body = b {body}> (trips, go, x) }}"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "endless.onnx")
    tasks = [Task(tmp_path / "endless.onnx", Level.OFF), Task(relu(tmp_path / "relu.onnx"), Level.OFF)]
    hung, ran = run_tasks(tasks, [FEED], CPU, limits=RuntimeLimits(seconds=10.0))
    assert hung == Failure(Cause.HANG, "no answer within 10 s")
    assert isinstance(ran, Results)


def test_death_in_the_second_task_leaves_the_first_and_the_third(tmp_path: Path) -> None:
    body = """
for task in job["tasks"]:
    if task["index"] == 1:
        os.abort()
    json.dump({"cause": "LOAD", "words": "w", "provider": ""}, open(f"{job['folder']}/done{task['index']}.json", "w"))
"""
    answers = run_tasks([Task(tmp_path / "m.onnx", Level.ALL)] * 3, [FEED], CPU, limits=fake(tmp_path, body))
    assert [answer.cause for answer in answers if isinstance(answer, Failure)] == [Cause.LOAD, Cause.CRASH, Cause.LOAD]
    assert "SIGABRT" in str(answers[1])


def test_missing_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name that cannot be imported stands for one that is not there."""
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('not here')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    answer = run_tasks([Task(tmp_path / "m.onnx", Level.ALL)], [FEED], CPU)[0]
    assert answer == Failure(Cause.NO_RUNTIME, "not here")


def test_arrays_survive_the_disk(tmp_path: Path) -> None:
    arrays = {
        "a/b:0": np.zeros((), dtype=np.int64),
        "names": np.array([1.5], dtype=ml_dtypes.bfloat16),
        "file": np.array(["text"], dtype=object),
        "empty": np.zeros((0, 3)),
    }
    save_arrays(tmp_path / "x.npz", arrays)
    found = load_arrays(tmp_path / "x.npz")
    assert list(found) == list(arrays)
    assert all(
        found[name].dtype == array.dtype and found[name].tolist() == array.tolist() for name, array in arrays.items()
    )


def test_job_is_plain_json(tmp_path: Path) -> None:
    body = """
answer = {"cause": "RUN", "words": json.dumps(job), "provider": ""}
json.dump(answer, open(job["folder"] + "/done0.json", "w"))
"""
    answer = run_tasks([Task(tmp_path / "m.onnx", Level.OFF)], [FEED], CPU, limits=fake(tmp_path, body))[0]
    assert isinstance(answer, Failure)
    job = json.loads(answer.words)
    assert (job["provider"], job["feeds"], job["tasks"][0]["level"]) == (CPU, 1, "ORT_DISABLE_ALL")
