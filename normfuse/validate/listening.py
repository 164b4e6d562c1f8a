"""A run of a torch module that is listened to: what goes through each of its parts, and what each norm gives.

In float64 the run is float64 throughout: where the module's own code asks for a smaller float type (LlamaRMSNorm takes
its statistics in float32), it gets float64, since what it gives is the truth.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from normfuse.errors import ValidationError
from normfuse.validate.inputs import Feed, InputSpec
from normfuse.validate.rounding import Array

# BatchNorm2d, LlamaRMSNorm, GRN, timm's GroupNormAct (by what it inherits); a weight norm's result is a weight.
_NORM = re.compile(r"(Norm|Norm\dd|GRN)$")
_OF_WEIGHTS = re.compile(r"(^|\.)parametrizations\.")
_FUNCTIONS = frozenset({"batch_norm", "group_norm", "instance_norm", "layer_norm", "local_response_norm", "rms_norm"})


@dataclass(slots=True)
class Layer:
    """One norm, a module or a call of a function such as ``layer_norm`` in another module: the result of each call."""

    name: str
    kind: str
    results: list[Array] = field(default_factory=list)


@dataclass(slots=True)
class Captured:
    """What went through the module on one feed. layers: in the order of their first calls."""

    outputs: list[Array]
    layers: dict[str, Layer] = field(default_factory=dict)
    _tensors: dict[tuple[object, ...], Array] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Array]:
        """Every array that went through a part, once, in order."""
        return list(self._tensors.values())

    def keep(self, arrays: Sequence[Array]) -> list[Array]:
        """Keep ``arrays``; return for each the one that stands for all of its copies: a tensor leaves one part and
        enters the next, through as many parts as hold each other."""
        return [self._tensors.setdefault((item.shape, item.dtype, _digest(item)), item) for item in arrays]


def run_module(
    module: Any, feed: Feed, specs: Sequence[InputSpec], wanted: int, *, double: bool, listen: bool = False
) -> Captured:
    """Run ``module`` on one feed; ``listen``: to every part of it.

    double: the module is in float64. Raises ValidationError where it rejects the feed, or does not return ``wanted``
    tensors.
    """
    import torch

    captured = Captured([])
    tensors = {spec.name: _tensor(feed[spec.name], double=double) for spec in specs}
    by_name = set(tensors) <= set(inspect.signature(module.forward).parameters)
    try:
        with ExitStack() as around:
            around.enter_context(torch.no_grad())
            running: list[str] = []
            if listen:
                around.enter_context(_listening(module, captured, running))
            if double:
                around.enter_context(_float64(captured if listen else None, running))
            result = module(**tensors) if by_name else module(*tensors.values())
    except Exception as error:
        # torch raises what the module's own code raises: any of it means that it does not take these inputs.
        raise ValidationError(f"the module does not run on inputs that the exported model takes: {error}") from error
    captured.outputs = _arrays(result)
    if len(captured.outputs) != wanted:
        raise ValidationError(f"the module returns {len(captured.outputs)} tensors, the exported model {wanted}")
    return captured


def _digest(array: Array) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).digest()


def _is_norm(name: str, part: Any) -> bool:
    return not _OF_WEIGHTS.search(name) and any(_NORM.search(kind.__name__) for kind in type(part).__mro__)


@contextmanager
def _listening(module: Any, captured: Captured, running: list[str]) -> Iterator[None]:
    """Capture what goes through every part. running: the parts that are being run, innermost last; norms as such."""
    norms = {part: name or "the module" for name, part in module.named_modules() if _is_norm(name, part)}
    names = {part: name for name, part in module.named_modules()}

    def enter(part: Any, _: Any) -> None:
        running.append(f"norm {names[part]}" if part in norms else names[part])

    def leave(part: Any, arguments: Any, keywords: Any, result: Any) -> None:
        running.pop()
        captured.keep(_arrays((arguments, keywords)))
        results = captured.keep(_arrays(result))
        if part in norms and results:
            layer = captured.layers.setdefault(norms[part], Layer(norms[part], type(part).__name__))
            layer.results.append(results[0])

    hooks = [
        hook
        for part in names
        for hook in (part.register_forward_pre_hook(enter), part.register_forward_hook(leave, with_kwargs=True))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _float64(captured: Captured | None, running: Sequence[str]) -> Any:
    """Return a mode of torch in which floats are float64, and functions that are norms are listened to."""
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils import _pytree

    narrow = (torch.float32, torch.float16, torch.bfloat16)
    casts = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)

    class Float64(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            func = torch.Tensor.double if func in casts else func
            args, kwargs = _pytree.tree_map(
                lambda item: torch.float64 if isinstance(item, torch.dtype) and item in narrow else item,
                (args, kwargs or {}),
            )
            result = func(*args, **kwargs)
            name = getattr(func, "__name__", "")
            inside = any(item.startswith("norm ") for item in running)
            if captured is not None and name in _FUNCTIONS and not inside and not _is_weight(args[0]):
                self._heard(name, args, result)
            return result

        def _heard(self, name: str, args: Any, result: Any) -> None:
            assert captured is not None
            key = f"{running[-1]}.{name}" if running and running[-1] else name
            captured.keep(_arrays(args))
            (found,) = captured.keep(_arrays(result))
            captured.layers.setdefault(key, Layer(key, "a function")).results.append(found)

    return Float64()


def _is_weight(item: Any) -> bool:
    """Return whether a tensor is a parameter or a view of one: weight standardisation is no norm of activations."""
    import torch

    return isinstance(item, torch.nn.Parameter) or isinstance(getattr(item, "_base", None), torch.nn.Parameter)


def _tensor(array: Array, *, double: bool) -> Any:
    import torch

    if array.dtype.name == "bfloat16":
        tensor = torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    else:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.double() if double and tensor.is_floating_point() else tensor


def _arrays(result: Any) -> list[Array]:
    """Return the tensors in a result of any structure, in order."""
    import torch
    from torch.utils import _pytree

    leaves = _pytree.tree_leaves(result)
    tensors = [leaf.detach() for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return [(item.to(torch.float32) if item.dtype == torch.bfloat16 else item).clone().numpy() for item in tensors]
