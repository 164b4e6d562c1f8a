"""What onnxruntime's profiler says: where the time of a model goes, and what its norms cost beside a copy."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

_NORMS = ("Normalization", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm")
_SIZES = {"float": 4, "float16": 2, "bfloat16": 2, "double": 8}


@dataclass(frozen=True, slots=True)
class Share:
    """One operator's part of the time in all nodes, from 0 to 1."""

    operator: str
    nodes: int
    share: float


@dataclass(frozen=True, slots=True)
class NormTime:
    """One norm node: seconds a run, and how often a tensor of its size could be copied meanwhile."""

    node: str
    operator: str
    shape: tuple[int, ...]
    seconds: float
    copies: float


@dataclass(frozen=True, slots=True)
class Profile:
    """What the nodes of a model cost, the dearest operator first; norms in the order of the graph."""

    shares: tuple[Share, ...]
    norms: tuple[NormTime, ...]


def read_profile(path: Path) -> Profile:
    """Return what the profile that onnxruntime left at ``path`` says. Nodes are those after its optimizations."""
    events = json.loads(path.read_text(encoding="utf-8"))
    ran = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    return Profile(_shares(ran), _norms(ran))


def _shares(ran: Iterable[Mapping[str, Any]]) -> tuple[Share, ...]:
    spent: Counter[str] = Counter()
    nodes: defaultdict[str, set[str]] = defaultdict(set)
    for event in ran:
        operator = event["args"]["op_name"]
        spent[operator] += event["dur"]
        nodes[operator].add(event["name"])
    total = sum(spent.values()) or 1
    return tuple(Share(name, len(nodes[name]), time_ / total) for name, time_ in spent.most_common())


def _norms(ran: Iterable[Mapping[str, Any]]) -> tuple[NormTime, ...]:
    times: defaultdict[tuple[str, str, str, tuple[int, ...]], list[float]] = defaultdict(list)
    for event in ran:
        operator, outputs = event["args"]["op_name"], event["args"].get("output_type_shape") or []
        if not any(word in operator for word in _NORMS) or not outputs:
            continue
        ((dtype, shape),) = outputs[0].items()
        if dtype in _SIZES:
            name = event["name"].removesuffix("_kernel_time")
            times[name, operator, dtype, tuple(shape)].append(event["dur"] * 1e-6)
    found = []
    copies: dict[int, float] = {}
    for (name, operator, dtype, shape), values in times.items():
        size = prod(shape) * _SIZES[dtype]
        if size not in copies:
            copies[size] = copy_seconds(size)
        seconds = statistics.median(values)
        found.append(NormTime(name, operator, shape, seconds, seconds / copies[size]))
    return tuple(found)


def copy_seconds(size: int) -> float:
    """Return the seconds that a copy of ``size`` bytes takes: the median of eleven timings."""
    source, target = np.ones(max(1, size), np.uint8), np.zeros(max(1, size), np.uint8)
    calls = max(1, round(1e6 / max(1, size)))
    return statistics.median(_timed(lambda: np.copyto(target, source), calls) for _ in range(11))


def _timed(call: Callable[[], None], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls
