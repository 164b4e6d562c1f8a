"""The verdict on one value: pure functions of the truth, the perturbed runs, the reference's result and the
candidate's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from normfuse.report.verdict import Check, Verdict
from normfuse.validate import tolerance
from normfuse.validate.families import INFINITY, NAN
from normfuse.validate.rounding import Array, is_float, largest

_WORST_CHANNELS = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """One value for one input. ``reference`` None: there is no runtime's result, the truth stands for it.

    All float arrays in float64 or the runtime's type; ``perturbed`` from float64 runs with noise.
    """

    truth: Array
    perturbed: tuple[Array, ...]
    reference: Array | None
    candidate: Array

    @property
    def is_tensor(self) -> bool:
        """Whether both sides are one array: not a sequence of them, nor an absent optional."""
        return isinstance(self.truth, np.ndarray) and isinstance(self.candidate, np.ndarray)


@dataclass(frozen=True, slots=True)
class _Errors:
    """Squared errors of every element of one value, pooled or not, with the elements that count."""

    counted: Array
    truth: Array
    candidate: Array
    reference: Array
    noise: Array


@dataclass(frozen=True, slots=True)
class _Label:
    leg: str
    inputs: str
    subject: str

    def check(self, verdict: Verdict, detail: str, numbers: tuple[float, float, float] | None = None) -> Check:
        error, original, allowed = numbers or (math.nan, math.nan, math.nan)
        return Check(self.leg, self.inputs, self.subject, verdict, error, original, allowed, detail)


def judge(
    samples: Sequence[Sample],
    dtype: ir.DataType,
    *,
    leg: str,
    inputs: str,
    subject: str,
    by_channel: bool = True,
    quantised: bool = False,
) -> tuple[Check, ...]:
    """Return the check of one value over all ``samples`` of an input family, then one per failing channel (the worst
    three).

    Limits: at most 3·B per output, 5·B per channel (axis 1; for rank 3 the last axis as well) of 16 elements or more,
    and the maximum. Channels need the same number in every sample. Of a sequence every element is judged, all of them in
    the first check; an optional is absent on both sides or on none. quantised: a discrete value counts quanta, so where it
    is undecided it may be off by one, or by as much as rounding moves it.
    """
    label = _Label(leg, inputs, subject)
    if not all(sample.is_tensor for sample in samples):
        return (_judge_elements(samples, dtype, label),)
    for sample in samples:
        if np.shape(sample.candidate) != np.shape(sample.truth):
            detail = f"the shape is {_words(sample.candidate)}; the original gives {_words(sample.truth)}"
            return (label.check(Verdict.DIVERGENT, detail),)
        if sample.reference is not None and np.shape(sample.reference) != np.shape(sample.truth):
            detail = (
                f"the runtime gives the original {_words(sample.reference)} where the oracle has {_words(sample.truth)}"
            )
            return (label.check(Verdict.NOT_RUN, detail),)
    if not is_float(dtype):
        return (_judge_discrete(samples, label, quantised=quantised),)
    failure = None if inputs.startswith(INFINITY) else _judge_classes(samples, dtype, label)
    if failure is not None:
        return (failure,)
    errors = [_errors(sample) for sample in samples]
    whole = _judge_whole(samples, errors, dtype, label)
    if whole.allowed > 0:
        whole = replace(whole, histogram=_histogram(errors, whole.allowed))
    if whole.verdict is Verdict.NOT_RUN or not by_channel:
        return (whole,)
    return _with_channels(whole, errors, dtype, label)


def _words(array: Array) -> str:
    return "[" + ", ".join(str(size) for size in np.shape(array)) + "]"


def _judge_elements(samples: Sequence[Sample], dtype: ir.DataType, label: _Label) -> Check:
    """Sequences, element by element (the same number on both sides), and optionals without a value."""
    found: list[Check] = []
    for sample in samples:
        truth, candidate = _parts(sample.truth), _parts(sample.candidate)
        if len(truth) != len(candidate):
            words = f"{_number(len(candidate))}; the original gives {_number(len(truth))}"
            return label.check(Verdict.DIVERGENT, words)
        others = [_parts(other) for other in sample.perturbed]
        others = [other for other in others if len(other) == len(truth)]
        reference = None if sample.reference is None else _parts(sample.reference)
        if reference is not None and len(reference) != len(truth):
            words = f"the runtime gives the original {_number(len(reference))} where the oracle has {len(truth)}"
            return label.check(Verdict.NOT_RUN, words)
        for index, part in enumerate(truth):
            kind = dtype if part.dtype.kind == "f" else ir.DataType.UNDEFINED
            one = Sample(
                part,
                tuple(other[index] for other in others),
                None if reference is None else reference[index],
                candidate[index],
            )
            element = replace(label, subject=f"{label.subject}, element {index}")
            found.append(
                judge([one], kind, leg=element.leg, inputs=element.inputs, subject=element.subject, by_channel=False)[0]
            )
    worst = next((check for check in found if check.verdict is not Verdict.EQUIVALENT), None)
    return worst or label.check(Verdict.EQUIVALENT, f"all of {_number(len(found))} agree")


def _parts(value: object) -> list[Array]:
    """Return the arrays of a sequence; of an optional the one that it has, or none; of a tensor itself."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [part for item in value for part in _parts(item)]
    return [np.asarray(value)]


