"""What one float64 run may cost, what it has cost so far, and how it goes about branches, noise and overflow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.validate.call import Call, OracleCannotRun
from normfuse.validate.noise import Noise
from normfuse.validate.scopes import label

# Writing one element takes about as long as this many multiply-adds.
WORK_OF_ELEMENT = 50.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one run may cost. 1e11 multiply-adds take about five seconds on two cores.

    live_bytes: alive at once. weight_bytes: all initializers as float64; perturbed runs read and shake every one.
    steps: operators applied inside bodies of loops, about one second.
    """

    macs: float = 1e11
    live_bytes: float = 6 * 2**30
    weight_bytes: float = 2 * 2**30
    steps: int = 20_000


@dataclass(slots=True)
class Run:
    """One evaluation. forced: bodies that are entered whatever the condition says, loops among them for two trips.

    in_range: results beyond the range of a half type become infinite, as they would on a device.
    trips: how often each body was entered, the most of any time that its node ran.
    """

    limits: Limits
    noise: Noise | None = None
    forced: frozenset[ir.Graph] = frozenset()
    in_range: bool = False
    macs: float = 0.0
    elements: float = 0.0
    live: float = 0.0
    steps: int = 0
    trips: dict[ir.Graph, int] = field(default_factory=dict)

    def count(self, call: Call, data: Sequence[Any], results: Sequence[Any]) -> None:
        """Add what one operator has cost."""
        self.macs += multiply_adds(call, data, results)
        self.elements += sum(item.size for item in results if isinstance(item, np.ndarray))

    @property
    def work(self) -> float:
        """The cost in multiply-adds."""
        return self.macs + WORK_OF_ELEMENT * self.elements

    def check(self, node: ir.Node) -> None:
        """Raise OracleCannotRun where a limit is passed."""
        if self.macs > self.limits.macs:
            self._refuse(node, f"more than {self.limits.macs:.0e} multiply-adds")
        if self.live > self.limits.live_bytes:
            self._refuse(node, f"more than {self.limits.live_bytes / 2**30:.0f} GiB alive at once")
        if self.steps > self.limits.steps:
            self._refuse(node, f"more than {self.limits.steps} operators inside loops")

    @staticmethod
    def _refuse(node: ir.Node, words: str) -> None:
        raise OracleCannotRun(label(node), node.op_type, f"too large: {words}")


def multiply_adds(call: Call, data: Sequence[Any], results: Sequence[Any]) -> float:
    """Return the multiply-adds of a linear operator; 0 for any other."""
    if call.op in ("Conv", "FusedConv", "DeformConv"):
        return float(results[0].size * math.prod(data[1].shape[1:]))
    if call.op == "ConvTranspose":
        return float(data[0].size * math.prod(data[1].shape[1:]))
    if call.op in ("MatMul", "Gemm", "FusedMatMul"):
        return float(results[0].size * data[0].shape[-1])
    return 0.0
