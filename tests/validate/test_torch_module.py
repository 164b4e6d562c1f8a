"""A torch module against its exported model: end to end, and every norm alone."""

from __future__ import annotations

import copy
from typing import Any

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
