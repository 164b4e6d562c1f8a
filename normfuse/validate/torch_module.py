"""A torch module against the model that was exported from it: the module in float64 is the truth.

End to end as for two graphs, with the module's own float32 run as the original; and norm layer by norm layer: what goes
into a norm is captured in the module, put through the part of the graph that computes its result, alone, and compared
with what the module gives. Which value of the graph is which tensor of the module is found by comparing the numbers, so
that it does not matter what the exporter called it, or what was folded into what.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.report.verdict import Check, FailingInputs, Leg, Ranking, ValidationReport, Verdict
from normfuse.validate import pairing, tolerance
from normfuse.validate.backends import Backend
from normfuse.validate.call import OracleCannotRun, OracleFailed
from normfuse.validate.compare import Sample, judge
from normfuse.validate.environment import environment
from normfuse.validate.given import read_user_inputs
from normfuse.validate.held import Held
from normfuse.validate.inputs import Family, InputSpec, input_specs
from normfuse.validate.legs import Outcome, conclude, lost
from normfuse.validate.listening import Captured, Layer, run_module
from normfuse.validate.matching import Matched, match
from normfuse.validate.noise import ordinary
from normfuse.validate.on_backend import Runner, judged, ran_elsewhere, why_not
from normfuse.validate.oracle import Oracle
from normfuse.validate.plan import families
from normfuse.validate.ranking import rankings
from normfuse.validate.repeat import left_open, unsteady
from normfuse.validate.rounding import Array
from normfuse.validate.sessions import Failure, Results, Task
from normfuse.validate.truth import Truth, moved


def validate_module(
    module: Any,
    candidate: pairing.Source,
    backends: Sequence[Backend],
    inputs: Path | Sequence[Mapping[str, Any]] | None,
    runner: Runner,
    *,
    quick: bool,
) -> ValidationReport:
    """Return whether ``candidate`` computes what ``module`` does in inference. The module is not changed.

    Raises ValidationError where the outputs do not pair up or the module rejects the inputs.
    """
    subject = pairing.load(candidate, "candidate")
    specs = input_specs(subject.model)
    oracle = Oracle(subject.model)
    chosen, notes = (
        ([read_user_inputs(inputs, specs)], []) if inputs is not None else families(oracle, specs, quick=quick)
    )
    wide, plain = _in_float64(module), _beside(module)
    truths: list[Truth] = []
    originals: list[dict[str, Array]] = []
    found: list[dict[str, Array]] = []
    for family in chosen:
        truth, theirs, ours = _truth(wide, plain, oracle, family, specs)
        truths.append(truth)
        originals.extend(theirs)
        found.extend(ours)
    outputs = list(oracle.graph.outputs)
    drawn = _unsteady(truths[0], outputs, originals[0], wide, plain, specs)
    checks = _end_to_end(truths, originals, found, outputs, drawn)
    layer_checks, summary = _by_layer(wide, oracle, chosen[0], specs)
    every_check = (*checks, *layer_checks)
    leg = conclude("oracle", every_check, "; ".join(drawn.values()))
    steady = [value for value in outputs if value.name not in drawn]
    ranked = rankings("oracle", steady, _on_providers(truths, _exact(truths)), _on_providers(truths, found))
    outcomes = [Outcome(leg, every_check, (*summary, *notes), rankings=ranked)]
    with pairing.scratch_folder() as folder:
        path = subject.on_disk(Path(folder))
        outcomes += [_on(backend, path, truths, originals, outputs, drawn, runner) for backend in backends]
    every = tuple(check for outcome in outcomes for check in outcome.checks)
    return ValidationReport(
        tuple(outcome.leg for outcome in outcomes),
        every,
        tuple(dict.fromkeys(note for outcome in outcomes for note in outcome.notes)),
        rankings=tuple(ranking for outcome in outcomes for ranking in outcome.rankings),
        environment=environment(),
        failing=FailingInputs(chosen[0].name, chosen[0].feeds)
        if any(check.verdict is Verdict.DIVERGENT for check in every)
        else None,
    )


def _in_float64(module: Any) -> Any:
    """Return a copy of ``module`` for inference in float64; its weights are converted on the way, not copied before."""
    import torch

    converted = {
        id(item): torch.nn.Parameter(item.detach().double(), requires_grad=False)
        for item in module.parameters()
        if type(item) is torch.nn.Parameter and item.is_floating_point()
    }
    return copy.deepcopy(module, converted).double().eval()


def _beside(module: Any) -> Any:
    """Return a copy of ``module`` for inference that has its own state and buffers, and the module's very weights."""
    return copy.deepcopy(module, {id(item): item for item in module.parameters()}).eval()


