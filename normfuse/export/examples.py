"""Example inputs as torch.export wants them: in order, named, with the axes that stay open."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from normfuse.errors import ExportError

if TYPE_CHECKING:
    import torch


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments: a mapping is passed by keyword, a single value stands for one."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    return (inputs,), {}


def names(
    module: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], input_names: Sequence[str] | None
) -> tuple[str, ...]:
    """Return one name for each argument: the given ones, else those of ``forward``."""
    count = len(arguments) + len(keywords)
    if input_names is not None:
        if len(input_names) != count:
            raise ExportError(f"input_names has {len(input_names)} names; the module gets {count} inputs")
        return tuple(input_names)
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    positional += [f"args_{index}" for index in range(len(arguments) - len(positional))]
    return (*positional[: len(arguments)], *keywords)


def dynamic_axes(
    dynamic: Mapping[str, Mapping[int, str]], names: tuple[str, ...], values: list[Any]
) -> tuple[dict[int, str], ...]:
    """Return for each input its dynamic axes, all counted from the front."""
    given: object = dynamic
    if not isinstance(given, Mapping) or not all(isinstance(axes, Mapping) for axes in given.values()):
        raise ExportError(f"dynamic takes axes by input name, such as {{'x': {{0: 'batch'}}}}; got {given!r}")
    unknown = sorted(set(dynamic) - set(names))
    if unknown:
        raise ExportError(f"no input '{unknown[0]}' to make dynamic; the inputs are: {', '.join(names) or 'none'}")
    found = []
    for name, value in zip(names, values, strict=True):
        axes = dynamic.get(name, {})
        if axes and not hasattr(value, "shape"):
            raise ExportError(f"input '{name}' is {article(type(value).__name__)}: only a tensor has dynamic axes")
        rank = len(value.shape) if axes else 0
        for axis in axes:
            if not -rank <= axis < rank:
                raise ExportError(f"input '{name}' has rank {rank}; it has no axis {axis} to make dynamic")
        found.append({axis % rank: symbol for axis, symbol in axes.items()})
    return tuple(found)


def widened(
    arguments: tuple[Any, ...], keywords: dict[str, Any], axes: tuple[dict[int, str], ...]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the examples with every dynamic size 1 made 2, and with it every axis of the same symbol."""
    values = [*arguments, *keywords.values()]
    single = {
        symbol
        for value, dynamic in zip(values, axes, strict=True)
        for axis, symbol in dynamic.items()
        if value.shape[axis] == 1
    }
    for index, dynamic in enumerate(axes):
        for axis, symbol in dynamic.items():
            if symbol in single and values[index].shape[axis] == 1:
                values[index] = values[index].repeat_interleave(2, dim=axis)
    return tuple(values[: len(arguments)]), dict(zip(keywords, values[len(arguments) :], strict=True))


def dynamic_shapes(axes: tuple[dict[int, str], ...], positional: int, keywords: tuple[str, ...]) -> Any:
    """Return ``axes`` as torch wants them: a tuple for positional, a dict for keyword arguments, None for none."""
    if not any(axes):
        return None
    shapes = tuple(dynamic or None for dynamic in axes)
    return shapes[:positional] if positional else dict(zip(keywords, shapes, strict=True))


def article(noun: str) -> str:
    """Return ``noun`` with its indefinite article."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