def _number(count: int) -> str:
    return f"{count} tensor{'' if count == 1 else 's'}"


def _judge_discrete(samples: Sequence[Sample], label: _Label, *, quantised: bool) -> Check:
    """Integers, bools and strings: equal, except where a perturbed run or r shows that the choice was undecided."""
    wrong = undecided = total = 0
    for sample in samples:
        truth = np.asarray(sample.truth)
        others = [*sample.perturbed, *(() if sample.reference is None else (sample.reference,))]
        free = np.zeros(truth.shape, dtype=bool)
        for other in others:
            free |= True if np.shape(other) != truth.shape else np.asarray(other) != truth
        candidate = np.asarray(sample.candidate)
        excused = free & _within_quanta(truth, candidate, others) if quantised and truth.dtype.kind in "iu" else free
        wrong += int(np.count_nonzero((candidate != truth) & ~excused))
        undecided += int(np.count_nonzero(free))
        total += truth.size
    aside = f"; {undecided} lie within rounding of a tie and were left out" if undecided else ""
    if wrong:
        return label.check(Verdict.DIVERGENT, f"{wrong} of {total} elements differ{aside}")
    if total and undecided == total:
        return label.check(Verdict.NOT_RUN, "every element lies within rounding of a tie: nothing can be said")
    return label.check(Verdict.EQUIVALENT, f"all {total - undecided} decided elements are equal{aside}")


def _within_quanta(truth: Array, candidate: Array, others: Sequence[Array]) -> Array:
    """Return where the candidate is off by one quantum at most, or by no more than rounding moved the truth."""
    wide = truth.astype(np.float64)
    allowed = np.ones(truth.shape)
    for other in others:
        if np.shape(other) == truth.shape:
            allowed = np.maximum(allowed, np.abs(np.asarray(other, dtype=np.float64) - wide))
    return np.abs(candidate.astype(np.float64) - wide) <= allowed


