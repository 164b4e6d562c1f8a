"""From the command line's words to a module with inputs.

The words: ``MODULE:FACTORY``, ``NAME=1x3x224x224:float32``, ``NAME:0=batch``.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import logging
import pickle
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from normfuse.errors import ExportError, MissingDependency

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

FLOATING = ("float32", "float16", "bfloat16", "float64")
INTEGER = ("int64", "int32", "int16", "int8", "uint8")
DTYPES = (*FLOATING, *INTEGER, "bool")

_INPUT = re.compile(r"(?P<name>[^=]+)=(?P<shape>[^:]*)(?::(?P<dtype>.*))?")
_DYNAMIC = re.compile(r"(?P<name>.+):(?P<axis>-?\d+)=(?P<symbol>[A-Za-z_]\w*)")


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a module: its name, the shape of an example, and its type. An empty shape is a scalar."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A module with example inputs, as :func:`normfuse.export` takes them; no names keeps those of ``forward``."""

    module: torch.nn.Module
    inputs: Any
    input_names: tuple[str, ...] | None = None


def parse_input(text: str) -> InputSpec:
    """Return the input that ``NAME=1x3x224x224[:float32]`` describes; ``NAME=`` is a scalar.

    Raises ExportError for text of another form, a size below 1, and an unknown type.
    """
    match = _INPUT.fullmatch(text.strip())
    if match is None:
        raise ExportError(f"input '{text}' is not of the form NAME=1x3x224x224 or NAME=1x3x224x224:float32")
    shape = match["shape"].strip()
    sizes = shape.lower().split("x") if shape else []
    if not all(size.isdecimal() and int(size) >= 1 for size in sizes):
        raise ExportError(
            f"input '{match['name']}': '{shape}' is not a shape; write sizes of at least 1 with x between them"
        )
    return InputSpec(match["name"].strip(), tuple(int(size) for size in sizes), _dtype(match["dtype"], match["name"]))


def parse_dynamic(texts: Iterable[str]) -> dict[str, dict[int, str]]:
    """Return ``{name: {axis: symbol}}`` for texts of the form ``NAME:0=batch``.

    Raises ExportError for text of another form and for an axis that is named twice.
    """
    found: dict[str, dict[int, str]] = {}
    for text in texts:
        match = _DYNAMIC.fullmatch(text.strip())
        if match is None:
            raise ExportError(f"dynamic axis '{text}' is not of the form NAME:0=batch")
        axes = found.setdefault(match["name"], {})
        axis = int(match["axis"])
        if axes.setdefault(axis, match["symbol"]) != match["symbol"]:
            raise ExportError(f"axis {axis} of '{match['name']}' is named twice: {axes[axis]} and {match['symbol']}")
    return found


def prepare(
    text: str, *, inputs: Sequence[InputSpec] = (), weights: Path | None = None, folder: Path | None = None
) -> Prepared:
    """Return the module of ``MODULE:FACTORY`` with its weights and example inputs.

    ``folder`` (the current one by default) is first on sys.path while MODULE is imported and FACTORY runs. Inputs
    come from ``inputs``, else from ``example_inputs()`` of the factory, the module it returns, or the Python module.
    Raises ExportError when any of that fails; MissingDependency without torch.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependency("torch", "torch", "exporting a torch module") from error
    with _on_path(folder or Path.cwd()):
        home, factory = _resolve(text)
        try:
            module = factory()
        except Exception as error:
            raise ExportError(f"the factory '{text}' raised {type(error).__name__}: {error}") from error
        if not isinstance(module, torch.nn.Module):
            raise ExportError(
                f"the factory '{text}' must return a torch.nn.Module; it returned {type(module).__name__}"
            )
        if weights is not None:
            load_weights(module, weights)
        if inputs:
            return _described(module, inputs)
        # On a class, example_inputs may be a method of its instances.
        places = (module, home) if isinstance(factory, type) else (factory, module, home)
        return Prepared(module, _example_inputs(text, places))


def _described(module: torch.nn.Module, specs: Sequence[InputSpec]) -> Prepared:
    """Return ``module`` with the inputs that ``specs`` describe.

    Names that are all parameters of ``forward`` say which input is which; other names are given by position.
    """
    examples = {spec.name: _example(spec) for spec in specs}
    if len(examples) != len(specs):
        raise ExportError(f"an input is described twice: {', '.join(spec.name for spec in specs)}")
    try:
        parameters = list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        parameters = []
    if not examples.keys() <= set(parameters):
        return Prepared(module, tuple(examples.values()), tuple(examples))
    if examples.keys() == set(parameters[: len(examples)]):
        ordered = parameters[: len(examples)]
        return Prepared(module, tuple(examples[name] for name in ordered), tuple(ordered))
    return Prepared(module, {name: examples[name] for name in parameters if name in examples})


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Load the ``.safetensors`` or state-dict file ``path`` into ``module``, every key of it.

    A state dict is read with ``weights_only=True``: a file that wants to run code is refused. Of a checkpoint that holds
    one state dict among other things, that one is taken.
    Raises ExportError when the file cannot be read, or its keys or shapes are not the module's; MissingDependency
    without safetensors.
    """
    state = _read_state(path)
    expected = module.state_dict()
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or unexpected:
        parts = [
            f"{len(keys)} {what} ({_some(keys)})"
            for keys, what in ((missing, "missing"), (unexpected, "unexpected"))
            if keys
        ]
        raise ExportError(f"the weights of '{path}' do not fit {type(module).__name__}: {'; '.join(parts)}")
    for key, value in state.items():
        if tuple(value.shape) != tuple(expected[key].shape):
            raise ExportError(
                f"weight '{key}' of '{path}' has shape {tuple(value.shape)}; "
                f"{type(module).__name__} has {tuple(expected[key].shape)}"
            )
    module.load_state_dict(dict(state))


