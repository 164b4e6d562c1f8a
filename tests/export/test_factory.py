"""MODULE:FACTORY, --input, --dynamic and --weights: what they mean, and what is said when they mean nothing."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from normfuse.errors import ExportError
from normfuse.export.factory import InputSpec, parse_dynamic, parse_input

torch = pytest.importorskip("torch", reason="exporting needs torch")

from normfuse.export.factory import load_weights, prepare  # noqa: E402 (after the skip)

NETS = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 2)
    def forward(self, x):
        return self.fc(x)

class Described(Net):
    def example_inputs(self):
        return (torch.ones(3, 4),)

def with_attribute():
    return Net()
with_attribute.example_inputs = lambda: (torch.ones(5, 4),)

def plain():
    return Net()

class Difference(torch.nn.Module):
    def forward(self, a, b, c=None):
        return a - 2 * b if c is None else a - 2 * b + c

def difference():
    return Difference()

def number():
    return 7

def broken():
    raise ValueError("no such checkpoint")

CONSTANT = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of factories in it, forgotten again after the test."""
    (tmp_path / "some_nets.py").write_text(NETS)
    (tmp_path / "some_described_nets.py").write_text(f"{NETS}\ndef example_inputs():\n    return (torch.ones(2, 4),)\n")
    (tmp_path / "some_bad_import.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "some_bad_syntax.py").write_text("def (\n")
    for name in ("some_nets", "some_described_nets", "some_bad_import", "some_bad_syntax"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x=1x3x224x224", InputSpec("x", (1, 3, 224, 224))),
        ("x=1X3", InputSpec("x", (1, 3))),
        ("tokens=2x12:int64", InputSpec("tokens", (2, 12), "int64")),
        ("x=8:bfloat16", InputSpec("x", (8,), "bfloat16")),
        ("time=", InputSpec("time", ())),
        ("time=:int64", InputSpec("time", (), "int64")),
    ],
)
def test_an_input_is_parsed(text: str, expected: InputSpec) -> None:
    assert parse_input(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1x3x224", "input '1x3x224' is not of the form NAME=1x3x224x224 or NAME=1x3x224x224:float32"),
        ("x=1x3x", "input 'x': '1x3x' is not a shape; write sizes of at least 1 with x between them"),
        ("x=1x0", "input 'x': '1x0' is not a shape; write sizes of at least 1 with x between them"),
        ("x=1x-3", "input 'x': '1x-3' is not a shape; write sizes of at least 1 with x between them"),
        ("x=batchx3", "input 'x': 'batchx3' is not a shape; write sizes of at least 1 with x between them"),
        ("x=1x3:float23", "input 'x' has unknown type 'float23'; did you mean 'float32'?"),
    ],
)
def test_a_bad_input_is_explained(text: str, message: str) -> None:
    with pytest.raises(ExportError) as raised:
        parse_input(text)
    assert str(raised.value) == message


def test_an_unknown_type_without_a_neighbour_lists_the_known() -> None:
    with pytest.raises(ExportError, match="unknown type 'q'; known: float32, float16, bfloat16, float64, int64"):
        parse_input("x=1:q")


def test_dynamic_axes_are_gathered_by_input() -> None:
    assert parse_dynamic(["x:0=batch", "x:-1=width", "mask:0=batch"]) == {
        "x": {0: "batch", -1: "width"},
        "mask": {0: "batch"},
    }


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["x:0"], "dynamic axis 'x:0' is not of the form NAME:0=batch"),
        (["x:first=batch"], "dynamic axis 'x:first=batch' is not of the form NAME:0=batch"),
        (["x:0=batch", "x:0=count"], "axis 0 of 'x' is named twice: batch and count"),
    ],
)
def test_a_bad_dynamic_axis_is_explained(texts: list[str], message: str) -> None:
    with pytest.raises(ExportError) as raised:
        parse_dynamic(texts)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("text", "rows"),
    [("some_nets:with_attribute", 5), ("some_nets:Described", 3), ("some_described_nets:plain", 2)],
    ids=["of the factory", "of the module it returns", "of the python module"],
)
def test_example_inputs_are_found(folder: Path, text: str, rows: int) -> None:
    prepared = prepare(text, folder=folder)
    assert prepared.input_names is None
    assert [tuple(value.shape) for value in prepared.inputs] == [(rows, 4)]


def test_described_inputs_win_over_example_inputs(folder: Path) -> None:
    prepared = prepare("some_nets:with_attribute", inputs=[InputSpec("x", (1, 4), "float16")], folder=folder)
    assert prepared.input_names == ("x",)
    assert prepared.inputs[0].shape == (1, 4)
    assert prepared.inputs[0].dtype == torch.float16


def shapes(folder: Path, *texts: str) -> object:
    """Return the shapes of the inputs that descriptions give the module, in order or by keyword."""
    inputs = prepare("some_nets:difference", inputs=[parse_input(text) for text in texts], folder=folder).inputs
    if isinstance(inputs, dict):
        return {name: tuple(value.shape) for name, value in inputs.items()}
    return [tuple(value.shape) for value in inputs]


def test_described_inputs_go_where_their_names_say(folder: Path) -> None:
    """In any order; a parameter that is left out keeps its default; foreign names are given by position."""
    assert shapes(folder, "b=2x3", "a=4x3") == [(4, 3), (2, 3)]
    assert shapes(folder, "c=1x3", "a=4x3", "b=2x3") == [(4, 3), (2, 3), (1, 3)]
    assert shapes(folder, "c=1x3", "a=4x3") == {"a": (4, 3), "c": (1, 3)}
    assert shapes(folder, "left=4x3", "right=2x3") == [(4, 3), (2, 3)]


