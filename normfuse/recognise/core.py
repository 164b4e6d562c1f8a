"""From a term to a norm: ``± d · (mean(d²) + ε)^(−1/2) · γ + β`` with d = x − mean(x), or d = x.

The batch form ``x · r + (β − mean(x) · r)`` is the same term multiplied out. What looks like it and is not, is named.
"""

from __future__ import annotations

from dataclasses import dataclass

from normfuse.recognise.terms import Factors, Floor, Magnitude, Mean, Parameter, Sum, Term, Terms, Variable, X

_UNBIASED = "its variance is unbiased: the sum of squares is divided by N − 1"
_NEGLIGIBLE = 1e-8
"""The largest epsilon outside the root that is taken for its square inside: they differ where σ is as small."""
_CANCELS = "its variance is E[x²] − E[x]², which cancels at large means"


@dataclass(frozen=True, slots=True)
class Core:
    """A norm of x over ``axes`` as a term says it.

    sign: −1 where ``μ − x`` was normalised and no parameter took the sign. scale: exponents of the parameters that
    multiply; bias: those of each parameter product that is added, with its coefficient. mean, root: the numbers of the
    bases that average the squares, and that are variance plus epsilon. flag: why the numbers of this spelling differ from
    those of the norm.
    """

    axes: tuple[int, ...]
    epsilon: float
    centred: bool
    sign: float
    scale: Factors
    bias: tuple[tuple[Factors, float], ...]
    mean: int
    root: int
    flag: str | None = None


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A term that divides by something like a deviation, and is no norm.

    is_scaled: all that is wrong may be a number behind it, so that what is said of an inner value says more.
    """

    reason: str
    is_scaled: bool = False


@dataclass(frozen=True, slots=True)
class _Root:
    """``(mean(base²) + ε)^(−1/2)``; centred: base is x − mean(x) over ``means``."""

    axes: tuple[int, ...]
    epsilon: float
    centred: bool
    mean: int
    flag: str | None = None


def core_of(term: Term, terms: Terms) -> Core | NearMiss | None:
    """Return the norm that ``term`` is; None where it is nothing like one."""
    constant, addends = terms.addends(term)
    moving = [item for item in addends if _is_moving(item[0], terms)]
    added = tuple(item for item in addends if item not in moving)
    if constant != 0.0 or not 1 <= len(moving) <= 2:
        return None
    parts = [_divided(factors, terms) for factors, _ in moving]
    if any(part is None for part in parts):
        return None
    (numerator, root, scale), *others = [part for part in parts if part is not None]
    if any(other[1] != root or other[2] != scale for other in others):
        return None
    reading = _read_root(root, terms)
    if not isinstance(reading, _Root):
        return reading
    coefficient = moving[0][1]
    if others:
        # x·r − μ·r: one of the two is x, the other its mean.
        total: Term | None = Term(coefficient, numerator)
        assert total is not None
        total = terms.add(total, Term(moving[1][1], others[0][0]))
        if total is None or len(total.factors) != 1:
            return None
        numerator, coefficient = total.factors, total.coefficient
    objection = _numerator_objection(numerator, reading, terms)
    if objection is not None:
        return objection
    if abs(abs(coefficient) - 1.0) > 1e-9:
        return _scaled(coefficient, reading)
    sign = 1.0 if coefficient > 0 else -1.0
    return Core(reading.axes, reading.epsilon, reading.centred, sign, scale, added, reading.mean, root[0], reading.flag)


def _is_moving(factors: Factors, terms: Terms) -> bool:
    """Whether x occurs, so that this is no part of β."""
    return any(not isinstance(terms.base(base), Parameter) for base, _ in factors)


def _has_mean(factors: Factors, terms: Terms) -> bool:
    """Whether a mean occurs among ``factors``: μ·r of the form x·r + (β − μ·r)."""
    return any(isinstance(terms.base(base), Mean) for base, _ in factors)


def _divided(factors: Factors, terms: Terms) -> tuple[Factors, tuple[int, float], Factors] | None:
    """Split into the numerator, the one base with a negative power that does not vary, and parameters."""
    roots = [item for item in factors if item[1] < 0 and not isinstance(terms.base(item[0]), Parameter)]
    if len(roots) != 1 or terms.varies((roots[0],)):
        return None
    scale = tuple(item for item in factors if isinstance(terms.base(item[0]), Parameter))
    numerator = tuple(item for item in factors if item is not roots[0] and item not in scale)
    return (numerator, roots[0], scale) if numerator else None


def _read_root(root: tuple[int, float], terms: Terms) -> _Root | NearMiss | None:
    """Read the denominator: ``V + ε`` to the power −1/2, V a mean of squares."""
    base, exponent = root
    meaning = terms.base(base)
    if exponent != -0.5:
        return _outside(meaning, exponent, terms)
    if isinstance(meaning, Sum):
        variance = _variance(meaning, terms)
        if variance is not None:
            return variance
        if len(meaning.addends) != 1:
            return None
        (factors, _), epsilon = meaning.addends[0], meaning.constant
    else:
        factors, epsilon = ((base, 1.0),), 0.0
    sizes = tuple(item for item in factors if terms.is_size(item[0]))
    if sizes and len(sizes) == len(factors) - 1:
        less = any(exponent < 0 and isinstance(terms.base(each), Sum) for each, exponent in sizes)
        return NearMiss(_UNBIASED if less else "its sum of squares is not divided by the number of its entries")
    if len(factors) != 1 or factors[0][1] != 1.0:
        return None
    number = factors[0][0]
    inner = terms.base(number)
    if isinstance(inner, Floor):
        if len(inner.of) != 1 or inner.of[0][1] != 1.0:
            return None
        if inner.least != 0.0:
            return _held(inner, terms)
        number = inner.of[0][0]
        inner = terms.base(number)
    if isinstance(inner, Sum):
        variance = _variance(inner, terms)
        if isinstance(variance, _Root) and variance.epsilon == 0.0:
            return _Root(variance.axes, epsilon, True, variance.mean, variance.flag)
        return None
    if not isinstance(inner, Mean) or epsilon < 0:
        return None
    return _mean_of_squares(inner, number, epsilon, terms)


def _held(floor: Floor, terms: Terms) -> NearMiss | None:
    """Name ``max(V, ε)`` for a variance; of x² it is an Lp norm."""
    number = floor.of[0][0]
    mean = terms.base(number)
    variance = _mean_of_squares(mean, number, 0.0, terms) if isinstance(mean, Mean) else None
    if not isinstance(variance, _Root) or not variance.centred:
        return None
    return NearMiss(f"its variance is held above {floor.least:.3g}, and no epsilon is added to it")


def _mean_of_squares(mean: Mean, number: int, epsilon: float, terms: Terms) -> _Root | NearMiss | None:
    if len(mean.of) != 1:
        return None
    base, exponent = mean.of[0]
    inner = terms.base(base)
    if isinstance(inner, Magnitude):
        return None
    if isinstance(inner, Variable):
        if exponent != 2.0:
            return NearMiss(f"x is raised to {exponent:g}, not squared")
        return _Root(mean.axes, epsilon, False, number)
    centre = _centre(base, terms)
    if centre is None:
        return None
    if exponent != 2.0:
        return NearMiss(f"its deviations are raised to {exponent:g}, not squared")
    if centre != mean.axes:
        return NearMiss(f"its mean is over axes {list(centre)}, its variance over axes {list(mean.axes)}")
    return _Root(mean.axes, epsilon, True, number)


def _centre(base: int, terms: Terms) -> tuple[int, ...] | None:
    """Return S where ``base`` is x − mean(x) over S."""
    inner = terms.base(base)
    if not isinstance(inner, Sum) or inner.constant != 0.0 or len(inner.addends) != 2:
        return None
    (first, _), (second, coefficient) = inner.addends
    if first != X.factors or coefficient != -1.0 or len(second) != 1 or second[0][1] != 1.0:
        return None
    mean = terms.base(second[0][0])
    return mean.axes if isinstance(mean, Mean) and mean.of == X.factors else None


def _variance(total: Sum, terms: Terms) -> _Root | None:
    """Read ``E[x²] − E[x]² [+ ε]``."""
    if len(total.addends) != 2 or total.constant < 0:
        return None
    (first, _), (second, coefficient) = total.addends
    if coefficient != -1.0 or len(first) != 1 or len(second) != 1 or first[0][1] != 1.0 or second[0][1] != 2.0:
        return None
    squares, mean = terms.base(first[0][0]), terms.base(second[0][0])
    if not isinstance(squares, Mean) or not isinstance(mean, Mean) or mean.of != X.factors:
        return None
    if squares.axes != mean.axes or squares.of != ((0, 2.0),):
        return None
    return _Root(squares.axes, total.constant, True, first[0][0], _CANCELS)


def _outside(meaning: object, exponent: float, terms: Terms) -> _Root | NearMiss | None:
    """Name the denominator ``sqrt(V) + ε``: epsilon is added to the deviation.

    That of MeanVarianceNormalization, 1e-9, is too small to tell; its square inside the root stands for it where asked.
    """
    if not isinstance(meaning, Sum) or exponent != -1.0 or len(meaning.addends) != 1:
        return None
    factors = tuple(item for item in meaning.addends[0][0] if not terms.is_size(item[0]))
    if len(factors) != 1 or factors[0][1] != 0.5:
        return None
    number = factors[0][0]
    inner = terms.base(number)
    variance: _Root | NearMiss | None = None
    if isinstance(inner, Mean):
        variance = _mean_of_squares(inner, number, 0.0, terms)
    elif isinstance(inner, Sum):
        variance = _variance(inner, terms)
    if not isinstance(variance, _Root) or not variance.centred or variance.epsilon != 0.0:
        return None
    sizes = len(meaning.addends[0][0]) != 1
    if sizes or meaning.addends[0][1] != 1.0 or not 0.0 < meaning.constant <= _NEGLIGIBLE:
        return NearMiss("its epsilon is added to the deviation, outside the root")
    flag = f"its epsilon, {meaning.constant:.3g}, is added to the deviation, outside the root"
    return _Root(variance.axes, meaning.constant**2, True, variance.mean, variance.flag or flag)


def _numerator_objection(numerator: Factors, root: _Root, terms: Terms) -> NearMiss | None:
    """Say why the numerator is not what the variance is of; None where it is."""
    if len(numerator) != 1 or numerator[0][1] != 1.0:
        return NearMiss("what it divides by its deviation is multiplied with something else")
    base = numerator[0][0]
    if not root.centred:
        centre = None if base == 0 else _centre(base, terms)
        if base == 0:
            return None
        what = "x − mean(x)" if centre is not None else "something else than x"
        return NearMiss(f"it divides {what} by the root of the mean of x²")
    centre = _centre(base, terms)
    if centre is None:
        return NearMiss("it divides by the deviation without subtracting the mean")
    if centre != root.axes:
        return NearMiss(f"the mean it subtracts is over axes {list(centre)}, its variance over axes {list(root.axes)}")
    return None


def _scaled(coefficient: float, root: _Root) -> NearMiss | None:
    """Name the unbiased variance, ``V · N / (N − 1)``: the norm comes out with the factor √((N − 1)/N)."""
    if not root.centred:
        return None
    ratio = coefficient * coefficient
    if 0.0 < ratio < 1.0:
        entries = 1.0 / (1.0 - ratio)
        if abs(entries - round(entries)) < 1e-3 * entries and entries > 1.5:
            return NearMiss(_UNBIASED)
    return NearMiss(f"its result is scaled by {abs(coefficient):.6g}", is_scaled=True)