def _read_state(path: Path) -> Mapping[str, torch.Tensor]:
    import torch

    if not path.is_file():
        raise ExportError(f"no weights file '{path}'")
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise MissingDependency("safetensors", "torch", "reading .safetensors weights") from error
        try:
            tensors: Mapping[str, torch.Tensor] = load_file(path)
        except Exception as error:
            raise ExportError(f"'{path}' is not a readable safetensors file: {_line(error)}") from error
        return tensors
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own text advises to load it without that protection.
        why = "damaged, or more than tensors" if isinstance(error, pickle.UnpicklingError) else _line(error)
        raise ExportError(
            f"'{path}' is not a state dict that loads with weights_only=True: {why}; save module.state_dict()"
        ) from error
    if _is_state(state):
        return cast("Mapping[str, torch.Tensor]", state)
    return _from_checkpoint(state, path)


def _is_state(content: object) -> bool:
    import torch

    return isinstance(content, Mapping) and all(isinstance(value, torch.Tensor) for value in content.values())


def _from_checkpoint(content: object, path: Path) -> Mapping[str, torch.Tensor]:
    """Return the only state dict of a checkpoint such as ``{"state_dict": …, "epoch": 3}``."""
    if not isinstance(content, Mapping):
        raise ExportError(f"'{path}' holds a {type(content).__name__}, no state dict: expected tensors by name")
    inside = [key for key, value in content.items() if value and _is_state(value)]
    if len(inside) != 1:
        keys = _some([f"'{key}'" for key in inside or content])
        why = (
            f"several state dicts, under {keys}: save the one"
            if inside
            else f"no state dict but {keys}: save the weights"
        )
        raise ExportError(f"'{path}' holds {why} that you mean in a file of its own")
    log.info("the weights are those under '%s' of '%s'", inside[0], path)
    return cast("Mapping[str, torch.Tensor]", content[inside[0]])


def _resolve(text: str) -> tuple[ModuleType, Callable[[], Any]]:
    """Return the Python module and the factory that ``MODULE:FACTORY`` names."""
    place, colon, name = text.partition(":")
    if not (place and colon and name):
        raise ExportError(f"'{text}' is not of the form MODULE:FACTORY, for example my_package.nets:resnet")
    try:
        home = importlib.import_module(place)
    except Exception as error:
        # A module that is there but imports one that is not deserves the name of that one.
        absent = (
            isinstance(error, ModuleNotFoundError)
            and error.name is not None
            and f"{place}.".startswith(f"{error.name}.")
        )
        if absent:
            raise ExportError(f"no Python module '{place}' here or on sys.path") from error
        raise ExportError(f"importing '{place}' raised {type(error).__name__}: {_line(error)}") from error
    factory: Any = home
    for part in name.split("."):
        if not hasattr(factory, part):
            close = difflib.get_close_matches(part, [known for known in dir(factory) if not known.startswith("_")], n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise ExportError(f"'{place}' has no '{name}'{hint}")
        factory = getattr(factory, part)
    if not callable(factory):
        raise ExportError(f"'{text}' is not callable: a factory is a function or class that returns a torch.nn.Module")
    return home, factory


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(folder.resolve()))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def _example_inputs(text: str, places: tuple[Any, ...]) -> Any:
    for place in places:
        maker = getattr(place, "example_inputs", None)
        if not callable(maker):
            continue
        try:
            return maker()
        except Exception as error:
            raise ExportError(f"example_inputs() of '{text}' raised {type(error).__name__}: {_line(error)}") from error
    raise ExportError(f"'{text}' has no example_inputs(); describe its inputs, for example --input x=1x3x224x224")


def _example(spec: InputSpec) -> torch.Tensor:
    """Return an example of ``spec``: standard normal numbers, or zeros where an integer may be an index."""
    import torch

    dtype = getattr(torch, spec.dtype)
    if spec.dtype in FLOATING:
        return torch.randn(spec.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return torch.zeros(spec.shape, dtype=dtype)


def _dtype(text: str | None, name: str) -> str:
    if text is None:
        return "float32"
    if text.strip() in DTYPES:
        return text.strip()
    close = difflib.get_close_matches(text, DTYPES, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(DTYPES)}"
    raise ExportError(f"input '{name}' has unknown type '{text}'; {hint}")


def _some(keys: Sequence[str], most: int = 3) -> str:
    return ", ".join(keys[:most]) + (", …" if len(keys) > most else "")


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
