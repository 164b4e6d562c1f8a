"""Take real architectures through export, fuse and validate, and print what became of their norms.

    python tools/real_models.py                   builds an environment in build/real-models, runs there
    python tools/real_models.py --here resnet     runs in this environment, the models whose name contains "resnet"
    python tools/real_models.py --opset 18 --form standard custom ort primitive
    python tools/real_models.py --reasons dense   why norms stay, counted, instead of the table

The architectures are those of tools/architectures.py. Every norm gets random statistics that are not 0 and 1, every bias
of zeros other values. For each model: norms before and after, nodes, the worst error as a share of what its budget allows,
the verdict, and the seconds of export, fuse and validate; and how many norms are still written in several operators (all
are in the form primitive, and where the opset has no operator).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.architectures import MODELS, Built  # noqa: E402  (the checkout must be on the path first)
from tools.environments import chosen, of_real_models, parser_of, run_there  # noqa: E402

if TYPE_CHECKING:
    import onnx_ir as ir


def norm_counts(model: ir.Model) -> str:
    """Return the norms of a model by kind: "20 batch"."""
    from collections import Counter

    import normfuse

    report = normfuse.inspect(model)
    counts = Counter(record.norm for record in report.norms)
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def decomposed(model: ir.Model) -> int:
    """Return how many norms of a model are written in several operators; batch norms as arithmetic are none."""
    import normfuse

    records = normfuse.inspect(model, normfuse.Target(normfuse.Form.CUSTOM)).norms
    return sum(len(record.nodes) > 1 for record in records if record.norm != "batch")


def exported(build: Callable[[], Built], opset: int | None = None) -> ir.Model:
    """Return a model as it is exported, its norms with random statistics that are not 0 and 1, biases not 0."""
    import normfuse

    return normfuse.export(*randomised(build), opset=opset)


def exported_in_own_form(build: Callable[[], Built]) -> ir.Model | None:
    """Return the same model in the form that its library has for inference; None where it has none (timm only)."""
    import normfuse

    module, inputs = randomised(build)
    if not any(hasattr(part, "reparameterize") for part in module.modules()):
        return None
    from timm.utils.model import reparameterize_model

    return normfuse.export(reparameterize_model(module), inputs)


def randomised(build: Callable[[], Built]) -> Built:
    """Return a module for inference, with random statistics and biases, and its inputs; the same each time."""
    from models.statistics import randomise_biases, randomise_statistics, seeded

    with seeded(0), contextlib.redirect_stdout(open(os.devnull, "w")):
        module, inputs = build()
    return randomise_biases(randomise_statistics(module.eval(), seed=1), seed=2), inputs


def rows(build: Callable[[], Built], forms: list[str], opset: int | None) -> Iterator[list[str]]:
    """Export one model, fuse and validate it in every form; yield a row of the table for each."""
    import normfuse
    from normfuse.emit.target import Form

    start = time.perf_counter()
    original = exported(build, opset)
    exporting = time.perf_counter() - start
    for form in forms:
        clock = [time.perf_counter()]
        fused, report = normfuse.fuse(original, normfuse.Target(Form(form)))
        clock.append(time.perf_counter())
        verdict = normfuse.validate(original, fused)
        clock.append(time.perf_counter())
        shares = [check.error / check.allowed for check in verdict.checks if check.allowed > 0]
        seconds = [exporting, *(after - before for before, after in itertools.pairwise(clock))]
        yield [
            build.__name__,
            form,
            norm_counts(original),
            norm_counts(fused),
            str(decomposed(fused)),
            f"{report.nodes.before}→{report.nodes.after}",
            f"{max(shares):.2f}" if shares else "-",
            " ".join(f"{leg.name}:{leg.verdict.value}" for leg in verdict.legs),
            "/".join(f"{each:.1f}" for each in seconds),
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f}",
        ]


def reasons(build: Callable[[], Built]) -> Iterator[str]:
    """Export one model and fuse it; say how many of its batch norms are absorbed, and count why the others are not."""
    import re
    from collections import Counter

    import normfuse

    original = exported(build)
    _, report = normfuse.fuse(original)
    plans = [record.plan for record in report.norms if record.norm == "batch"]
    yield f"{build.__name__}: {len(plans) - plans.count('keep')} of {len(plans)} batch norms are absorbed"
    counts = Counter(re.sub(r" '[^']*'", "", record.reason) for record in report.declined)
    for reason, count in counts.most_common():
        yield f"  {count} × {reason}"


def run(names: list[str], forms: list[str], opset: int | None, *, why: bool) -> int:
    """Print the table, or the reasons; return 1 if any model is not equivalent."""
    warnings.simplefilter("ignore")
    if why:
        print("\n".join(line for build in chosen(MODELS, names) for line in reasons(build)))
        return 0
    print(
        "| model | form | norms before | after | of several operators | nodes | worst error / allowed | verdict "
        "| export/fuse/validate s | peak GB |"
    )
    print("|---" * 10 + "|")
    failed = 0
    for build in chosen(MODELS, names):
        try:
            for cells in rows(build, forms, opset):
                failed += "DIVERGENT" in cells[-3]
                print(f"| {' | '.join(cells)} |", flush=True)
        except Exception as error:
            failed += 1
            print(f"| {build.__name__} | {type(error).__name__}: {str(error).splitlines()[0][:120]} |", flush=True)
    return 1 if failed else 0


def main() -> None:
    """Parse the command line and run, in an environment of its own unless told otherwise."""
    parser = parser_of(__doc__)
    parser.add_argument("--reasons", action="store_true", help="count why batch norms stay")
    parser.add_argument("--form", nargs="+", default=["auto"])
    parser.add_argument("--opset", type=int, help="the opset of the export")
    parser.add_argument("--environment", type=Path, default=ROOT / "build" / "real-models")
    arguments = parser.parse_args()
    if arguments.here:
        sys.exit(run(arguments.names, arguments.form, arguments.opset, why=arguments.reasons))
    words = [*arguments.names, "--form", *arguments.form]
    words += ["--opset", str(arguments.opset)] if arguments.opset else []
    words += ["--reasons"] if arguments.reasons else []
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(run_there(of_real_models(arguments.environment), __file__, words, folder))


if __name__ == "__main__":
    main()