def _judge_classes(samples: Sequence[Sample], dtype: ir.DataType, label: _Label) -> Check | None:
    """NaN and infinity: return the failing check, or None.

    T finite, in range, and r finite: c must be finite. T finite and r not: c is free. T NaN or ±inf: c in the same
    class. |T| beyond the type's range: the infinity of its sign is allowed. Where the inputs themselves are NaN,
    NaN and the infinities are one class (:data:`families.NAN`).
    """
    is_one_class = label.inputs.startswith(NAN)
    limit = largest(dtype)
    lost = invented = free = 0
    for sample in samples:
        truth, candidate = np.asarray(sample.truth), np.asarray(sample.candidate)
        reference = truth if sample.reference is None else np.asarray(sample.reference)
        in_range = np.abs(truth) <= limit
        lost += int(np.count_nonzero(in_range & np.isfinite(reference) & ~np.isfinite(candidate)))
        free += int(np.count_nonzero(in_range & ~np.isfinite(reference)))
        if is_one_class:
            invented += int(np.count_nonzero(~np.isfinite(truth) & np.isfinite(candidate)))
            continue
        same = np.where(np.isnan(truth), np.isnan(candidate), candidate == truth)
        if sample.reference is not None:
            same |= ~np.isfinite(truth) & (np.isfinite(reference) | (np.isnan(reference) & np.isnan(candidate)))
        invented += int(np.count_nonzero(~np.isfinite(truth) & ~same))
    if lost:
        return label.check(Verdict.DIVERGENT, f"{lost} elements are NaN or infinite; the original's are finite")
    if invented:
        what = "finite" if is_one_class else "of another class"
        words = f"{invented} elements that are NaN or infinite in the original are {what}"
        return label.check(Verdict.DIVERGENT, words)
    if free and free == sum(sample.truth.size for sample in samples):
        return label.check(
            Verdict.NOT_RUN, "the original itself fails here: its results are NaN or infinite, the exact ones are not"
        )
    return None


def _errors(sample: Sample) -> _Errors:
    truth = np.asarray(sample.truth, dtype=np.float64)
    candidate = np.asarray(sample.candidate, dtype=np.float64)
    reference = truth if sample.reference is None else np.asarray(sample.reference, dtype=np.float64)
    with np.errstate(all="ignore"):
        counted = np.isfinite(truth) & np.isfinite(candidate) & np.isfinite(reference)
        noise = np.zeros(truth.shape)
        for other in sample.perturbed:
            difference = np.square(other - truth) if np.shape(other) == truth.shape else np.full(truth.shape, np.inf)
            noise += np.where(np.isfinite(difference), difference, 0.0)
        noise /= max(1, len(sample.perturbed))
        squares = [
            np.where(counted, np.square(array - base), 0.0)
            for array, base in ((truth, 0.0), (candidate, truth), (reference, truth))
        ]
    return _Errors(counted, squares[0], squares[1], squares[2], np.where(counted, noise, 0.0))


def _rms(squares: Sequence[Array], count: int) -> float:
    return math.sqrt(sum(float(item.sum()) for item in squares) / count) if count else 0.0


def _judge_whole(samples: Sequence[Sample], errors: Sequence[_Errors], dtype: ir.DataType, label: _Label) -> Check:
    count = sum(int(item.counted.sum()) for item in errors)
    size = _rms([item.truth for item in errors], count)
    error = _rms([item.candidate for item in errors], count)
    original = _rms([item.reference for item in errors], count)
    noise = _rms([item.noise for item in errors], count)
    fails = original > tolerance.REFERENCE_FAILS_SHARE * size and original > tolerance.REFERENCE_FAILS_ROUNDINGS * max(
        noise, tolerance.budget(0.0, 0.0, size, dtype)
    )
    floor = tolerance.budget(0.0, noise, size, dtype)
    allowed = tolerance.OUTPUT_FACTOR * (floor if fails else tolerance.budget(original, noise, size, dtype))
    numbers = (error, original, allowed)
    words = _sentence(numbers, size, dtype)
    if tolerance.is_ill_conditioned(noise, size, dtype):
        return label.check(
            Verdict.NOT_RUN,
            f"ill-conditioned: rounding alone changes {noise / size if size else 1:.1%}; {words}",
            numbers,
        )
    if fails and error > allowed:
        apart = _rms(
            [np.square(_finite(s.candidate) - _finite(s.reference)) for s in samples if s.reference is not None], count
        )
        if apart > allowed:
            return label.check(
                Verdict.NOT_RUN, f"the original itself fails here: its error is {original / size:.1%}; {words}", numbers
            )
        return label.check(
            Verdict.EQUIVALENT, f"the original itself fails here, and the candidate in the same way; {words}", numbers
        )
    if error > allowed:
        return label.check(Verdict.DIVERGENT, words, numbers)
    highest = [_highest([getattr(item, name) for item in errors]) for name in ("candidate", "reference", "noise")]
    limit = tolerance.largest_allowed(
        highest[1], noise, highest[2] * math.sqrt(tolerance.PERTURBED_RUNS), allowed / tolerance.OUTPUT_FACTOR
    )
    if highest[0] > limit:
        largest_numbers = (highest[0], highest[1], limit)
        return label.check(
            Verdict.DIVERGENT, "at one element: " + _sentence(largest_numbers, size, dtype), largest_numbers
        )
    return label.check(Verdict.EQUIVALENT, words, numbers)


