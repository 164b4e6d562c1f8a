"""Keep Python's cycle collector out of the way while a graph of many small objects is built."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def uncollected(function: Callable[P, T]) -> Callable[P, T]:
    """Return ``function`` run with the cycle collector paused.

    A graph of n nodes is n long-lived objects that refer to each other: every full collection while it grows walks all
    of them for nothing, which makes loading quadratic. Reference counting goes on; the collector resumes at the end.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return function(*args, **kwargs)
        finally:
            if was_enabled:
                gc.enable()

    return run
