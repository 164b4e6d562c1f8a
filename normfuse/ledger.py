"""What the user asked for, and what has been found and done so far."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from normfuse.errors import UnsupportedForm
from normfuse.graph.editing import describe
from normfuse.report.records import DeclinedRecord, Rewrite


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for beside the target.

    skip: a regular expression; nodes whose name it matches are left as they are. only: replay these rewrites alone.
    """

    skip: str | None = None
    only: frozenset[str] | None = None
    assume_inference: bool = False
    freeze_inputs: bool = False
    lift_flagged: bool = False
    fold_norm_affine: bool = False
    duplicate_producers: bool = False


@dataclass
class Ledger:
    """What has been found and done so far, in order."""

    options: Options
    pattern: re.Pattern[str] | None = field(init=False)
    rewrites: list[Rewrite] = field(default_factory=list)
    declined: dict[ir.Node, str] = field(default_factory=dict)
    plans: dict[ir.Node, str] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    names: dict[ir.Node, str] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    written: dict[str, int] = field(default_factory=dict)
    stays: dict[ir.Node, str] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises UnsupportedForm where --skip is no regular expression."""
        self.pattern = _compile(self.options.skip)

    def name(self, norms: Iterable[ir.Node]) -> None:
        """Name each norm, or sum of branches, after the value that it produces, before anything is changed.

        Branches may reuse a name: the second norm of a name is ``name#2``, in the order of the model.
        """
        for norm in norms:
            if norm in self.names:
                continue
            base = str(norm.outputs[0].name)
            self.seen[base] += 1
            self.names[norm] = base if self.seen[base] == 1 else f"{base}#{self.seen[base]}"

    def identify(self, kind_: str, norm: ir.Node) -> str:
        """Return the id of a rewrite, made of its kind and its (first) norm or sum: other rewrites do not matter."""
        identifier = f"{kind_}:{self.names[norm]}"
        self.ids.add(identifier)
        return identifier

    def wants(self, identifier: str, nodes: Iterable[ir.Node]) -> bool:
        """Whether a rewrite was selected, and touches no node that the user wants left alone."""
        if self.options.only is not None and identifier not in self.options.only:
            return False
        return not any(self.skips(node) for node in nodes)

    def skips(self, node: ir.Node) -> bool:
        """Whether --skip names ``node``."""
        return self.pattern is not None and bool(node.name) and self.pattern.search(node.name or "") is not None

    def decline(self, node: ir.Node, reason: str) -> None:
        """Keep the first reason for each node: it is the one closest to the norm."""
        self.declined.setdefault(node, reason)

    def record(self, rewrite: Rewrite) -> None:
        """Add a rewrite; a norm that is written once more keeps its first nodes, and takes in further ones."""
        index = self.written.setdefault(rewrite.id, len(self.rewrites))
        if index == len(self.rewrites):
            self.rewrites.append(rewrite)
        else:
            earlier = self.rewrites[index]
            further = tuple(name for name in rewrite.nodes if name not in earlier.into)
            self.rewrites[index] = replace(earlier, nodes=earlier.nodes + further, into=rewrite.into)

    def records(self) -> list[DeclinedRecord]:
        """Return what was declined, in the order in which it was met."""
        return [DeclinedRecord(describe(node), _operator(node), reason) for node, reason in self.declined.items()]


def _operator(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _compile(pattern: str | None) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except (re.error, TypeError) as error:
        raise UnsupportedForm(f"--skip '{pattern}' is no regular expression: {error}") from None
