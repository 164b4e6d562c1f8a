"""The main job as a story: train, export, fuse, verify, measure. Run it with ``python -m models.demo``.

A ConvNet with batch norm learns handwritten digits; its batch norms are folded away, and every prediction stays what
it was. Then a UNet, a style-transfer net and a recurrent net, whose norms cannot be folded, go the same way.
"""

from __future__ import annotations

import argparse
import collections
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

import models
import normfuse
from models.digits import EPOCHS, Digits, Run, digits, train

QUICK_EPOCHS = 3
DONE = {"fold": "folded", "emit": "rewritten", "keep": "kept"}
OTHERS = ("unet", "style_transfer", "lstm")
Feeds = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class Timing:
    """Median seconds of a run of each, and the median of the ratio original / fused within a pair of runs."""

    original: float
    fused: float
    ratio: float

    def __str__(self) -> str:
        return f"{self.original * 1e3:.3f} → {self.fused * 1e3:.3f}  {self.ratio:.2f}×"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One model on its way: its norms, what was done to them, nodes before and after, the verdict, the times."""

    name: str
    original: Path
    fused: Path
    norms: str
    done: str
    nodes: tuple[int, int]
    verdict: normfuse.Verdict
    as_deployed: Timing
    unoptimized: Timing


def main(arguments: Sequence[str] | None = None) -> int:
    """Tell the story; return 0 when every model was verified and no prediction changed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m models.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for models and the picture")
    parser.add_argument("--quick", action="store_true", help="a few epochs, one input family, short timings")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    console = Console(width=110, highlight=False)

    console.print("[bold]1. Train.[/bold] Handwritten digits of 8×8 pixels (scikit-learn), the same ConvNet twice.")
    data = digits()
    runs = {
        label: train(data, batch_norm=batch_norm, epochs=QUICK_EPOCHS if options.quick else EPOCHS)
        for label, batch_norm in (("with BatchNorm", True), ("without", False))
    }
    for label, run in runs.items():
        console.print(
            f"   {label:>14}: {_first_above(run, 0.9)}; at the end {run.accuracies[-1]:.1%} right on "
            f"{len(data.test_labels)} unseen images, {run.seconds:.1f} s"
        )
    picture = draw(runs, options.output / "learning-curves.png")
    console.print(f"   Learning curves: {picture}\n")

    console.print("[bold]2. Export, fuse, verify.[/bold] The trained net with BatchNorm, to ONNX.")
    module = runs["with BatchNorm"].module
    images = data.test_images.numpy()
    convnet = bring("digits ConvNet", module, data.test_images[:1], options.output, quick=options.quick)
    same = unchanged_predictions(convnet, data)
    console.print(f"   Norms: {convnet.norms}; {convnet.done}. Nodes: {convnet.nodes[0]} → {convnet.nodes[1]}.")
    console.print(f"   Against the float64 truth and in onnxruntime: [bold]{convnet.verdict.value}[/bold].")
    console.print(f"   Test-set predictions unchanged: {same} of {len(images)}.\n")

    console.print("[bold]3. Measure,[/bold] and three nets whose norms depend on the input: nothing to fold there.")
    outcomes = [convnet]
    for name in OTHERS:
        sample = models.find(name)
        (x,) = sample.example_inputs()
        outcomes.append(bring(name, sample.factory(), x[:1], options.output, quick=options.quick))
    console.print(table(outcomes))
    console.print(
        "Medians of one run, one sample, one CPU thread of onnxruntime, original and fused in turns. As deployed, "
        "onnxruntime folds Conv+BatchNormalization itself each time it loads a model: the fold done beforehand saves "
        "that work and changes no running time. It shows where a runtime does not optimize. Where every norm is kept, "
        "both files hold the same nodes, and a ratio other than 1 is the machine's."
    )
    console.print(f"Models: {options.output}/*.onnx. The whole story took {time.perf_counter() - begin:.0f} s.")
    verified = all(outcome.verdict is normfuse.Verdict.EQUIVALENT for outcome in outcomes)
    return 0 if verified and same == len(images) else 1