def _histogram(errors: Sequence[_Errors], limit: float) -> tuple[tuple[int, ...], ...]:
    """Return, for the candidate and the original, how many elements are off by less than 2^k budgets; see Check."""
    edges = np.concatenate([[-1.0], (limit / tolerance.OUTPUT_FACTOR * 2.0 ** np.arange(-6, 6)) ** 2, [np.inf]])
    return tuple(
        tuple(np.sum([np.histogram(getattr(item, name)[item.counted], edges)[0] for item in errors], axis=0).tolist())
        for name in ("candidate", "reference")
    )


def _finite(array: Array | None) -> Array:
    return np.nan_to_num(np.asarray(array, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _highest(squares: Sequence[Array]) -> float:
    return math.sqrt(max((float(item.max(initial=0.0)) for item in squares), default=0.0))


def _sentence(numbers: tuple[float, float, float], size: float, dtype: ir.DataType) -> str:
    error, original, allowed = (tolerance.in_ulp(item, size, dtype) for item in numbers)
    if math.isnan(error):
        return f"error {numbers[0]:.3g}, the original's own is {numbers[1]:.3g}, allowed {numbers[2]:.3g}"
    return f"error {error:.2g} ulp, the original's own is {original:.2g}, allowed {allowed:.2g}"


def channel_axes(rank: int) -> tuple[int, ...]:
    """Return the axes whose slices are groups: 1; in rank 3, where either may be the features, 1 and 2."""
    return (1, 2) if rank == 3 else (1,) if rank >= 2 else ()


def _pooled(arrays: Sequence[Array], axis: int) -> Array:
    sums = [np.moveaxis(array, axis, 0).sum(axis=tuple(range(1, array.ndim))) for array in arrays]
    return np.asarray(np.sum(sums, axis=0))


def _with_channels(whole: Check, errors: Sequence[_Errors], dtype: ir.DataType, label: _Label) -> tuple[Check, ...]:
    failing: list[tuple[float, Check]] = []
    judged = 0
    for axis in channel_axes(errors[0].truth.ndim):
        if len({item.truth.shape[axis] for item in errors}) != 1:
            continue
        count = _pooled([item.counted for item in errors], axis)
        safe = np.maximum(count, 1)
        names = ("truth", "candidate", "reference", "noise")
        size, error, original, noise = (
            np.sqrt(_pooled([getattr(item, name) for item in errors], axis) / safe) for name in names
        )
        enough = count >= tolerance.GROUP_ELEMENTS
        judged += int(np.count_nonzero(enough))
        for channel in np.nonzero(enough)[0]:
            allowed = tolerance.CHANNEL_FACTOR * tolerance.budget(
                original[channel], noise[channel], size[channel], dtype
            )
            if error[channel] <= allowed:
                continue
            numbers = (float(error[channel]), float(original[channel]), float(allowed))
            where = "channel" if axis == 1 else "last-axis index"
            subject = replace(label, subject=f"{label.subject}[{where} {channel}]")
            words = _sentence(numbers, float(size[channel]), dtype)
            failing.append((error[channel] / allowed, subject.check(Verdict.DIVERGENT, words, numbers)))
    if not failing:
        return (whole,)
    failing.sort(key=lambda item: -item[0])
    if whole.verdict is Verdict.EQUIVALENT:
        whole = replace(
            whole, verdict=Verdict.DIVERGENT, detail=f"{len(failing)} of {judged} channels are off; {whole.detail}"
        )
    return (whole, *(check for _, check in failing[:_WORST_CHANNELS]))
