"""Planted faults: what must pass passes, what must not is found; and what cannot be said is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from normfuse.emit.target import Provider
from normfuse.errors import ModelIOError, ValidationError
from normfuse.report.verdict import ValidationReport, Verdict
from normfuse.validate import validate
from normfuse.validate.oracle import Oracle
from tests.validate.nets import Array, Block, blocks, folded, info, model, network

pytest.importorskip("onnxruntime")

Fault = Callable[[Block], Block]


def scaled(channel: int, factor: float) -> Fault:
    def fault(block: Block) -> Block:
        scale = block.scale.copy()
        scale[channel] *= factor
        return replace(block, scale=scale)

    return fault


def shifted(channel: int, by: float) -> Fault:
    def fault(block: Block) -> Block:
        mean = block.mean.copy()
        mean[channel] += by
        return replace(block, mean=mean)

    return fault


FAULTS: dict[str, Fault] = {
    "one γ off by 0.1 %": scaled(2, 1.001),
    "one mean off by 1e-3": shifted(1, 1e-3),
    "channels in reverse order": lambda block: replace(block, scale=block.scale[::-1], mean=block.mean[::-1]),
    "weights of two maps swapped": lambda block: replace(block, weight=block.weight[[1, 0, *range(2, 8)]]),
    "variance instead of deviation": lambda block: replace(block, var=block.var**2),
    "mean and bias swapped": lambda block: replace(block, mean=block.bias, bias=block.mean),
}


def planted(parameters: tuple[Block, ...], index: int, fault: Fault) -> tuple[Block, ...]:
    return tuple(fault(block) if place == index else block for place, block in enumerate(parameters))


def leg(report: ValidationReport, name: str) -> tuple[Verdict, str]:
    return next((item.verdict, item.reason) for item in report.legs if item.name == name)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_correct_fold_is_equivalent(dtype: str) -> None:
    parameters = blocks(dtype=dtype)
    report = validate(network(parameters, dtype), folded(parameters, dtype))
    assert [item.verdict for item in report.legs] == [Verdict.EQUIVALENT, Verdict.EQUIVALENT]
    assert {check.inputs for check in report.checks if check.leg == "oracle"} == {
        "standard normal", "second size", "tiny variance", "large mean", "size 1", "odd size", "constant planes",
        "outliers", "mean 1000", "mean 10000", "NaN", "infinity",
        *(("near overflow", "subnormal") if dtype == "float16" else ()),
    }  # fmt: skip


def test_float64_is_decided_by_the_oracle() -> None:
    parameters = blocks(dtype="float64")
    report = validate(network(parameters, "float64"), folded(parameters, "float64"))
    assert leg(report, "oracle") == (Verdict.EQUIVALENT, "")
    assert leg(report, "cpu")[0] is Verdict.NOT_RUN
    assert "it cannot run the original: the model does not load" in leg(report, "cpu")[1]
    assert report.verdict is Verdict.EQUIVALENT


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("name", FAULTS)
def test_fault_in_one_block_is_found(name: str, index: int) -> None:
    parameters = blocks()
    report = validate(network(parameters), folded(planted(parameters, index, FAULTS[name])), providers=())
    assert report.verdict is Verdict.DIVERGENT
    assert f"segment 'norm{index}'" in leg(report, "oracle")[1]


@pytest.mark.parametrize("name", ["channels in reverse order", "weights of two maps swapped", "mean and bias swapped"])
def test_fault_in_float16_is_found(name: str) -> None:
    parameters = blocks(dtype="float16")
    report = validate(network(parameters, "float16"), folded(planted(parameters, 0, FAULTS[name]), "float16"))
    assert report.verdict is Verdict.DIVERGENT


def test_fault_of_two_percent_in_float16_is_found() -> None:
    parameters = blocks(dtype="float16")
    candidate = folded(planted(parameters, 0, scaled(2, 1.02)), "float16")
    assert validate(network(parameters, "float16"), candidate, providers=()).verdict is Verdict.DIVERGENT


def test_changed_epsilon_is_found() -> None:
    parameters = blocks()
    report = validate(network(parameters, epsilon=1e-3), folded(parameters, epsilon=1e-5))
    assert report.verdict is Verdict.DIVERGENT


def test_missing_bias_is_found() -> None:
    parameters = blocks()
    assert validate(network(parameters), folded(parameters, bias=False)).verdict is Verdict.DIVERGENT


def test_training_mode_read_as_inference_is_found() -> None:
    parameters = blocks()
    report = validate(network(parameters, training_mode=1), folded(parameters), providers=())
    assert leg(report, "oracle")[0] is Verdict.DIVERGENT


def test_small_fault_at_the_head_of_a_long_chain_is_found_locally() -> None:
    parameters = blocks(count=20)
    report = validate(network(parameters), folded(planted(parameters, 0, scaled(2, 1.001))), providers=())
    assert "segment 'norm0'" in leg(report, "oracle")[1]


def test_swapped_outputs() -> None:
    def two(first: str, second: str) -> onnx.ModelProto:
        nodes = [helper.make_node("Relu", ["x"], [first]), helper.make_node("Sigmoid", ["x"], [second])]
        return model(nodes, [info("x", "float32", ["N", 4])], [info(name, "float32", ["N", 4]) for name in "ab"], {})

    assert validate(two("a", "b"), two("b", "a")).verdict is Verdict.DIVERGENT


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda m: m.graph.output[0].__setattr__("name", "other"),
            r"return different outputs: \[relu2\] the reference and \[other\] the candidate",
        ),
        (
            lambda m: m.graph.input[0].__setattr__("name", "other"),
            r"take different inputs: \[x\] the reference and \[other\] the candidate",
        ),
        (
            lambda m: m.graph.input[0].type.tensor_type.__setattr__("elem_type", 10),
            "input 'x' is float in the reference and float16 in the candidate",
        ),
    ],
)
def test_models_that_do_not_pair_up(change: Callable[[onnx.ModelProto], None], words: str) -> None:
    candidate = network(blocks())
    change(candidate)
    with pytest.raises(ValidationError, match=words):
        validate(network(blocks()), candidate)


def test_axis_that_was_free_and_is_fixed() -> None:
    candidate = folded(blocks())
    candidate.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    report = validate(network(blocks()), candidate)
    assert leg(report, "oracle") == (
        Verdict.DIVERGENT,
        "input 'x' takes [N,3,H,W] in the reference and only [1,3,H,W] in the candidate",
    )


def test_unreadable_model(tmp_path: object) -> None:
    with pytest.raises(ModelIOError, match=r"reference: .*no such file"):
        validate(f"{tmp_path}/none.onnx", network(blocks()))


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "not an ONNX model: it has no graph or no IR version"), (b"hello", "not an ONNX model, or a truncated one")],
)
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(ModelIOError, match=f"candidate: .*x.onnx: {words}"):
        validate(network(blocks()), tmp_path / "x.onnx")


@pytest.mark.parametrize("role", ["reference", "candidate"])
def test_an_invalid_model_is_named(role: str) -> None:
    models = {"reference": network(blocks()), "candidate": folded(blocks())}
    del models[role].graph.node[-2]
    with pytest.raises(ModelIOError, match=f"{role}: not a valid ONNX model: .*sorted") as caught:
        validate(models["reference"], models["candidate"], quick=True)
    assert "\n" not in str(caught.value)


def test_models_are_not_changed() -> None:
    reference, candidate = network(blocks()), ir.from_proto(folded(blocks()))
    before = reference.SerializeToString(), ir.to_proto(candidate).SerializeToString()
    validate(reference, candidate, quick=True)
    assert (reference.SerializeToString(), ir.to_proto(candidate).SerializeToString()) == before


def test_absent_provider_is_no_pass() -> None:
    report = validate(network(blocks()), folded(blocks()), providers=(Provider.CUDA,), quick=True)
    verdict, reason = leg(report, "cuda")
    if verdict is Verdict.NOT_RUN:
        assert "the provider is not available: this onnxruntime has" in reason


def test_candidate_that_the_runtime_rejects_is_divergent() -> None:
    """BatchNormalization with three named outputs and no training mode: onnxruntime refuses it, the oracle evaluates
    it."""
    reference = network(blocks(1))
    candidate = network(blocks(1))
    candidate.graph.node[1].output.extend(["m", "v"])
    report = validate(reference, candidate, quick=True)
    verdict, reason = leg(report, "cpu")
    assert verdict is Verdict.DIVERGENT
    assert "the original runs and the candidate does not: the model does not" in reason


def test_crash_of_the_runtime_is_survived() -> None:
    """onnxruntime 1.32 dies with SIGSEGV on a training BatchNormalization whose extra outputs are
    unnamed."""
    reference = network(blocks(1), training_mode=1)
    reference.graph.node[1].output.extend(["", ""])
    report = validate(reference, reference, quick=True)
    verdict, reason = leg(report, "cpu")
    assert leg(report, "oracle")[0] is Verdict.EQUIVALENT
    if verdict is Verdict.NOT_RUN:
        assert "it cannot run the original: the" in reason


NOISY = """<ir_version: 8, opset_import: ["": 17]> g (float[N,6,8,8] x) => (float[N,6,8,8] y) {{
    z = RandomNormalLike (x)  a = Add (x, z)  r = Constant <value_float = 0.3> ()  t = Constant <value = bool {{1}}> ()
    d, mask = Dropout (a, r, t)  {tail} }}"""


def noisy(tail: str) -> onnx.ModelProto:
    """A random term and a Dropout in training mode, then ``tail``, which has factors k, l and k · l per channel."""
    proto = onnx.parser.parse_model(NOISY.format(tail=tail))
    factors = np.random.default_rng(5).normal(size=(2, 6, 1, 1))
    for name, array in (("k", factors[0]), ("l", factors[1]), ("kl", factors[0] * factors[1])):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype("f"), name))
    return proto


def test_random_operators_draw_alike_in_both_graphs() -> None:
    """On the provider, which would not, their draws become inputs."""
    reference = noisy("p = Mul (d, k)  y = Mul (p, l)")
    report = validate(reference, noisy("y = Mul (d, kl)"))
    assert [item.verdict for item in report.legs] == [Verdict.EQUIVALENT, Verdict.EQUIVALENT], report.table()
    assert "random, with the same draws given to both graphs: RandomNormalLike at node 'z' and 1 more" in report.notes
    assert {check.inputs.split(", ")[1] for check in report.checks if check.leg == "cpu"} == {"cut"}
    report = validate(reference, noisy("p = Mul (d, k)  y = Mul (p, k)"), quick=True)
    assert [item.verdict for item in report.legs] == [Verdict.DIVERGENT, Verdict.DIVERGENT]


def test_random_operator_that_is_dropped_is_found() -> None:
    assert validate(noisy("y = Mul (d, kl)"), noisy("y = Mul (a, kl)"), providers=()).verdict is Verdict.DIVERGENT


def test_random_operator_of_another_name_leaves_the_changed_part() -> None:
    """The draws cannot be paired, so only what has changed is judged; the provider can say nothing."""
    reference, candidate = noisy("y = Mul (d, kl)"), noisy("p = Mul (d, k)  y = Mul (p, l)")
    for node in candidate.graph.node:
        for names in (node.input, node.output):
            names[:] = ["other" if name == "z" else name for name in names]
    report = validate(reference, candidate)
    assert leg(report, "cpu") == (
        Verdict.NOT_RUN,
        "the result differs from run to run: RandomNormalLike at node 'z'",
    )
    assert "the candidate has none of that name to draw alike" in report.notes[0]
    assert "not end to end: " in " ".join(report.notes)


def test_unknown_operator_in_an_unchanged_part() -> None:
    block = blocks(1)[0]
    factor = block.scale / np.sqrt(block.var + 1e-5)

    def net(tail: list[onnx.NodeProto], extra: dict[str, Array]) -> onnx.ModelProto:
        nodes = [helper.make_node("Mystery", ["x"], ["m"], domain="somebody"), *tail]
        proto = model(
            nodes,
            [info("x", "float32", [2, 3, 8, 8])],
            [info("y", "float32", [2, 8, 8, 8])],
            extra,
            domains=("somebody",),
        )
        proto.graph.value_info.append(info("m", "float32", [2, 3, 8, 8]))
        return proto

    pads: dict[str, Any] = {"pads": [1, 1, 1, 1]}
    names = ["scale", "bias", "mean", "var"]
    reference = net(
        [
            helper.make_node("Conv", ["m", "w"], ["c"], **pads),
            helper.make_node("BatchNormalization", ["c", *names], ["y"]),
        ],
        {"w": block.weight.astype("f"), **{name: getattr(block, name).astype("f") for name in names}},
    )
    weight = (block.weight * factor[:, None, None, None]).astype("f")
    shift = block.bias - factor * block.mean
    for off, expected in ((0.0, Verdict.EQUIVALENT), (1e-3, Verdict.DIVERGENT)):
        candidate = net(
            [helper.make_node("Conv", ["m", "wf", "bf"], ["y"], **pads)],
            {"wf": weight, "bf": (shift + off).astype("f")},
        )
        report = validate(reference, candidate)
        assert leg(report, "oracle")[0] is expected
        assert leg(report, "cpu")[0] is Verdict.NOT_RUN
        assert "made-up activations" in " ".join(report.notes)


def test_name_used_again_for_another_value_is_no_fault() -> None:
    """A tool that folds into the convolution often keeps the convolution's output name."""
    parameters = tuple(
        replace(block, scale=np.ones(8), bias=np.zeros(8), mean=np.zeros(8), var=np.ones(8)) for block in blocks()
    )
    candidate = folded(parameters)
    for node in candidate.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = name.replace("norm", "conv")
    report = validate(network(parameters), candidate, providers=())
    assert report.verdict is Verdict.EQUIVALENT
    assert "mean something else in the candidate: conv0, conv1, conv2" in " ".join(report.notes)


