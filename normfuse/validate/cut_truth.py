"""What judging by cut graphs takes: the two of them, and their truths (:mod:`cuts`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from normfuse.validate.call import OracleCannotRun, OracleFailed
from normfuse.validate.cuts import Cut, cut, is_affordable
from normfuse.validate.families import NOT_FINITE
from normfuse.validate.oracle import Oracle
from normfuse.validate.pairing import write
from normfuse.validate.scopes import is_control, is_random, label, random_operator
from normfuse.validate.truth import Truth, evaluate


@dataclass(frozen=True, slots=True)
class CutTruths:
    """Both graphs cut at the same places, the oracles of the two, and the truth of some families there."""

    cut: Cut
    oracles: tuple[Oracle, Oracle]
    truths: tuple[Truth, ...]

    @property
    def is_for_providers(self) -> bool:
        """Whether a runtime can be held to them: nothing draws inside a function or body, and some family is for it."""
        return any(truth.family.on_providers for truth in self.truths) and not any(
            random_operator(model) for model in self.cut.models
        )


def cut_truths(
    subjects: tuple[ir.Model, ir.Model], oracles: tuple[Oracle, Oracle], truths: Sequence[Truth]
) -> tuple[CutTruths | None, list[str]]:
    """Return the graphs cut where the first one draws or decides, if that is needed, and in words why.

    Random operators: every family, since no run of a runtime is comparable otherwise. Decisions: the first family, if
    some of them lie near a tie, and that of NaN, which decides anything.
    """
    drawn = [node for node in oracles[0].nodes if is_random(node)]
    deciding = [node for node in oracles[0].jumps() if not is_control(node) and node not in drawn]
    chosen = [
        truth
        for index, truth in enumerate(truths)
        if drawn or (not index and truth.undecided) or (deciding and truth.family.name in NOT_FINITE)
    ]
    if not chosen:
        return None, []
    at = sorted([*drawn, *deciding], key=oracles[0].order.__getitem__)
    found = _cut_truths(subjects, oracles, chosen, at)
    notes = []
    if drawn:
        notes.append(f"random, with the same draws given to both graphs: {_words(drawn)}")
    if truths[0].undecided:
        rest = (
            "judged cut there as well, with the oracle's decisions given to both graphs"
            if found is not None
            else "end to end, faults below ten roundings are not seen"
        )
        notes.append(f"{truths[0].undecided} decisions lie within rounding of a tie ({_words(deciding)}): {rest}")
    return found, notes


def _cut_truths(
    subjects: tuple[ir.Model, ir.Model], oracles: tuple[Oracle, Oracle], truths: Sequence[Truth], at: list[ir.Node]
) -> CutTruths | None:
    if not is_affordable(truths[0].outputs, at):
        return None
    made = cut(subjects, oracles, at)
    if made is None:
        return None
    pair = Oracle(made.models[0]), Oracle(made.models[1])
    try:
        found = tuple(evaluate(pair[0], made.family(truth.family, truth.outputs)) for truth in truths)
    except (OracleCannotRun, OracleFailed):
        return None
    return CutTruths(made, pair, found)


def _words(nodes: Sequence[ir.Node]) -> str:
    more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
    return f"{nodes[0].op_type} at node '{label(nodes[0])}'{more}" if nodes else "inside a loop or branch"


def write_cut(cut: CutTruths, folder: Path) -> tuple[Path, Path]:
    """Write both graphs where a runtime can read them."""
    roles = ("reference", "candidate")
    first, second = (
        write(model, folder / f"{role}-cut.onnx") for role, model in zip(roles, cut.cut.models, strict=True)
    )
    return first, second
