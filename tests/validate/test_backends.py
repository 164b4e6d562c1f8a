"""Providers by name, in child processes of any Python; what each of them does wrong becomes a verdict."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from normfuse.errors import UnsupportedForm
from normfuse.report.verdict import Verdict
from normfuse.validate import validate
from normfuse.validate.backends import Backend, parse_backend
from normfuse.validate.sessions import RuntimeLimits
from tests.validate.nets import blocks, folded, network

MODELS = network(blocks(1)), folded(blocks(1))
SECOND = os.environ.get("NORMFUSE_SECOND_PYTHON", "")


@pytest.mark.parametrize(
    ("text", "provider"),
    [
        ("cpu", "CPUExecutionProvider"),
        ("tensorrt", "TensorrtExecutionProvider"),
        ("directml", "DmlExecutionProvider"),
        ("QNNExecutionProvider", "QNNExecutionProvider"),
    ],
)
def test_names(text: str, provider: str) -> None:
    assert parse_backend(text) == Backend(text, provider, sys.executable)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cdua", "unknown provider 'cdua'; did you mean 'cuda'"),
        ("xyz", "unknown provider 'xyz'; known: cpu, cuda, tensorrt"),
        ("cpu@", "provider 'cpu@': no Python is named behind the @"),
        ("cpu@/no/python", "provider 'cpu@/no/python': there is no Python at '/no/python'"),
    ],
)
def test_unknown_names(text: str, words: str) -> None:
    with pytest.raises(UnsupportedForm, match=words):
        parse_backend(text)


def test_a_provider_named_twice_is_one_leg() -> None:
    report = validate(*MODELS, quick=True, providers=("NoSuchExecutionProvider", "NoSuchExecutionProvider"))
    assert [leg.name for leg in report.legs] == ["oracle", "NoSuchExecutionProvider"]


def test_unknown_level() -> None:
    with pytest.raises(UnsupportedForm, match="unknown optimization level 'most'; known: off, basic, extended, all"):
        validate(*MODELS, levels=("most",))


def fake(tmp_path: Path, body: str, seconds: float = 30.0) -> RuntimeLimits:
    """Return limits under which a runtime of our own answers: ``task`` is the one asked for."""
    script = tmp_path / "fake.py"
    script.write_text(
        "import json, os, sys, time\nimport numpy as np\njob = json.load(open(sys.argv[1]))\n"
        f"for task in job['tasks']:\n    name = os.path.basename(task['model'])\n{body}\n",
        encoding="utf-8",
    )
    return RuntimeLimits(seconds=seconds, command=(str(script),))


ANSWER = """
    words = {"cause": CAUSE, "words": "its own words", "provider": ""}
    json.dump(words, open(f"{job['folder']}/done{task['index']}.json", "w"))
"""
CANDIDATE = 'name == "candidate.onnx"'


@pytest.mark.parametrize(
    ("body", "verdict", "words"),
    [
        (ANSWER.replace("CAUSE", '"FALLBACK"'), Verdict.NOT_RUN, "fell back to another provider: its own words"),
        (ANSWER.replace("CAUSE", '"NO_PROVIDER"'), Verdict.NOT_RUN, "the provider is not available: its own words"),
        (ANSWER.replace("CAUSE", '"LOAD"'), Verdict.NOT_RUN, "cannot run the original: the model does not load: its own"),
        ("    os.abort()", Verdict.NOT_RUN, "cannot run the original: the runtime crashed: SIGABRT"),
    ],
)  # fmt: skip
def test_a_provider_that_does_not_run_the_original_says_nothing(
    tmp_path: Path, body: str, verdict: Verdict, words: str
) -> None:
    report = validate(*MODELS, quick=True, limits=fake(tmp_path, body))
    assert report.legs[1].verdict is verdict
    assert words in report.legs[1].reason
    assert report.verdict is Verdict.EQUIVALENT


RESULT = """
    if name == "candidate.onnx":
        FAULT
    arrays = {"names": np.array(["relu0"]), "a0": np.load(f"{job['folder']}/feed0.npz")["a0"][:, :1].repeat(8, 1)}
    for feed in range(job["feeds"]):
        np.savez(f"{job['folder']}/result{task['index']}_{feed}.npz", **arrays)
    json.dump({"cause": "", "words": "", "provider": "x"}, open(f"{job['folder']}/done{task['index']}.json", "w"))
"""


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("os.abort()", "the original runs and the candidate does not: the runtime crashed: SIGABRT"),
        ("time.sleep(60)", "the original runs and the candidate does not: the runtime did not finish"),
        ("sys.exit(3)", "the original runs and the candidate does not: the runtime crashed: exit status 3"),
    ],
)
def test_a_provider_that_runs_the_original_alone_accuses_the_candidate(tmp_path: Path, fault: str, words: str) -> None:
    limits = fake(tmp_path, RESULT.replace("FAULT", fault), seconds=5.0 if "sleep" in fault else 60.0)
    report = validate(*MODELS, quick=True, limits=limits)
    assert report.legs[1].verdict is Verdict.DIVERGENT
    assert words in report.legs[1].reason


def test_two_providers_are_compared_with_each_other(tmp_path: Path) -> None:
    """The second of two runtimes answers anything: a note says how it differs, beside its own verdict."""
    pytest.importorskip("onnxruntime")
    honest = sys.executable
    report = validate(*MODELS, quick=True, providers=("cpu", f"cpu@{honest}"))
    assert [leg.verdict for leg in report.legs] == [Verdict.EQUIVALENT] * 3
    assert not [note for note in report.notes if "against" in note]


@pytest.mark.skipif(not SECOND, reason="NORMFUSE_SECOND_PYTHON names no Python with another onnxruntime")
def test_another_version_of_onnxruntime() -> None:
    report = validate(*MODELS, providers=("cpu", f"cpu@{SECOND}"), levels=("off", "basic", "extended", "all"))
    assert [leg.verdict for leg in report.legs] == [Verdict.EQUIVALENT] * 3
    assert {item.leg for item in report.latencies} == {"cpu", f"cpu@{SECOND}"}
