"""Every sample exports, runs as torch does, and holds the norms it says."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="the sample models are torch modules")
ort = pytest.importorskip("onnxruntime", reason="running an exported model needs onnxruntime")

import models  # noqa: E402 (after the skip)
from models import identities  # noqa: E402
from models.statistics import randomise_statistics  # noqa: E402
from normfuse.export.torch_onnx import DEFAULT_OPSET, NEWEST_OPSET, export  # noqa: E402

if TYPE_CHECKING:
    from models.sample import Sample

# A step of a network is right to a few ulp of its largest term (float32 ulp 1.2e-7), and errors of some tens of steps
# add up like a random walk in torch and in onnxruntime alike: a hundred ulp of the largest output hold for both.
TOLERANCE = 100 * float(np.finfo(np.float32).eps)

SAMPLES = models.samples()
# What torch writes for a norm of each kind; at opset 18 it builds group norm around InstanceNormalization, and writes
# RMS norm out.
WRITTEN_OUT_RMS = "Reciprocal"
OPERATORS: dict[int, dict[str, str]] = {
    18: {
        "batch": "BatchNormalization",
        "instance": "InstanceNormalization",
        "group": "InstanceNormalization",
        "layer": "LayerNormalization",
        "rms": WRITTEN_OUT_RMS,
    },
    NEWEST_OPSET: {
        "batch": "BatchNormalization",
        "instance": "InstanceNormalization",
        "group": "GroupNormalization",
        "layer": "LayerNormalization",
        "rms": "RMSNormalization",
    },
}
NORM_OPERATORS = {operator for row in OPERATORS.values() for operator in row.values()}


def norms(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph if node.op_type in NORM_OPERATORS)


def run(model: ir.Model, inputs: tuple[Any, ...]) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {one.name: value.numpy() for one, value in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("opset", OPERATORS)
@pytest.mark.parametrize("sample", SAMPLES, ids=[sample.name for sample in SAMPLES])
def test_a_sample_exports_with_its_norms_and_runs_as_torch_does(sample: Sample, opset: int) -> None:
    module, inputs = sample.factory(), sample.example_inputs()
    model = export(module, inputs, opset=opset)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    spelled = OPERATORS[opset] | ({"rms": WRITTEN_OUT_RMS} if sample.name.endswith("_written_out") else {})
    assert norms(model) == {spelled[kind]: count for kind, count in sample.expected.items()}
    with torch.no_grad():
        expected = module(*inputs).numpy()
    np.testing.assert_allclose(run(model, inputs), expected, rtol=0, atol=TOLERANCE * float(np.abs(expected).max()))


@pytest.mark.parametrize("name", ["resnet", "unet", "lstm"])
def test_a_sample_exports_with_a_dynamic_batch(name: str) -> None:
    sample = models.find(name)
    module, (x,) = sample.factory(), sample.example_inputs()
    model = export(module, x, dynamic={"x": {0: "batch"}}, opset=DEFAULT_OPSET)
    more = torch.cat((x, x.flip(0) * 0.5, x + 1.0))
    with torch.no_grad():
        expected = module(more).numpy()
    np.testing.assert_allclose(run(model, (more,)), expected, rtol=0, atol=TOLERANCE * float(np.abs(expected).max()))


@pytest.mark.parametrize("sample", SAMPLES, ids=[sample.name for sample in SAMPLES])
def test_a_factory_gives_the_same_module_in_eval_mode_each_time(sample: Sample) -> None:
    state = torch.random.get_rng_state()
    first, second = sample.factory().state_dict(), sample.factory().state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not any(part.training for part in sample.factory().modules())


@pytest.mark.parametrize(
    ("group", "twin"),
    [(identities.group_norm_6, identities.instance_norm), (identities.group_norm_1, identities.layer_norm)],
    ids=["six groups of one channel: instance norm", "one group: layer norm over (C, H, W)"],
)
def test_an_end_of_group_norm_is_its_twin(group: Any, twin: Any) -> None:
    # In float64 the two differ by the order of summation alone: some ulp of 2.2e-16.
    module, other = group().double(), twin().double()
    (x,) = identities.example_inputs()
    assert all(torch.equal(module.state_dict()[key], other.state_dict()[key]) for key in ("weight", "bias"))
    torch.testing.assert_close(module(x.double()), other(x.double()), rtol=0, atol=1e-14)


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_group_norm_is_what_its_definition_says(groups: int) -> None:
    module = getattr(identities, f"group_norm_{groups}")().double()
    x = identities.example_inputs()[0].double()
    parts = x.reshape(x.shape[0], groups, -1)
    mean, variance = parts.mean(2, keepdim=True), parts.var(2, keepdim=True, correction=0)
    normalised = ((parts - mean) / torch.sqrt(variance + module.eps)).reshape(x.shape)
    expected = normalised * module.weight[:, None, None] + module.bias[:, None, None]
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-14)


def test_the_three_groupings_differ() -> None:
    (x,) = identities.example_inputs()
    one, three, six = (getattr(identities, f"group_norm_{groups}")()(x) for groups in (1, 3, 6))
    assert not torch.allclose(one, three, atol=1e-2)
    assert not torch.allclose(three, six, atol=1e-2)


def test_instance_norm_with_running_statistics_is_batch_norm() -> None:
    norm = randomise_statistics(torch.nn.InstanceNorm2d(6, affine=True, track_running_stats=True), 0).eval()
    batch = randomise_statistics(torch.nn.BatchNorm2d(6), 0).eval()
    (x,) = identities.example_inputs()
    torch.testing.assert_close(norm(x), batch(x), rtol=0, atol=TOLERANCE * float(batch(x).detach().abs().max()))


def test_randomised_statistics_are_not_trivial() -> None:
    norm = randomise_statistics(torch.nn.BatchNorm2d(8), 3)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.running_mean.abs().min() > 0
    assert norm.running_var.min() >= 0.5
    assert (norm.weight < 0).sum() == 2
    assert norm.bias.abs().min() > 0


def test_an_unknown_sample_lists_the_known() -> None:
    with pytest.raises(KeyError, match="no sample 'resnext'; known: resnet, densenet"):
        models.find("resnext")