def test_an_input_described_twice_is_refused(folder: Path) -> None:
    with pytest.raises(ExportError, match="an input is described twice: a, a"):
        shapes(folder, "a=4x3", "a=2x3")


def test_integer_inputs_are_valid_indices(folder: Path) -> None:
    prepared = prepare("some_nets:plain", inputs=[InputSpec("x", (2, 3), "int64")], folder=folder)
    assert not prepared.inputs[0].any()


def test_the_search_path_is_put_back(folder: Path) -> None:
    before = list(sys.path)
    prepare("some_nets:with_attribute", folder=folder)
    with pytest.raises(ExportError):
        prepare("some_nets:broken", folder=folder)
    assert sys.path == before


def test_the_current_folder_is_searched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert isinstance(prepare("some_nets:with_attribute").module, torch.nn.Module)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("some_nets", "'some_nets' is not of the form MODULE:FACTORY, for example my_package.nets:resnet"),
        ("no_such_nets:plain", "no Python module 'no_such_nets' here or on sys.path"),
        ("some_nets.deeper:plain", "no Python module 'some_nets.deeper' here or on sys.path"),
        (
            "some_bad_import:plain",
            "importing 'some_bad_import' raised ModuleNotFoundError: No module named 'a_package_that_is_not_there'",
        ),
        ("some_nets:plane", "'some_nets' has no 'plane'; did you mean 'plain'?"),
        (
            "some_nets:CONSTANT",
            "'some_nets:CONSTANT' is not callable: a factory is a function or class that returns a torch.nn.Module",
        ),
        ("some_nets:number", "the factory 'some_nets:number' must return a torch.nn.Module; it returned int"),
        ("some_nets:broken", "the factory 'some_nets:broken' raised ValueError: no such checkpoint"),
        (
            "some_nets:plain",
            "'some_nets:plain' has no example_inputs(); describe its inputs, for example --input x=1x3x224x224",
        ),
    ],
)
def test_a_bad_factory_is_explained(folder: Path, text: str, message: str) -> None:
    with pytest.raises(ExportError) as raised:
        prepare(text, folder=folder)
    assert str(raised.value) == message


def test_a_module_that_does_not_parse_is_explained(folder: Path) -> None:
    with pytest.raises(ExportError, match="importing 'some_bad_syntax' raised SyntaxError"):
        prepare("some_bad_syntax:plain", folder=folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_weights_are_loaded(folder: Path, name: str) -> None:
    state = {"fc.weight": torch.full((2, 4), 0.5), "fc.bias": torch.tensor([1.0, 2.0])}
    if name.endswith(".safetensors"):
        pytest.importorskip("safetensors.torch", reason="writing .safetensors needs safetensors").save_file(
            state, folder / name
        )
    else:
        torch.save(state, folder / name)
    prepared = prepare("some_nets:with_attribute", weights=folder / name, folder=folder)
    assert torch.equal(prepared.module.state_dict()["fc.weight"], state["fc.weight"])
    assert torch.equal(prepared.module.state_dict()["fc.bias"], state["fc.bias"])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"fc.weight": (2, 4)}, "do not fit Linear: 2 missing (bias, weight); 1 unexpected (fc.weight)"),
        ({"weight": (2, 4)}, "do not fit Linear: 1 missing (bias)"),
        ({"weight": (2, 5), "bias": (2,)}, "has shape (2, 5); Linear has (2, 4)"),
    ],
)
def test_weights_that_do_not_fit_are_explained(tmp_path: Path, state: dict[str, tuple[int, ...]], message: str) -> None:
    path = tmp_path / "weights.pt"
    torch.save({key: torch.zeros(shape) for key, shape in state.items()}, path)
    with pytest.raises(ExportError) as raised:
        load_weights(torch.nn.Linear(4, 2), path)
    assert message in str(raised.value)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_an_unreadable_weights_file_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(ExportError) as raised:
        load_weights(torch.nn.Linear(4, 2), tmp_path / name)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_weights_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(torch.nn.Linear(4, 2), path)
    with pytest.raises(ExportError, match="not a state dict that loads with weights_only=True"):
        load_weights(torch.nn.Linear(4, 2), path)


def test_a_checkpoint_with_one_state_dict(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, module = tmp_path / "checkpoint.pt", torch.nn.Linear(4, 2)
    state = {"weight": torch.full((2, 4), 0.5), "bias": torch.tensor([1.0, 2.0])}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"state": {}, "param_groups": [1]}}, path)
    with caplog.at_level("INFO", "normfuse"):
        load_weights(module, path)
    assert torch.equal(module.weight, state["weight"])
    assert f"the weights are those under 'state_dict' of '{path}'" in caplog.text


NO_STATE = [
    ([torch.zeros(2)], "holds a list, no state dict: expected tensors by name"),
    (
        {"epoch": 3, "lr": 0.1},
        "holds no state dict but 'epoch', 'lr': save the weights that you mean in a file of its own",
    ),
    (
        {"net": {"weight": torch.zeros(2)}, "ema": {"weight": torch.zeros(2)}},
        "holds several state dicts, under 'net', 'ema': save the one that you mean in a file of its own",
    ),
]


@pytest.mark.parametrize(("content", "message"), NO_STATE, ids=["list", "none inside", "two inside"])
def test_a_file_without_tensors_by_name_is_refused(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(ExportError, match=re.escape(message)):
        load_weights(torch.nn.Linear(4, 2), path)


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no weights file"):
        load_weights(torch.nn.Linear(4, 2), tmp_path / "absent.pt")
