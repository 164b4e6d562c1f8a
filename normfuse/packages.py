"""Packages that share their name with the one function that they are for."""

from __future__ import annotations

import sys
import types
from typing import Any


class _CallablePackage(types.ModuleType):
    """Python binds a subpackage to its parent under its own name, over the function of that name: so be both."""

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **keywords)


def make_callable(name: str) -> None:
    """Let the package ``name`` be called like the function in it that bears its last name."""
    sys.modules[name].__class__ = _CallablePackage
