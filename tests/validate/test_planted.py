"""Planted faults: every wrong pair is found, no pair that differs by rounding is accused."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

import normfuse
from normfuse import Form, Target, Verdict
from normfuse.validate import validate
from tests.validate.planted import (
    ROUNDING_REPORTED_AS_A_FAULT,
    TIER_1,
    Pair,
    mixed_network,
    mutations,
    rounding_pairs,
    wrong_pairs,
)

WRONG = list(wrong_pairs())
ROUNDING = list(rounding_pairs())
LEVELS = ("off", "basic", "extended", "all")


def test_there_are_enough() -> None:
    names = [name for name, _ in (*WRONG, *ROUNDING)]
    assert len(set(names)) == len(names)
    assert len(WRONG) >= 60
    assert len(ROUNDING) >= 40
    assert len(MUTANTS) >= 20


def test_every_silent_fault_that_users_report_has_its_pair() -> None:
    names = {name for name, _ in WRONG}
    assert {pair for pairs in TIER_1.values() for pair in pairs} <= names
    assert ROUNDING_REPORTED_AS_A_FAULT in {name for name, _ in ROUNDING}


@pytest.mark.parametrize("pair", [pair for _, pair in WRONG], ids=[name for name, _ in WRONG])
def test_wrong_pair_is_found(pair: Pair) -> None:
    assert validate(*pair, providers=()).verdict is Verdict.DIVERGENT


@pytest.mark.parametrize("pair", [pair for _, pair in ROUNDING], ids=[name for name, _ in ROUNDING])
def test_rounding_is_not_accused(pair: Pair) -> None:
    report = validate(*pair, providers=())
    assert report.verdict is Verdict.EQUIVALENT, report.table()


@pytest.mark.parametrize("pair", [pair for _, pair in ROUNDING], ids=[name for name, _ in ROUNDING])
def test_rounding_is_not_accused_on_a_runtime(pair: Pair) -> None:
    """A runtime that has no kernel for the original (norms in float16) says so; the oracle decides."""
    pytest.importorskip("onnxruntime")
    report = validate(*pair, quick=True)
    assert report.verdict is Verdict.EQUIVALENT, report.table()


@pytest.mark.parametrize("form", ["auto", "standard", "custom", "ort", "primitive"])
def test_no_form_is_accused_at_any_level(form: str) -> None:
    pytest.importorskip("onnxruntime")
    model = mixed_network()
    fused, _ = normfuse.fuse(model, Target(Form(form)))
    report = validate(model, fused, levels=LEVELS)
    assert [leg.verdict for leg in report.legs] == [Verdict.EQUIVALENT, Verdict.EQUIVALENT], report.table()
    assert {item.level for item in report.latencies} == {
        "optimizations off", "optimizations basic", "optimizations extended", "optimizations on",
    }  # fmt: skip


@pytest.mark.parametrize("level", ["BASIC", "EXTENDED"])
def test_what_onnxruntime_writes_is_not_accused(tmp_path: Path, level: str) -> None:
    """Its own optimized graph, com.microsoft operators included."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnx.save(mixed_network(), tmp_path / "model.onnx")
    ort.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    report = validate(tmp_path / "model.onnx", tmp_path / "optimized.onnx")
    assert report.verdict is Verdict.EQUIVALENT, report.table()


def test_variance_as_a_difference_of_squares_is_found_on_the_runtime() -> None:
    """In exact arithmetic it is the same: only float32 and a large mean tell."""
    pytest.importorskip("onnxruntime")
    from tests.validate.planted import graph

    text = """g (float[N,5,64] x) => (float[N,5,64] y) {
        m = ReduceMean (x, a)  q = Mul (x, x)  mq = ReduceMean (q, a)  m2 = Mul (m, m)  v = Sub (mq, m2)
        ve = Add (v, e)  s = Sqrt (ve)  d = Sub (x, m)  y = Div (d, s) }"""
    import numpy as np

    wrong = graph(text, 18, a=np.array([-1]), e=np.float32(1e-5))
    right = graph(
        "g (float[N,5,64] x) => (float[N,5,64] y) { y = LayerNormalization (x, one) }", 18, one=np.ones(64, np.float32)
    )
    assert validate(right, wrong, providers=()).verdict is Verdict.EQUIVALENT
    assert validate(right, wrong).verdict is Verdict.DIVERGENT


FUSED = [ir.to_proto(normfuse.fuse(mixed_network(), Target(Form(form)))[0]) for form in ("auto", "standard")]
MUTANTS = [item for index, model in enumerate(FUSED) for item in mutations(model, 10, seed=index)]


@pytest.mark.parametrize(
    "mutant", [model for _, model in MUTANTS], ids=[f"{i}: {name}" for i, (name, _) in enumerate(MUTANTS)]
)
def test_mutant_of_a_fused_model_is_found(mutant: onnx.ModelProto) -> None:
    assert validate(mixed_network(), mutant, providers=(), quick=True).verdict is Verdict.DIVERGENT
