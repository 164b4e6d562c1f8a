"""Exporting small modules: right numbers, visible norms, untouched modules, plain words where it cannot be done."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from normfuse.errors import ExportError, MissingDependency

torch = pytest.importorskip("torch", reason="exporting needs torch")
ort = pytest.importorskip("onnxruntime", reason="running an exported model needs onnxruntime")

from torch import nn  # noqa: E402 (after the skip)
from torch.nn import functional  # noqa: E402

from models.statistics import randomise_statistics  # noqa: E402
from normfuse.export.torch_onnx import (  # noqa: E402
    DEFAULT_OPSET,
    NEWEST_OPSET,
    OLDEST_OPSET,
    TrainModeWarning,
    export,
)

# torch and onnxruntime sum in different orders: each step is right to a few ulp of its largest term (float32 ulp
# 1.2e-7); a hundred of them bound the short modules here with outputs of order one.
TOLERANCE = 100 * float(np.finfo(np.float32).eps)


def run(model: ir.Model, *values: Any) -> list[Any]:
    """Return what onnxruntime, not optimizing, makes of ``model``."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {one.name: value.numpy() for one, value in zip(session.get_inputs(), values, strict=True)}
    return list(session.run(None, feeds))


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def assert_same(model: ir.Model, expected: Sequence[Any], *values: Any) -> None:
    actual = run(model, *values)
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        other = other.detach().numpy()
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE * max(1.0, float(np.abs(other).max())))


def normal(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ready(module: Any) -> Any:
    return randomise_statistics(module, 0).eval()


class Several(nn.Module):
    """Two inputs; outputs in a dict with a tuple in it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Any, y: Any) -> dict[str, Any]:
        return {"sum": self.norm(x + y), "parts": (x * 2.0, y - 1.0)}


class BatchStatistics(nn.Module):
    """Batch statistics in eval mode although running ones are there."""

    mean: Any
    variance: Any

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("variance", torch.ones(3))

    def forward(self, x: Any) -> Any:
        return functional.batch_norm(x, self.mean, self.variance, training=True)


class Everything(nn.Module):
    """What opset 18 changed, in one: reductions, a split, a resize, a pad."""

    def forward(self, x: Any) -> tuple[Any, ...]:
        y = functional.interpolate(functional.pad(x, (1, 1, 1, 1), mode="reflect"), scale_factor=2.0, mode="bilinear")
        first, second = torch.chunk(y, 2, dim=1)
        return first.mean(dim=(2, 3)), second.amax(dim=1), torch.linalg.vector_norm(x, dim=1)


class Fails(nn.Module):
    """Raises while it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Any) -> Any:
        raise ValueError("not today\nnor tomorrow")