def _truth(
    wide: Any, plain: Any, oracle: Oracle, family: Family, specs: Sequence[InputSpec]
) -> tuple[Truth, list[dict[str, Array]], list[dict[str, Array]]]:
    """Return the module in float64, the module as it is, and the graph in float64, on every feed.

    What rounding does is measured on the graph: its perturbed runs, moved to where the module's truth lies.
    """
    names = [value.name or "" for value in oracle.graph.outputs]
    outputs, perturbed, originals, found = [], [], [], []
    for feed in family.feeds:
        exact = dict(zip(names, run_module(wide, feed, specs, len(names), double=True).outputs, strict=True))
        plainly = run_module(plain, feed, specs, len(names), double=False).outputs
        clean = oracle.run(feed)
        oracle.forget()
        noisy = [oracle.run(feed, noise=noise) for noise in ordinary(family.runs)]
        oracle.forget()
        outputs.append({name: Held(array, clean[name].dtype) for name, array in exact.items()})
        perturbed.append(tuple({name: moved(run[name], clean[name], exact[name]) for name in names} for run in noisy))
        originals.append(dict(zip(names, plainly, strict=True)))
        found.append({name: clean[name].data for name in names})
    return Truth(family, tuple(outputs), tuple(perturbed), None), originals, found


def _exact(truths: Sequence[Truth]) -> list[dict[str, Array]]:
    return [{name: held.data for name, held in run.items()} for truth in truths for run in truth.outputs]


def _on_providers(truths: Sequence[Truth], runs: Sequence[dict[str, Array]]) -> list[dict[str, Array]]:
    """Return those of ``runs``, one a feed, whose family a runtime is held to."""
    kept = [truth.family.on_providers for truth in truths for _ in truth.family.feeds]
    return [run for run, keep in zip(runs, kept, strict=True) if keep]


def _unsteady(
    truth: Truth, outputs: Sequence[ir.Value], own: dict[str, Array], wide: Any, plain: Any, specs: Sequence[InputSpec]
) -> dict[str, str]:
    """Return the outputs that the module has otherwise when it runs again on the first feed of ``truth``, in words."""
    names = [value.name or "" for value in outputs]
    exact = {name: truth.outputs[0][name].data for name in names}
    found: dict[str, str] = {}
    for module, first in ((plain, own), (wide, exact)):
        run = run_module(module, truth.family.feeds[0], specs, len(names), double=module is wide)
        found.update(unsteady(truth, outputs, first, dict(zip(names, run.outputs, strict=True)), "module"))
    return found


def _end_to_end(
    truths: Sequence[Truth],
    originals: Sequence[dict[str, Array]],
    found: Sequence[dict[str, Array]],
    outputs: Sequence[ir.Value],
    drawn: Mapping[str, str],
) -> list[Check]:
    checks: list[Check] = []
    start = 0
    for truth in truths:
        count = len(truth.family.feeds)
        for value in outputs:
            name = value.name or ""
            subject = f"output '{name}'"
            if name in drawn:
                checks.append(left_open(drawn[name], "oracle", truth.family.name, subject))
                continue
            samples = [
                Sample(
                    truth.outputs[index][name].data,
                    tuple(run[name].data for run in truth.perturbed[index]),
                    originals[start + index][name],
                    found[start + index][name],
                )
                for index in range(count)
            ]
            dtype = truth.outputs[0][name].dtype
            inputs, by_channel = truth.family.name, truth.family.by_channel
            checks += judge(samples, dtype, leg="oracle", inputs=inputs, subject=subject, by_channel=by_channel)
        start += count
    return checks


