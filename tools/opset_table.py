"""How much of a folder of models reaches each opset, and with the right numbers: ``opset_table.py FOLDER [OPSET ...]``.

Every .onnx file is raised or lowered to each target; the result must pass onnx.checker wherever the original does, and
be EQUIVALENT by the float64 oracle, on the input ``x`` of the .npz file beside it where there is one. Refusals are
counted by reason. A file is counted only at targets that differ from its own opset.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from rich.console import Console
from rich.table import Table

import normfuse
from normfuse.errors import NormfuseError, UnsupportedForm
from normfuse.passes.convert_opset import convert_opset
from normfuse.report.verdict import Verdict

TARGETS = (onnx.defs.onnx_opset_version(), 21, 18, 17, 13, 11, 9, 7)


def is_valid(model: onnx.ModelProto) -> bool:
    """Whether onnx.checker, types and shapes included, accepts ``model``."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception:  # the checker raises several types of its own
        return False
    return True


def outcome(path: Path, opset: int) -> tuple[str, str]:
    """Return what became of one file at one opset: a word, and a reason."""
    model = ir.load(path)
    try:
        convert_opset(model, opset)
    except UnsupportedForm as error:
        return "refused", re.sub(r" at node '[^']*'", "", str(error))
    result = ir.to_proto(model)
    was_valid = is_valid(onnx.load(path))
    if was_valid and not is_valid(result):
        return "invalid", path.name
    try:
        report = normfuse.validate(onnx.load(path), result, providers=(), inputs=inputs_of(path, model))
    except NormfuseError as error:
        return "not evaluated", str(error)
    if report.verdict is Verdict.EQUIVALENT:
        return ("right" if was_valid else "right, invalid as before"), ""
    if report.verdict is Verdict.DIVERGENT:
        return "wrong", path.name
    return "not evaluated", path.name


def inputs_of(path: Path, model: ir.Model) -> Path | None:
    """Return an .npz file of ``x`` alone, named as the model names its one input."""
    beside = path.with_suffix(".npz")
    names = [str(value.name) for value in model.graph.inputs if not value.is_initializer()]
    if not beside.exists() or len(names) != 1:
        return None
    with np.load(beside) as arrays:
        if "x" not in arrays or model.graph.inputs[0].dtype != ir.DataType.from_numpy(arrays["x"].dtype):
            return None
        folder = Path(tempfile.mkdtemp(dir=SCRATCH.name))
        np.savez(folder / "x.npz", **{names[0]: arrays["x"]})
    return folder / "x.npz"


def opset_of(path: Path) -> int:
    """Return the version of the default domain that a file imports."""
    model = onnx.load(path, load_external_data=False)
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def main() -> None:
    """Print the table, then the reasons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("targets", type=int, nargs="*", metavar="opset", default=list(TARGETS))
    arguments = parser.parse_args()
    targets = arguments.targets
    paths = sorted(arguments.folder.glob("*.onnx"))
    opsets = {path: opset_of(path) for path in paths}
    words = ("files", "right", "right, invalid as before", "not evaluated", "refused", "invalid", "wrong")
    table, reasons = Table("to opset", "way", *words), Counter[tuple[int, str, str]]()
    for target in targets:
        for way, sign in (("up", -1), ("down", 1)):
            chosen = [path for path in paths if sign * (opsets[path] - target) > 0]
            results = [outcome(path, target) for path in chosen]
            counts = Counter(word for word, _ in results)
            counts["files"] = len(chosen)
            if chosen:
                table.add_row(str(target), way, *(str(counts[word]) for word in words))
            reasons.update((target, word, reason) for word, reason in results if reason)
    console = Console(width=160)
    console.print(table)
    for (target, word, reason), count in sorted(reasons.items(), key=lambda item: (-item[0][0], -item[1])):
        console.print(f"{target:>3} {count:>3} {word}: {reason}", highlight=False)


if __name__ == "__main__":
    SCRATCH = tempfile.TemporaryDirectory()
    with SCRATCH:
        main()
