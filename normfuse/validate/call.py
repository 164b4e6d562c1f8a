"""What an operator of the oracle is given: its name, its opset, its attributes, its outputs; and how it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from normfuse.errors import ValidationError
from normfuse.validate.rounding import Array


class OracleCannotRun(ValidationError):
    """The oracle does not know an operator, will not run a random one, or the model is too large for it."""

    def __init__(self, node: str, op: str, reason: str) -> None:
        where = f" at node '{node}'" if node else ""
        super().__init__(f"the float64 oracle cannot run {op}{where}: {reason}")
        self.node = node
        self.op = op
        self.reason = reason


class OracleFailed(ValidationError):
    """An operator that the oracle knows rejected its inputs: mostly a size that does not fit the graph."""

    def __init__(self, node: str, op: str, reason: str) -> None:
        where = f" at node '{node}'" if node else ""
        super().__init__(f"{op}{where} failed in float64: {reason}")
        self.node = node
        self.op = op


class NotOurs(Exception):
    """Raised by an own operator for a case that onnx.reference handles well."""


@dataclass(frozen=True, slots=True)
class Call:
    """One application of an operator. ``outputs`` says which outputs are asked for, in order."""

    op: str
    domain: str
    opset: int
    attributes: Mapping[str, Any]
    outputs: tuple[bool, ...]

    def ints(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Return an attribute of type INTS, or ``default``."""
        value = self.attributes.get(name)
        return default if value is None else tuple(int(item) for item in value)

    def int(self, name: str, default: int) -> int:
        """Return an attribute of type INT, or ``default``."""
        return int(self.attributes.get(name, default))

    def float(self, name: str, default: float) -> float:
        """Return an attribute of type FLOAT, or ``default``: a float32 either way, as the standard declares it."""
        return float(np.float32(self.attributes.get(name, default)))

    def text(self, name: str, default: str) -> str:
        """Return an attribute of type STRING, or ``default``."""
        return str(self.attributes.get(name, default))


Results = tuple[Array | None, ...]
Operator = Callable[..., Results]
OperatorKey = tuple[str, str]