def _on(
    backend: Backend,
    path: Path,
    truths: Sequence[Truth],
    originals: Sequence[dict[str, Array]],
    outputs: Sequence[ir.Value],
    drawn: Mapping[str, str],
    runner: Runner,
) -> Outcome:
    """Judge the exported model on ``backend``; the module's own run is the original.

    drawn: outputs that the module has otherwise in every run, in words; they are left open.
    """
    own = Results(tuple(_on_providers(truths, originals)), "torch")
    truths = [truth for truth in truths if truth.family.on_providers]
    feeds = [feed for truth in truths for feed in truth.family.feeds]
    checks: list[Check] = []
    notes: list[str] = []
    ranked: tuple[Ranking, ...] = ()
    steady = [value for value in outputs if value.name not in drawn]
    for level, answer in zip(
        runner.levels, runner.run(backend, [Task(path, level) for level in runner.levels], feeds), strict=True
    ):
        if isinstance(answer, Failure):
            reason = why_not(answer, backend)
            if not reason.startswith("it cannot run"):
                return Outcome(Leg(backend.name, Verdict.NOT_RUN, reason))
            words = f"the module runs and the exported model does not: {answer}"
            checks.append(lost(backend.name, level.words, "the whole graph", words))
            continue
        checks.extend(judged(backend.name, level.words, truths, outputs, own, answer, drawn))
        ranked = rankings(backend.name, steady, own.outputs, answer.outputs)
        notes.extend(ran_elsewhere(backend, level, "exported model", answer))
    leg = conclude(backend.name, checks, "; ".join(drawn.values()))
    return Outcome(leg, tuple(checks), tuple(notes), rankings=ranked)


def _by_layer(
    wide: Any, oracle: Oracle, family: Family, specs: Sequence[InputSpec]
) -> tuple[list[Check], tuple[str, ...]]:
    """Judge every norm layer alone; return the checks and how many layers that were.

    Where one fails, the module is listened to again: a layer whose result is not the same then is left open.
    """
    feed = family.feeds[0]
    captured = run_module(wide, feed, specs, len(oracle.graph.outputs), double=True, listen=True)
    layers = list(captured.layers.values())
    try:
        matched = match(oracle, feed, captured.tensors)
    except (OracleCannotRun, OracleFailed) as error:
        return [], (f"no norm layer could be judged alone: {error}",)
    checks: list[Check] = []
    alone = 0
    missing: list[str] = []
    unknown: list[str] = []
    again: Captured | None = None
    for layer in layers:
        own = [_layer_checks(oracle, matched, layer, result, family.name) for result in layer.results]
        if any(check.verdict is Verdict.DIVERGENT for item in own for check in item):
            again = again or run_module(wide, feed, specs, len(oracle.graph.outputs), double=True, listen=True)
            if not _is_repeated(layer, again.layers.get(layer.name)):
                unknown.append(layer.name)
                continue
        if all(own):
            alone += 1
        else:
            missing.append(layer.name)
        checks += [check for item in own for check in item]
    notes = [f"verified {alone} of {len(layers)} norm layers alone"]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        notes.append(
            "judged end to end only, since no value of the exported graph is their result (folded or merged into what "
            f"follows, left out, or far off): {', '.join(missing[:8])}{more}"
        )
    if unknown:
        notes.append(f"norm layers whose result differs from run to run, not judged: {', '.join(unknown)}")
    return checks, tuple(notes)


def _is_repeated(layer: Layer, again: Layer | None) -> bool:
    """Return whether every call of a layer gave the same in another run."""
    if again is None or len(again.results) != len(layer.results):
        return False
    return all(np.array_equal(*pair, equal_nan=True) for pair in zip(layer.results, again.results, strict=True))


def _layer_checks(oracle: Oracle, matched: Matched, layer: Layer, result: Array, inputs: str) -> tuple[Check, ...]:
    part = matched.part_for(oracle, result)
    if part is None:
        return ()
    target, known = part
    clean = oracle.evaluate(known, [target])[target]
    oracle.forget()
    noisy = [oracle.evaluate(known, [target], noise=noise)[target] for noise in ordinary(tolerance.PERTURBED_RUNS)]
    oracle.forget()
    perturbed = tuple(moved(item, clean, result).data for item in noisy)
    sample = Sample(result, perturbed, None, clean.data)
    subject = f"norm '{layer.name}' ({layer.kind})"
    return judge([sample], clean.dtype, leg="oracle", inputs=inputs, subject=subject)