def bring(name: str, module: Any, inputs: Any, folder: Path, *, quick: bool) -> Outcome:
    """Return what becomes of ``module`` exported with a dynamic batch, saved, fused, saved, verified and timed."""
    stem = name.replace(" ", "-")
    original, fused = folder / f"{stem}.onnx", folder / f"{stem}.fused.onnx"
    exported = normfuse.export(module, inputs, input_names=["x"], dynamic={"x": {0: "batch"}})
    normfuse.save(exported, original)
    model, report = normfuse.fuse(original)
    normfuse.save(model, fused)
    verdict = normfuse.validate(original, fused, quick=quick).verdict
    kinds = collections.Counter(record.norm for record in report.norms)
    plans = collections.Counter(record.plan.split()[0] for record in report.norms)
    feeds = {"x": inputs.numpy()}
    return Outcome(
        name=name,
        original=original,
        fused=fused,
        norms=", ".join(f"{count} {kind}" for kind, count in kinds.items()),
        done=", ".join(f"{count} {DONE[plan]}" for plan, count in plans.items()),
        nodes=(report.nodes.before, report.nodes.after),
        verdict=verdict,
        as_deployed=measure(original, fused, feeds, optimize=True, seconds=0.5 if quick else 2.0),
        unoptimized=measure(original, fused, feeds, optimize=False, seconds=0.5 if quick else 2.0),
    )


def unchanged_predictions(outcome: Outcome, data: Digits) -> int:
    """Return for how many test images the original and the fused model name the same digit."""
    feeds = {"x": data.test_images.numpy()}
    plain, fused = session(outcome.original, optimize=True), deployed(outcome.fused, optimize=True)
    before, after = (each.run(None, feeds)[0] for each in (plain, fused))
    return int(np.sum(before.argmax(1) == after.argmax(1)))


def session(path: Path, *, optimize: bool) -> Any:
    """Return onnxruntime's own session on one CPU thread, with all of its graph optimizations or none."""
    return ort.InferenceSession(path, options_of(optimize=optimize), providers=["CPUExecutionProvider"])


def deployed(path: Path, *, optimize: bool) -> Any:
    """Return the same as normfuse makes it: with the native operators, where they are built."""
    return normfuse.session(path, session_options=options_of(optimize=optimize))


def options_of(*, optimize: bool) -> Any:
    """Return options of one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    return options


def measure(original: Path, fused: Path, feeds: Feeds, *, optimize: bool, seconds: float) -> Timing:
    """Return the medians of runs in pairs, each pair in the other order than the last, for about ``seconds``.

    A busy machine slows both runs of a pair alike, so that the ratio within pairs can be told where the times waver.
    """
    pair = [session(original, optimize=optimize), deployed(fused, optimize=optimize)]
    for one in pair:
        one.run(None, feeds)
    taken: list[list[float]] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(taken) < 10:
        times = [0.0, 0.0]
        for index in (0, 1) if len(taken) % 2 else (1, 0):
            begin = time.perf_counter()
            pair[index].run(None, feeds)
            times[index] = time.perf_counter() - begin
        taken.append(times)
    before, after = zip(*taken, strict=True)
    ratio = statistics.median(one / other for one, other in taken)
    return Timing(statistics.median(before), statistics.median(after), ratio)


def draw(runs: Mapping[str, Run], path: Path) -> Path:
    """Draw training loss and test accuracy by epoch to ``path``; return it."""
    figure = matplotlib.figure.Figure(figsize=(9.0, 3.5), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for (label, run), style in zip(runs.items(), ("-", "--"), strict=True):
        epochs = range(1, len(run.losses) + 1)
        loss.plot(epochs, run.losses, style, label=label)
        accuracy.plot(epochs, run.accuracies, style, label=label)
    for axes, title in ((loss, "training loss"), (accuracy, "accuracy on unseen digits")):
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    accuracy.set_ylim(0.0, 1.02)
    accuracy.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)
    return path


def table(outcomes: Sequence[Outcome]) -> Table:
    """Return one line for each model."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "norms", "done", "nodes", "verdict", "as deployed, ms", "not optimizing, ms"):
        shown.add_column(column)
    for outcome in outcomes:
        shown.add_row(
            outcome.name,
            outcome.norms,
            outcome.done,
            f"{outcome.nodes[0]} → {outcome.nodes[1]}",
            outcome.verdict.value,
            str(outcome.as_deployed),
            str(outcome.unoptimized),
        )
    return shown


def _first_above(run: Run, share: float) -> str:
    reached = [epoch for epoch, accuracy in enumerate(run.accuracies, 1) if accuracy > share]
    return f"above {share:.0%} after epoch {reached[0]}" if reached else f"never above {share:.0%}"


if __name__ == "__main__":
    raise SystemExit(main())
