"""A torch module against its exported model: end to end, and every norm alone."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest

import normfuse
from normfuse import Verdict
from normfuse.errors import ValidationError
from normfuse.validate import validate

pytest.importorskip("torch")
import torch


class Net(torch.nn.Module):
    """Every common norm once, a residual addition, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.batch = torch.nn.BatchNorm2d(8)
        self.mix = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.group = torch.nn.GroupNorm(2, 8)
        self.instance = torch.nn.InstanceNorm2d(8, affine=True)
        self.layer = torch.nn.LayerNorm(64)
        self.batch.running_mean = torch.randn(8)
        self.batch.running_var = torch.rand(8) + 0.5

    def forward(self, x: Any) -> tuple[Any, Any]:
        h = torch.relu(self.batch(self.conv(x)))
        h = h + torch.nn.functional.silu(self.group(self.mix(h)))
        h = self.instance(h)
        return self.layer(h.flatten(2)), h


@pytest.fixture(scope="module")
def exported() -> tuple[Net, Any]:
    module = Net().eval()
    model = normfuse.export(module, [torch.randn(2, 3, 8, 8)])
    return module, normfuse.fuse(model)[0]


def test_exported_module_is_verified_norm_by_norm(exported: tuple[Net, Any]) -> None:
    module, model = exported
    report = validate(module, model, quick=True)
    assert report.verdict is Verdict.EQUIVALENT, report.table()
    assert "verified 4 of 4 norm layers alone" in report.notes
    assert {check.subject for check in report.checks if check.subject.startswith("norm")} == {
        "norm 'batch' (BatchNorm2d)", "norm 'group' (GroupNorm)", "norm 'instance' (InstanceNorm2d)", "norm 'layer' (LayerNorm)",
    }  # fmt: skip
    assert module.training is False
    assert next(module.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("batch", lambda net: net.batch.weight.data[3].mul_(1.001)),
        ("group", lambda net: setattr(net.group, "eps", 1e-4)),
        ("instance", lambda net: net.instance.bias.data[1].add_(1e-3)),
        ("layer", lambda net: net.layer.weight.data[5].mul_(1.001)),
    ],
)
def test_the_norm_that_differs_is_named(exported: tuple[Net, Any], name: str, change: Any) -> None:
    module, model = exported
    other = copy.deepcopy(module)
    change(other)
    report = validate(other, model, quick=True, providers=())
    assert report.verdict is Verdict.DIVERGENT
    failing = {check.subject.split("[")[0] for check in report.checks if check.verdict is Verdict.DIVERGENT}
    assert [subject for subject in failing if subject.startswith("norm")] == [
        f"norm '{name}' ({type(getattr(module, name)).__name__})"
    ]


def test_module_of_other_outputs(exported: tuple[Net, Any]) -> None:
    with pytest.raises(ValidationError, match="the module returns 1 tensors, the exported model 2"):
        validate(torch.nn.Conv2d(3, 8, 3), exported[1], quick=True, providers=())


def test_module_that_rejects_the_inputs(exported: tuple[Net, Any]) -> None:
    with pytest.raises(ValidationError, match="the module does not run on inputs that the exported model takes"):
        validate(torch.nn.Linear(5, 3), exported[1], quick=True, providers=())


class Watched(torch.nn.Module):
    """Weights of one storage under two names, a buffer that each run counts in; it tells of what each run had."""

    seen: ClassVar[set[tuple[torch.dtype, int, int]]] = set()
    runs: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(8, 8)
        self.again = self.linear
        self.norm = torch.nn.LayerNorm(8)
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Any) -> Any:
        self.runs.add_(1.0)
        self.seen.add((self.linear.weight.dtype, self.linear.weight.data_ptr(), self.runs.data_ptr()))
        assert self.linear.weight is self.again.weight
        return self.norm(self.linear(self.again(x)))


def test_the_weights_are_held_once_more_in_float64_and_nothing_of_the_module_changes() -> None:
    module = Watched()
    model = normfuse.export(copy.deepcopy(module).eval(), [torch.randn(4, 8)])
    before = copy.deepcopy(module.state_dict())
    Watched.seen.clear()
    report = validate(module, model, quick=True, providers=())
    assert report.verdict is Verdict.EQUIVALENT, report.table()
    (narrow,) = (item for item in Watched.seen if item[0] is torch.float32)
    (wide,) = (item for item in Watched.seen if item[0] is torch.float64)
    weight, runs = module.linear.weight, module.runs
    assert narrow[1] == weight.data_ptr()
    assert wide[1] != weight.data_ptr()
    assert runs.data_ptr() not in (narrow[2], wide[2])
    assert module.training
    assert weight.requires_grad
    assert {name: array.tolist() for name, array in module.state_dict().items()} == {
        name: array.tolist() for name, array in before.items()
    }
    assert {array.dtype for array in module.state_dict().values()} == {torch.float32}


class Shared(torch.nn.Module):
    """One norm under two names and called three times, norms that are functions, one that takes statistics in float32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.LayerNorm(8)
        self.again = self.layer
        self.inner = Inner()

    def forward(self, x: Any) -> Any:
        h = self.again(torch.sin(self.layer(x)) + x)
        h = self.inner(h) + torch.nn.functional.layer_norm(torch.cos(h), (8,), eps=1e-3)
        return self.layer(h)


class Inner(torch.nn.Module):
    """A norm of timm's kind, by what it inherits; and RMSNorm as Llama writes it, as a function of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.act = GroupNormAct(2, 8)
        self.rms = TinyRMSNorm(8)

    def forward(self, x: Any) -> Any:
        return self.rms(torch.nn.functional.group_norm(self.act(x), 4))