NORMS: Mapping[str, tuple[Callable[[], Any], tuple[int, ...], str]] = {
    "batch 1d": (lambda: nn.BatchNorm1d(4), (3, 4), "BatchNormalization"),
    "batch 2d": (lambda: nn.BatchNorm2d(4), (2, 4, 5, 3), "BatchNormalization"),
    "batch 3d": (lambda: nn.BatchNorm3d(4), (2, 4, 2, 3, 3), "BatchNormalization"),
    "batch, momentum None": (lambda: nn.BatchNorm2d(4, momentum=None), (2, 4, 5, 3), "BatchNormalization"),
    "batch, no affine": (lambda: nn.BatchNorm2d(4, affine=False), (2, 4, 5, 3), "BatchNormalization"),
    "instance": (lambda: nn.InstanceNorm2d(4), (2, 4, 5, 3), "InstanceNormalization"),
    "instance, running": (
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        (2, 4, 5, 3),
        "BatchNormalization",
    ),
    "instance, running, no affine": (
        lambda: nn.InstanceNorm1d(4, track_running_stats=True),
        (2, 4, 5),
        "BatchNormalization",
    ),
    "group": (lambda: nn.GroupNorm(2, 4), (2, 4, 5, 3), "GroupNormalization"),
    "group, no affine": (lambda: nn.GroupNorm(2, 4, affine=False), (2, 4, 5, 3), "GroupNormalization"),
    "layer": (lambda: nn.LayerNorm(6), (2, 3, 6), "LayerNormalization"),
    "layer, no affine": (lambda: nn.LayerNorm((3, 6), elementwise_affine=False), (2, 3, 6), "LayerNormalization"),
    "rms": (lambda: nn.RMSNorm(6), (2, 3, 6), "RMSNormalization"),
    "rms, no affine": (lambda: nn.RMSNorm((3, 6), elementwise_affine=False), (2, 3, 6), "RMSNormalization"),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_one_operator_with_initializers(name: str) -> None:
    make, shape, operator = NORMS[name]
    module, x = ready(make()), normal(*shape)
    model = export(module, x)
    assert operators(model) == [operator]
    assert all(value.is_initializer() for value in model.graph.node(0).inputs[1:] if value is not None)
    assert_same(model, [module(x)], x)


@pytest.mark.parametrize("name", ["instance, running", "group, no affine", "rms, no affine"])
def test_a_norm_with_a_dynamic_batch_is_one_operator(name: str) -> None:
    make, shape, operator = NORMS[name]
    module = ready(make())
    model = export(module, normal(*shape), dynamic={"input" if "rms" not in name else "x": {0: "batch"}})
    assert operators(model) == [operator]
    other = normal(5, *shape[1:], seed=1)
    assert_same(model, [module(other)], other)


def test_batch_norm_without_running_statistics_computes_them() -> None:
    module = ready(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, track_running_stats=False)))
    x = normal(3, 3, 6, 6)
    model = export(module, x)
    assert "ReduceMean" in operators(model)
    norm = next(node for node in model.graph if node.op_type == "BatchNormalization")
    assert not any(norm.inputs[index].is_initializer() for index in (3, 4))  # type: ignore[union-attr]
    assert_same(model, [module(x)], x)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv1d(3, 4, 3, bias=False), (2, 3, 7)),
        (nn.Conv2d(3, 4, 3, bias=False), (2, 3, 7, 7)),
        (nn.Conv3d(3, 4, 3, bias=False), (2, 3, 5, 5, 5)),
        (nn.ConvTranspose2d(3, 4, 3, bias=False), (2, 3, 5, 5)),
        (nn.ConvTranspose3d(3, 4, 2, bias=False), (2, 3, 3, 3, 3)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_convolution_without_bias_gets_none(module: Any, shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    model = export(module.eval(), x)
    assert list(model.graph.initializers) == ["weight"]
    assert_same(model, [module(x)], x)


def test_a_bias_of_zeros_that_is_a_parameter_stays() -> None:
    module = nn.Conv2d(3, 4, 3).eval()
    assert module.bias is not None
    nn.init.zeros_(module.bias)
    assert set(export(module, normal(1, 3, 5, 5)).graph.initializers) == {"weight", "bias"}


def test_conv_and_batch_norm_stay_two_nodes_with_the_parameters_names() -> None:
    module = ready(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 5)))
    x = normal(2, 3, 5, 5)
    model = export(module, x)
    assert operators(model) == ["Conv", "BatchNormalization", "Reshape", "Gemm"]
    assert set(model.graph.initializers) == {
        "0.weight",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "node_view.shape",
        "3.weight",
        "3.bias",
    }
    assert_same(model, [module(x)], x)


def test_a_reparametrised_weight_is_one_initializer() -> None:
    module = nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 32, 5)).eval()
    x = normal(1, 16, 6, 6)
    model = export(module, x)
    assert operators(model) == ["Conv"]
    assert_same(model, [module(x)], x)


def test_a_transposed_weight_keeps_the_parameters_name() -> None:
    module, x = nn.Linear(200, 100).eval(), normal(2, 3, 200)
    model = export(module, x)
    assert operators(model) == ["MatMul", "Add"]
    assert set(model.graph.initializers) == {"weight.transpose", "bias"}
    assert_same(model, [module(x)], x)


@pytest.mark.parametrize("opset", [OLDEST_OPSET, 18, 21, 23, NEWEST_OPSET])
def test_every_opset_is_what_was_asked_for_and_right(opset: int) -> None:
    module, x = Everything(), normal(2, 4, 5, 5)
    model = export(module.eval(), x, opset=opset)
    assert model.opset_imports == {"": opset}
    assert model.ir_version == onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert_same(model, module(x), x)


def test_the_default_opset() -> None:
    assert export(nn.Identity().eval(), normal(2)).opset_imports == {"": DEFAULT_OPSET}


@pytest.mark.parametrize("opset", [16, 26])
def test_other_opsets_are_refused(opset: int) -> None:
    with pytest.raises(ExportError) as raised:
        export(nn.Identity(), normal(2), opset=opset)
    assert str(raised.value) == f"opset {opset} cannot be written; choose 17 to 25"


