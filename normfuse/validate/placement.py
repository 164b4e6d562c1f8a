"""Where the nodes of a session ran: onnxruntime gives what a provider has no kernel for to the CPU, without a word.

Read by the child, which must start without onnx_ir; what it finds travels as plain values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# As onnxruntime's profiler spells them. Sizes and indices are computed on the CPU on purpose.
_FLOATS = frozenset({"float", "double", "float16", "bfloat16"})
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Placement:
    """How many nodes with a floating-point result one run had, and which of them another provider has run.

    elsewhere: (provider, node) with the node in words. Nodes are those after onnxruntime's optimizations.
    """

    nodes: int = 0
    elsewhere: tuple[tuple[str, str], ...] = ()

    @property
    def is_all_elsewhere(self) -> bool:
        """Whether the provider asked for has run nothing."""
        return 0 < self.nodes == len(self.elsewhere)

    @property
    def words(self) -> str:
        """Which nodes ran elsewhere; empty where none did."""
        by_provider: dict[str, list[str]] = {}
        for provider, node in self.elsewhere:
            by_provider.setdefault(provider, []).append(node)
        return "; ".join(
            f"{len(names)} of {self.nodes} nodes ran on {provider}: {', '.join(names[:_MOST_NAMED])}"
            + (f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")
            for provider, names in by_provider.items()
        )


def read_placement(profile: Path, provider: str) -> Placement:
    """Return what the profile of one run says of a session that asked for ``provider``."""
    events = json.loads(profile.read_text(encoding="utf-8"))
    ran = {
        event["name"].removesuffix("_kernel_time"): event["args"]
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    }
    judged = {name: about for name, about in ran.items() if _is_work(about)}
    elsewhere = [
        (str(about["provider"]), f"{about.get('op_name', 'node')} '{name}'")
        for name, about in judged.items()
        if about.get("provider", provider) != provider
    ]
    return Placement(len(judged), tuple(elsewhere))


def _is_work(about: Mapping[str, Any]) -> bool:
    """Return whether a node has a floating-point result and does more than carry it from one device to another."""
    if str(about.get("op_name", "")).startswith("Memcpy"):
        return False
    types = [name for output in _outputs(about) for name in output]
    return not types or any(name in _FLOATS for name in types)


def _outputs(about: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return about.get("output_type_shape") or ()
