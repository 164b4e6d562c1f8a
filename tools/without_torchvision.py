"""timm where torchvision is not installed: its models need none of it, only its import.

torchvision's wheels pin a CUDA build of torch. Here every module of that name is an empty one whose attributes are made
when they are asked for; nothing of it computes anything.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Placeholder(type):
    """A class whose attributes are their names in lower case: InterpolationMode.NEAREST is "nearest"."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name.lower()


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, _Placeholder(name, (), {}))
        return getattr(self, name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == "torchvision" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def import_timm() -> Any:
    """Return timm."""
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.insert(0, _Finder())
    import timm

    return timm