def test_what_opset_17_lacks_is_refused_by_name() -> None:
    class Antialiased(nn.Module):
        def forward(self, x: Any) -> Any:
            return functional.interpolate(x, size=(3, 3), mode="bilinear", antialias=True)

    with pytest.raises(ExportError, match=r"Resize at node '.*' has no equivalent at opset 17: its antialias is 1"):
        export(Antialiased().eval(), normal(1, 2, 6, 6), opset=17)


def test_bfloat16_is_refused_where_onnx_has_none() -> None:
    module, x = nn.Conv2d(3, 4, 3).eval().bfloat16(), normal(1, 3, 5, 5).bfloat16()
    with pytest.raises(ExportError, match="torch wrote an invalid model at opset 18"):
        export(module, x, opset=18)
    assert export(module, x, opset=22).graph.initializers["weight"].dtype == ir.DataType.BFLOAT16


def test_several_inputs_and_named_outputs() -> None:
    module, x, y = Several().eval(), normal(2, 4), normal(2, 4, seed=1)
    model = export(module, (x, y))
    assert [value.name for value in model.graph.inputs] == ["x", "y"]
    assert [value.name for value in model.graph.outputs] == ["sum", "parts.0", "parts.1"]
    expected = module(x, y)
    assert_same(model, [expected["sum"], *expected["parts"]], x, y)


def test_inputs_by_keyword_with_dynamic_axes_of_one_symbol() -> None:
    module = Several().eval()
    axes = {"x": {0: "batch"}, "y": {0: "batch"}}
    model = export(module, {"x": normal(1, 4), "y": normal(1, 4)}, dynamic=axes)
    assert [str(value.shape) for value in model.graph.inputs] == ["[batch,4]", "[batch,4]"]
    x, y = normal(7, 4), normal(7, 4, seed=1)
    expected = module(x, y)
    assert_same(model, [expected["sum"], *expected["parts"]], x, y)


def test_inputs_can_be_renamed_and_are_then_dynamic_by_the_new_name() -> None:
    model = export(
        nn.Conv1d(2, 3, 3).eval(), normal(1, 2, 9), input_names=["signal"], dynamic={"signal": {0: "batch", -1: "time"}}
    )
    assert [(value.name, str(value.shape)) for value in model.graph.inputs] == [("signal", "[batch,2,time]")]
    assert run(model, normal(4, 2, 30))[0].shape == (4, 3, 28)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dynamic": {"y": {0: "batch"}}}, "no input 'y' to make dynamic; the inputs are: input"),
        ({"dynamic": {"input": {4: "batch"}}}, "input 'input' has rank 2; it has no axis 4 to make dynamic"),
        ({"dynamic": ["input"]}, "dynamic takes axes by input name, such as {'x': {0: 'batch'}}; got ['input']"),
        ({"input_names": ["a", "b"]}, "input_names has 2 names; the module gets 1 inputs"),
        ({"opset": "17"}, "opset 17 cannot be written; choose 17 to 25"),
    ],
)
def test_arguments_that_do_not_fit_are_explained(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError) as raised:
        export(nn.Linear(4, 2).eval(), normal(2, 4), **arguments)
    assert str(raised.value) == message


def test_an_axis_that_the_module_fixes_is_refused() -> None:
    with pytest.raises(ExportError, match="torch cannot export Linear"):
        export(nn.Linear(4, 2).eval(), normal(2, 4), dynamic={"input": {1: "width"}})


def test_something_else_than_a_module_is_refused() -> None:
    with pytest.raises(ExportError, match=r"export needs a torch\.nn\.Module; got an int"):
        export(3, normal(2))  # type: ignore[arg-type]


def test_train_mode_is_named_exported_as_eval_and_put_back() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Dropout(), nn.BatchNorm2d(4)))
    module = ready(module)
    x = normal(2, 3, 5, 5)
    expected = module(x)
    module[1].train()
    module[2].train()
    flags = {name: part.training for name, part in module.named_modules()}
    with pytest.warns(TrainModeWarning) as caught:
        model = export(module, x)
    assert str(caught[0].message) == "1, 2 of Sequential were in train mode: exported as in eval mode, and put back"
    assert caught[0].filename == __file__
    assert {name: part.training for name, part in module.named_modules()} == flags
    assert_same(model, [expected], x)


def test_a_whole_module_in_train_mode_is_named_by_its_class() -> None:
    with pytest.warns(TrainModeWarning, match=r"^Linear was in train mode"):
        export(nn.Linear(4, 2), normal(2, 4))


