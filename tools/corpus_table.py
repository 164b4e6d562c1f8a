"""Run a folder of labelled ONNX files through inspect and fuse, and print one table of what came out.

    python tools/corpus_table.py FOLDER [--form auto ...] [--provider] [--list]

FOLDER holds NAME.onnx files and a manifest.json: a list of {"file", "norm", "count", "lift", "fold"}. For each label
the table says how many files there are, in how many the norms found are the expected ones, and, for each form, in how many
the fused model is EQUIVALENT by the float64 oracle (and on onnxruntime's CPU with --provider). --list names the misses.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import normfuse
from normfuse import Form, NormfuseError, Provider, Target, Verdict


def expected_norms(entry: dict[str, Any]) -> tuple[set[str], int] | None:
    """Return (kinds, count) that a perfect recogniser finds; None where nothing is to be found."""
    if entry["norm"] is None or entry["lift"] in ("no", "none", "constant", "flag", "name"):
        return None
    kinds = entry["norm"] if isinstance(entry["norm"], list) else [entry["norm"]]
    return set(kinds), entry["count"]


def is_found(entry: dict[str, Any], report: normfuse.FusionReport) -> bool:
    """Whether the norms found are those of the label; a norm that must stay has to have its reason."""
    found = Counter(record.norm for record in report.norms)
    wanted = expected_norms(entry)
    if wanted is None:
        if entry["lift"] in ("no", "name"):
            return bool(report.declined) and (entry["lift"] == "name" or not found)
        return not found
    kinds, count = wanted
    if len(kinds) > 1:
        return set(found) <= kinds and sum(found.values()) == count
    return dict(found) == dict.fromkeys(kinds, count)


def outcome(path: Path, form: Form, providers: tuple[Provider, ...]) -> str:
    """Fuse one file in one form and verify it; return a word for the table."""
    try:
        fused, report = normfuse.fuse(path, Target(form, native=False))
        if not report.rewrites:
            return "unchanged"
        verdict = normfuse.validate(path, fused, providers=providers)
    except NormfuseError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"CRASHED: {type(error).__name__}: {error}"
    if verdict.verdict is Verdict.NOT_RUN:
        return f"not run: {verdict.legs[0].reason}"
    return "equivalent" if verdict.verdict is Verdict.EQUIVALENT else "DIVERGENT"


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--form", nargs="*", default=[form.value for form in Form])
    parser.add_argument("--provider", action="store_true", help="verify on onnxruntime's CPU as well (slower)")
    parser.add_argument("--list", action="store_true", help="name what is not as expected")
    arguments = parser.parse_args()
    logging.getLogger("normfuse").setLevel(logging.ERROR)
    manifest = json.loads((arguments.folder / "manifest.json").read_text())
    forms = [Form(name) for name in arguments.form]
    providers = (Provider.CPU,) if arguments.provider else ()
    totals: dict[str, Counter[str]] = defaultdict(Counter)
    misses: list[str] = []
    for entry in manifest:
        path, label = arguments.folder / entry["file"], entry["lift"]
        totals[label]["files"] += 1
        report = normfuse.inspect(path)
        if is_found(entry, report):
            totals[label]["found"] += 1
        else:
            found = dict(Counter(record.norm for record in report.norms))
            reasons = [declined.reason for declined in report.declined]
            misses.append(f"{path.name}: expected {entry['norm']} × {entry['count']}, found {found}; {reasons}")
        for form in forms:
            word = outcome(path, form, providers)
            totals[label][f"{form.value} {word.split(':')[0]}"] += 1
            if word.split(":")[0] not in ("equivalent", "unchanged"):
                misses.append(f"{path.name} as {form.value}: {word}")
        if entry.get("fold") == "all":
            fused, _ = normfuse.fuse(path)
            left = sum(node.op_type == "BatchNormalization" for node in fused.graph.all_nodes())
            totals[label]["to fold"] += 1
            totals[label]["folded"] += left == 0
    print(f"| label | files | as expected | fold: all | {' | '.join(form.value for form in forms)} |")
    print("|---|---|---|---|" + "---|" * len(forms))
    for label, counts in totals.items():
        folds = f"{counts['folded']} of {counts['to fold']}" if counts["to fold"] else ""
        cells = []
        for form in forms:
            words = {key.split(" ", 1)[1]: n for key, n in counts.items() if key.startswith(f"{form.value} ")}
            cells.append(", ".join(f"{n} {word}" for word, n in sorted(words.items())))
        print(f"| {label} | {counts['files']} | {counts['found']} | {folds} | {' | '.join(cells)} |")
    if arguments.list:
        print("\n".join(misses))


if __name__ == "__main__":
    main()