class GroupNormAct(torch.nn.GroupNorm):
    def forward(self, x: Any) -> Any:
        return torch.relu(super().forward(x))


class TinyRMSNorm(torch.nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x: Any) -> Any:
        wide = x.to(torch.float32)
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def names(report: Any) -> set[str]:
    """Return the norms that were judged alone."""
    return {check.subject for check in report.checks if check.subject.startswith("norm") and "[" not in check.subject}


def test_shared_norms_repeated_calls_and_functions() -> None:
    module = Shared().eval()
    report = validate(module, normfuse.export(module, [torch.randn(4, 8)]), quick=True, providers=())
    assert report.verdict is Verdict.EQUIVALENT, report.table()
    assert names(report) == {
        "norm 'layer' (LayerNorm)", "norm 'layer_norm' (a function)", "norm 'inner.act' (GroupNormAct)",
        "norm 'inner.group_norm' (a function)", "norm 'inner.rms' (TinyRMSNorm)",
    }  # fmt: skip
    assert sum(check.subject == "norm 'layer' (LayerNorm)" for check in report.checks) == 3
    assert "verified 5 of 5 norm layers alone" in report.notes
    assert not module.layer._forward_hooks
    assert not module.layer._forward_pre_hooks


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda net: net.layer.bias.data[1].add_(1e-3), "norm 'layer' (LayerNorm)"),
        (lambda net: setattr(net.inner.act, "eps", 1e-3), "norm 'inner.act' (GroupNormAct)"),
        (lambda net: net.inner.rms.weight.data[3].mul_(1.001), "norm 'inner.rms' (TinyRMSNorm)"),
    ],
)
def test_a_fault_in_such_a_norm_is_named(change: Any, name: str) -> None:
    module = Shared().eval()
    model = normfuse.export(module, [torch.randn(4, 8)])
    change(module)
    report = validate(module, model, quick=True, providers=())
    assert name in {check.subject for check in report.checks if check.verdict is Verdict.DIVERGENT}


def test_a_fault_in_a_function_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Shared().eval()
    model = normfuse.export(module, [torch.randn(4, 8)])
    norm = torch.nn.functional.group_norm
    monkeypatch.setattr(Inner, "forward", lambda self, x: self.rms(norm(self.act(x), 4, eps=2e-5)))
    report = validate(module, model, quick=True, providers=())
    found = {check.subject for check in report.checks if check.verdict is Verdict.DIVERGENT}
    assert "norm 'inner.group_norm' (a function)" in found


def test_the_truth_is_float64_where_the_module_asks_for_less() -> None:
    from normfuse.validate.inputs import InputSpec
    from normfuse.validate.listening import run_module

    module = TinyRMSNorm(8).double().eval()
    x = torch.randn(4, 8)
    spec = InputSpec("x", normfuse.export(TinyRMSNorm(8).eval(), [x]).graph.inputs[0].dtype, (4, 8))  # type: ignore[arg-type]
    found = run_module(module, {"x": x.numpy()}, [spec], 1, double=True).outputs[0]
    wide = x.double()
    exact = module.weight.detach() * wide / torch.sqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    assert abs(found - exact.numpy()).max() < 1e-14


def test_norms_that_the_graph_has_no_value_of_are_told() -> None:
    class Branches(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = torch.nn.Conv2d(4, 4, 3, padding=1, bias=False), torch.nn.Conv2d(4, 4, 1, bias=False)
            self.first, self.second = torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4)
            for norm in (self.first, self.second):
                norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5

        def forward(self, x: Any) -> Any:
            return torch.relu(self.first(self.one(x)) + self.second(self.two(x)))

    module = Branches().eval()
    model = normfuse.fuse(normfuse.export(module, [torch.randn(2, 4, 8, 8)]))[0]
    assert [node.op_type for node in model.graph] == ["Conv", "Relu"]
    report = validate(module, model, quick=True, providers=())
    assert report.verdict is Verdict.EQUIVALENT
    assert report.notes == (
        "verified 0 of 2 norm layers alone",
        "judged end to end only, since no value of the exported graph is their result (folded or merged into what "
        "follows, left out, or far off): first, second",
    )


class NearlyNormal(torch.nn.Module):
    """Norms whose input has almost no mean or is normalized already, beside a norm of a weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(8, 8))
        self.one, self.last, self.two = (torch.nn.LayerNorm(64, eps=1e-6) for _ in range(3))

    def forward(self, x: Any) -> Any:
        weight = torch.nn.functional.batch_norm(self.weight.reshape(1, 8, 8), None, None, training=True).reshape(8, 8)
        h = self.two(torch.sin(self.last(self.one(x.flatten(1)))))
        return h.reshape(-1, 8, 8) @ weight


def test_values_that_lie_near_each_other_are_told_apart() -> None:
    """Primitive norms show values, such as x - mean, that the module does not have and that are almost its own."""
    module = NearlyNormal().eval()
    model = normfuse.export(module, [torch.randn(4, 8, 8)])
    for form in (normfuse.Form.STANDARD, normfuse.Form.PRIMITIVE):
        candidate = normfuse.fuse(model, normfuse.Target(form))[0]
        report = validate(module, candidate, quick=True, providers=())
        assert report.verdict is Verdict.EQUIVALENT, report.table()
        assert names(report) == {f"norm '{name}' (LayerNorm)" for name in ("one", "last", "two")}
        assert report.notes == ("verified 3 of 3 norm layers alone",)
    with torch.no_grad():
        module.two.weight[5] *= 1.001
    report = validate(module, candidate, quick=True, providers=())
    failed = {check.subject.partition("[")[0] for check in report.checks if check.verdict is Verdict.DIVERGENT}
    assert "norm 'two' (LayerNorm)" in failed
    assert "norm 'one' (LayerNorm)" not in failed