def quantized(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Put QuantizeLinear and DequantizeLinear behind the first Relu, and ArgMax behind the last."""
    found: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        found.append(node)
        if node.output[0] == "relu0":
            node.output[0] = "before"
            found.append(helper.make_node("QuantizeLinear", ["before", "step", "zero"], ["quanta"]))
            found.append(helper.make_node("DequantizeLinear", ["quanta", "step", "zero"], ["relu0"]))
    found.append(helper.make_node("ArgMax", [proto.graph.output[0].name], ["best"], axis=1))
    tensors = {"step": np.array(0.03, "f"), "zero": np.array(0, "u1")}
    del proto.graph.node[:]
    proto.graph.node.extend(found)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in tensors.items())
    proto.graph.output.append(info("best", "int64", ["N", 1, "H", "W"]))
    return proto


def test_quantizer_in_the_middle_and_argmax_at_the_end() -> None:
    parameters = blocks(2)
    good, bad = folded(parameters), folded(planted(parameters, 0, scaled(2, 1.001)))
    report = validate(quantized(network(parameters)), quantized(good))
    assert [item.verdict for item in report.legs] == [Verdict.EQUIVALENT, Verdict.EQUIVALENT]
    report = validate(quantized(network(parameters)), quantized(bad), providers=())
    assert "segment 'norm0'" in leg(report, "oracle")[1]


QUANTISED = """<ir_version: 10, opset_import: ["": 21]> g (float[2,6,32,32] x) => (float[2,6,32,32] y)
    <float step = {{0.00001}}, uint16 zero = {{0}}> {{
    a = {first}  n = Clip (a, , top)  q = QuantizeLinear (n, step, zero)  d = DequantizeLinear (q, step, zero)
    y = {last} }}"""


def quantised(first: str, last: str = "Mul (d, k)") -> onnx.ModelProto:
    """Quanta near the rounding of what is quantised: ten times as much and some fall otherwise."""
    proto = onnx.parser.parse_model(QUANTISED.format(first=first, last=last))
    k = np.random.default_rng(5).uniform(0.5, 1.5, size=(6, 1, 1)).astype("f")
    arrays = {"k": k, "r": 1 / k, "top": np.float32(0.6)}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in arrays.items())
    return proto


def test_graphs_are_cut_where_decisions_lie_near_a_tie() -> None:
    reference = quantised("Mul (x, k)")
    report = validate(reference, quantised("Div (x, r)"), quick=True)
    assert [item.verdict for item in report.legs] == [Verdict.EQUIVALENT, Verdict.EQUIVALENT], report.table()
    assert any(
        " decisions lie within rounding of a tie (QuantizeLinear at node 'q'): judged cut there as well" in note
        for note in report.notes
    )
    subjects = {check.subject for check in report.checks if check.inputs.startswith("standard normal, cut")}
    assert {"output 'input 0 of QuantizeLinear 'q''", "output 'y'"} <= subjects
    report = validate(reference, quantised("Mul (x, k)", "Add (d, k)"), quick=True)
    assert any(
        check.verdict is Verdict.DIVERGENT and check.inputs.startswith("standard normal, cut")
        for check in report.checks
        if check.leg == "cpu"
    )


def test_comparison_of_integers_decides_nothing() -> None:
    """The mask of a transformer: what it compares is exact, so the budget is that of ordinary rounding."""
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N,4] x, int64[N,4] mask) => (float[N,4] y)
        <int64 zero = {0}, float low = {-10.0}> { c = Equal (mask, zero)  y = Where (c, low, x) }"""
    oracle = Oracle(ir.from_proto(onnx.parser.parse_model(text)))
    assert oracle.jumps() == ()
    text = (
        text.replace("int64[N,4] mask", "float[N,4] mask").replace("int64 zero", "float zero").replace("{0}", "{0.0}")
    )
    assert [node.op_type for node in Oracle(ir.from_proto(onnx.parser.parse_model(text))).jumps()] == ["Equal"]


def test_a_family_that_the_original_cannot_take_is_named() -> None:
    """onnx.reference reads no region of NaN: the other families decide."""
    text = """<ir_version: 8, opset_import: ["": 16]> g (float[1,2,6,6] x, float[2,4] t) => (float[2,2,2,2] y)
        { i = Constant <value_ints=[0,0]> () y = RoiAlign <output_height=2,output_width=2> (x, t, i) }"""
    proto = onnx.parser.parse_model(text)
    report = validate(proto, proto, providers=())
    assert report.verdict is Verdict.EQUIVALENT
    assert any(note.startswith("no NaN was tried: RoiAlign at node") for note in report.notes)


def test_a_result_without_elements_is_the_same() -> None:
    """A result of shape (2, 0, 3) has channels, and none of them has an element."""
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[2,4,3] x) => (float[2,0,3] y)
        <int64[1] s = {4}, int64[1] e = {4}, int64[1] a = {1}> { y = Slice (x, s, e, a) }"""
    proto = onnx.parser.parse_model(text)
    assert validate(proto, proto, providers=()).verdict is Verdict.EQUIVALENT
    text = text.replace("(float[2,0,3] y)", "(float[0,4,3] y)").replace("a = {1}", "a = {0}").replace("{4}", "{2}")
    proto = onnx.parser.parse_model(text)
    assert validate(proto, proto, providers=()).verdict is Verdict.EQUIVALENT


SPLIT = """<ir_version: 8, opset_import: ["": 17]> g (float[6,4] x) => (seq(float[N,4]) y)
    <int64[2] sizes = {{{first}, {second}}}> {{ y = SplitToSequence <axis = 0> (x, sizes) }}"""


def test_sequences_are_compared_element_by_element() -> None:
    first, longer = (onnx.parser.parse_model(SPLIT.format(first=a, second=b)) for a, b in ((2, 4), (3, 3)))
    report = validate(first, first, providers=())
    assert report.verdict is Verdict.EQUIVALENT
    assert report.checks[0].detail == "all of 2 tensors agree"
    report = validate(first, longer, providers=())
    assert report.verdict is Verdict.DIVERGENT
    assert "the shape is [3, 4]; the original gives [2, 4]" in leg(report, "oracle")[1]
    single = onnx.parser.parse_model(SPLIT.format(first=6, second=0))
    single.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array([6]), "sizes"))
    report = validate(first, single, providers=())
    assert leg(report, "oracle")[1].endswith("1 tensor; the original gives 2 tensors")


def test_an_original_that_takes_no_generated_input_is_judged_by_its_changed_parts() -> None:
    """The sizes of its Reshape are an input, and random ones fit nothing."""
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[6,4] x, int64[3] s) => (float[a,b,c] y)
        <float[4] k = {{1.0, 2.0, 3.0, 4.0}}> {{ m = Mul ({}) y = Reshape (m, s) }}"""
    report = validate(onnx.parser.parse_model(text.format("x, k")), onnx.parser.parse_model(text.format("k, x")))
    assert leg(report, "oracle")[0] is Verdict.EQUIVALENT
    assert "it takes none of the inputs that were generated, give --inputs (Reshape at node 'y'" in report.notes[0]
    report = validate(onnx.parser.parse_model(text.format("x, k")), onnx.parser.parse_model(text.format("x, x")))
    assert leg(report, "oracle")[0] is Verdict.NOT_RUN


def test_an_original_without_inputs_that_can_be_made_is_judged_by_its_changed_parts() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (seq(float[4]) s, int64 i) => (float[4] y) {{
        x = SequenceAt (s, i)  y = {} (x) }}"""
    same, other = (onnx.parser.parse_model(text.format(op)) for op in ("Relu", "Abs"))
    report = validate(same, same)
    assert leg(report, "oracle") == (Verdict.EQUIVALENT, "nothing has changed")
    assert "input 's' has no tensor type" in leg(report, "cpu")[1]
    assert validate(same, other, providers=()).verdict is not Verdict.EQUIVALENT


def test_a_segment_that_fails_names_the_nodes_of_the_original() -> None:
    """The page tells by them which norm is at fault."""
    changed = list(blocks())
    changed[1] = replace(changed[1], scale=changed[1].scale * 1.001)
    report = validate(network(blocks()), folded(tuple(changed)), quick=True, providers=())
    failed = [check for check in report.checks if check.subject == "segment 'norm1'"]
    assert [(check.verdict, check.nodes) for check in failed] == [(Verdict.DIVERGENT, ("/conv1", "/norm1"))]