def test_a_module_that_ignores_eval_is_exported_for_inference_all_the_same() -> None:
    class Stubborn(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> Any:
            return super().train(True)

    module, x = randomise_statistics(Stubborn(4), 0), normal(3, 4)
    assert module.running_mean is not None
    assert module.running_var is not None
    mean, variance = module.running_mean.clone(), module.running_var.clone()
    with pytest.warns(TrainModeWarning):
        model = export(module, x)
    assert module.training
    assert torch.equal(module.running_mean, mean)
    assert_same(model, [functional.batch_norm(x, mean, variance, module.weight, module.bias)], x)


def test_a_failed_export_is_one_line_and_puts_the_flags_back() -> None:
    module = Fails()
    with (
        pytest.warns(TrainModeWarning),
        pytest.raises(ExportError, match=r"^torch cannot export Fails: ValueError: not today$"),
    ):
        export(module, normal(2, 4))
    assert all(part.training for part in module.modules())


class BranchesOnData(nn.Module):
    """Torch prints pages about a module whose path depends on its input."""

    def forward(self, x: Any) -> Any:
        return x if x.sum() > 0 else -x


def test_a_failed_export_says_nothing_beside_its_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError, match="torch cannot export BranchesOnData: ") as raised:
        export(BranchesOnData().eval(), normal(2, 4))
    assert "\n" not in str(raised.value)
    assert tuple(capfd.readouterr()) == ("", "")


def test_batch_statistics_beside_running_ones_are_refused() -> None:
    with pytest.raises(ExportError, match="normalises by batch statistics even in eval mode"):
        export(BatchStatistics().eval(), normal(2, 3, 4))


def test_the_model_owns_its_weights() -> None:
    module = nn.Linear(4, 2).eval()
    model = export(module, normal(2, 4))
    before = model.graph.initializers["bias"].const_value.numpy().copy()  # type: ignore[union-attr]
    with torch.no_grad():
        module.bias.add_(1.0)
    np.testing.assert_array_equal(model.graph.initializers["bias"].const_value.numpy(), before)  # type: ignore[union-attr]


def test_the_same_module_gives_the_same_bytes_without_paths_of_this_machine() -> None:
    module = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)))
    first, second = (ir.to_proto(export(module, normal(1, 3, 5, 5), opset=18)).SerializeToString() for _ in range(2))
    assert first == second
    assert b".py" not in first


def test_outputs_that_are_inputs_weights_or_each_other() -> None:
    class Passes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(normal(3))

        def forward(self, x: Any) -> tuple[Any, ...]:
            y = x * 2.0
            return x, self.weight, y, y

    module, x = Passes().eval(), normal(2, 3)
    model = export(module, x)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert model.graph.outputs[0].name == "x.output"
    assert len({value.name for value in model.graph.outputs}) == 4
    assert_same(model, module(x), x)


def test_nothing_is_said_and_no_logger_is_changed(capfd: pytest.CaptureFixture[str]) -> None:
    levels = [logging.getLogger(name).level for name in ("torch", "torch.onnx", "onnxscript")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(nn.GroupNorm(2, 4).eval(), normal(1, 4, 3), opset=17)
    assert tuple(capfd.readouterr()) == ("", "")
    assert [logging.getLogger(name).level for name in ("torch", "torch.onnx", "onnxscript")] == levels


def test_progress_is_told() -> None:
    said: list[str] = []
    export(nn.Identity().eval(), normal(2), progress=said.append)
    assert said == ["tracing Identity", "folding constants", "checking"]


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        MissingDependency, match=r"exporting a torch module needs torch: pip install 'normfuse\[torch\]'"
    ):
        export(object(), ())  # type: ignore[arg-type]


def test_importing_the_package_imports_no_library() -> None:
    code = (
        "import sys, normfuse.export, normfuse.export.factory, normfuse.export.torch_onnx; print(*sorted(sys.modules))"
    )
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "onnx", "onnx_ir", "onnxscript", "numpy"} & set(listed)


def test_the_package_is_the_function_too() -> None:
    import normfuse.export as package

    assert package.export is export
    assert operators(package(nn.ReLU().eval(), normal(2))) == ["Relu"]  # type: ignore[operator]
    with pytest.raises(AttributeError, match=r"module 'normfuse\.export' has no attribute 'exprot'"):
        _ = package.exprot
