"""What a value means: products of powers and signed sums over one variable x, its means, and parameters.

Exporters write the same norm in thousands of graphs and in one term. ``d·d``, ``Pow(d, 2)`` and a squared second copy
of d are ``d²``; ``μ − x`` is ``−1 · (x − μ)``; ``Div(d, Sqrt(v))`` and ``d · Pow(v, −0.5)`` are ``d · v^(−1/2)``. Equal
terms are equal objects: every base (x, a parameter, a mean, a sum that is a factor) has one number, and a term is its
coefficient with the powers of bases. Casts do not show; what they do to types is kept beside the terms.

``|d|²`` is d², in every number format too: the sign is the one bit that a square does not see.

A rule that does not hold for all x is left out: √(x²) is not x, and x/x is not 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Factors = tuple[tuple[int, float], ...]

_MOST_ADDENDS = 6
"""The batch form ``x·r + (β − μ·r)`` has three addends; a longer sum is no norm."""


@dataclass(frozen=True, slots=True)
class Term:
    """``coefficient · Π base^exponent``; factors ascend by base, no exponent is 0. No factors: a number."""

    coefficient: float
    factors: Factors

    @property
    def is_number(self) -> bool:
        """Whether the term is its coefficient alone."""
        return not self.factors


@dataclass(frozen=True, slots=True)
class Variable:
    """x."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """Constant number ``index`` of the reader."""

    index: int


@dataclass(frozen=True, slots=True)
class Extent:
    """The size of x along ``axis``, which the file does not state."""

    axis: int


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of ``of`` over ``axes``, which are kept with size 1."""

    axes: tuple[int, ...]
    of: Factors


@dataclass(frozen=True, slots=True)
class Sum:
    """``constant + Σ coefficient · term``; the leading coefficient is 1."""

    constant: float
    addends: tuple[tuple[Factors, float], ...]


@dataclass(frozen=True, slots=True)
class Magnitude:
    """``|of|``."""

    of: Factors


@dataclass(frozen=True, slots=True)
class Floor:
    """``max(of, least)``."""

    of: Factors
    least: float


Base = Variable | Parameter | Extent | Mean | Sum | Magnitude | Floor

NUMBER_ONE = Term(1.0, ())
X = Term(1.0, ((0, 1.0),))


class Terms:
    """The bases of one reading, each with one number. None as a result: no rule here says what that is."""

    def __init__(self) -> None:
        self._bases: list[Base] = []
        self._numbers: dict[Base, int] = {}
        self._varies: list[bool] = []
        self._rooted: list[bool] = []
        self._positive: list[bool] = []
        self._has_magnitudes = False
        self.number(Variable())

    def base(self, number: int) -> Base:
        """Return the base of that number."""
        return self._bases[number]

    def number(self, base: Base) -> int:
        """Return the number of ``base``."""
        number = self._numbers.setdefault(base, len(self._bases))
        if number < len(self._bases):
            return number
        self._bases.append(base)
        varies, is_rooted, is_positive = self._described(base)
        self._varies.append(varies)
        self._rooted.append(is_rooted)
        self._positive.append(is_positive)
        return number

    def _described(self, base: Base) -> tuple[bool, bool, bool]:
        """Return whether ``base`` has the shape of x, holds a root of a mean, and is proven not to be negative."""
        if isinstance(base, Mean):
            return False, False, self._are_positive(base.of)
        if isinstance(base, Sum):
            varies, is_rooted, is_positive = False, False, base.constant >= 0
            for factors, coefficient in base.addends:
                varies = varies or self.varies(factors)
                is_rooted = is_rooted or self.is_rooted(factors)
                is_positive = is_positive and coefficient > 0 and self._are_positive(factors)
            return varies, is_rooted, is_positive
        if isinstance(base, Magnitude | Floor):
            return self.varies(base.of), self.is_rooted(base.of), True
        return isinstance(base, Variable), False, isinstance(base, Extent)

    def of(self, base: Base) -> Term:
        """Return ``base`` as a term."""
        return Term(1.0, ((self.number(base), 1.0),))

    def varies(self, factors: Factors) -> bool:
        """Whether ``factors`` have the shape of x: x occurs outside of means."""
        for base, _ in factors:  # noqa: SIM110 (asked thousands of times: a generator costs three times as much)
            if self._varies[base]:
                return True
        return False

    def is_rooted(self, factors: Factors) -> bool:
        """Whether a root of a mean occurs, outside of further means."""
        for base, exponent in factors:  # noqa: SIM110 (the same)
            if self._rooted[base] or not exponent.is_integer():
                return True
        return False

    def is_size(self, base: int) -> bool:
        """Whether ``base`` is made of sizes of x alone: N, or N − 1."""
        inner = self._bases[base]
        if isinstance(inner, Sum):
            return all(self.is_size(number) for factors, _ in inner.addends for number, _ in factors)
        return isinstance(inner, Extent)

    def multiply(self, one: Term, other: Term) -> Term | None:
        """Return the product."""
        if not other.factors:
            return Term(one.coefficient * other.coefficient, one.factors)
        if not one.factors:
            return Term(one.coefficient * other.coefficient, other.factors)
        if self.varies(one.factors) and self.varies(other.factors) and self.is_rooted(one.factors + other.factors):
            return None  # what is normalised is not multiplied with x again: SiLU, attention, the next layer
        exponents = dict(one.factors)
        for base, exponent in other.factors:
            exponents[base] = exponents.get(base, 0.0) + exponent
            if exponents[base] == 0.0 and not isinstance(self._bases[base], Extent):
                return None
        factors = tuple(sorted(item for item in exponents.items() if item[1] != 0.0))
        return self._without_magnitudes(Term(one.coefficient * other.coefficient, factors))

    def power(self, term: Term, exponent: float) -> Term | None:
        """Return ``term ** exponent``."""
        if exponent == 1.0:
            return term
        if exponent == 0.0 or (term.coefficient == 0.0 and exponent < 0):
            return None
        if not exponent.is_integer():
            if term.coefficient < 0:
                return None
            for base, inner in term.factors:
                # (b²)^(1/2) is |b|: an even power that stops being one loses a sign.
                lost = inner % 2 == 0 and (inner * exponent) % 2 != 0
                if lost and not self._positive[base]:
                    return None
        if self.varies(term.factors) and self.is_rooted(term.factors):
            return None
        try:
            coefficient = math.pow(term.coefficient, exponent)
        except (OverflowError, ValueError):
            return None
        powers = tuple((base, inner * exponent) for base, inner in term.factors)
        return self._without_magnitudes(Term(coefficient, powers))

    def _without_magnitudes(self, term: Term) -> Term | None:
        """Return ``term`` with every even power of ``|t|`` as that of t; None where a power becomes 0."""
        if not self._has_magnitudes:
            return term
        exponents: dict[int, float] = {}
        for base, exponent in term.factors:
            inner = self._bases[base]
            parts = inner.of if isinstance(inner, Magnitude) and exponent % 2 == 0 else ((base, 1.0),)
            for number, power in parts:
                exponents[number] = exponents.get(number, 0.0) + power * exponent
                if exponents[number] == 0.0:
                    return None
        return Term(term.coefficient, tuple(sorted(exponents.items())))

    def add(self, one: Term, other: Term, sign: float = 1.0) -> Term | None:
        """Return ``one + sign · other``."""
        constant, addends = self.addends(one)
        total = dict(addends)
        more, others = self.addends(other)
        constant += sign * more
        for factors, coefficient in others:
            total[factors] = total.get(factors, 0.0) + sign * coefficient
            if total[factors] == 0.0:
                return None
        return self._sum(constant, total)

    def addends(self, term: Term) -> tuple[float, tuple[tuple[Factors, float], ...]]:
        """Return ``term`` as a constant and a sum of products."""
        if not term.factors:
            return term.coefficient, ()
        if len(term.factors) == 1 and term.factors[0][1] == 1.0:
            base = self._bases[term.factors[0][0]]
            if isinstance(base, Sum):
                scale = term.coefficient
                return base.constant * scale, tuple((factors, each * scale) for factors, each in base.addends)
        return 0.0, ((term.factors, term.coefficient),)

    def _sum(self, constant: float, total: dict[Factors, float]) -> Term | None:
        if not total or len(total) > _MOST_ADDENDS:
            return None
        ordered = list(total.items())
        if len(ordered) > 1:
            ordered.sort(key=lambda item: self._rank(item[0]))
        leading = ordered[0][1]
        if len(ordered) == 1 and constant == 0.0:
            return Term(leading, ordered[0][0])
        addends = tuple((factors, coefficient / leading) for factors, coefficient in ordered)
        return Term(leading, ((self.number(Sum(constant / leading, addends)), 1.0),))

    def _rank(self, factors: Factors) -> tuple[bool, float, Factors]:
        """Order addends: what has the shape of x first, E[x²] before E[x]²."""
        return not self.varies(factors), max(abs(exponent) for _, exponent in factors), factors

    def mean(self, term: Term, axes: tuple[int, ...]) -> Term | None:
        """Return the mean over ``axes`` (ascending, negative)."""
        if not axes or not term.factors or (self.varies(term.factors) and self.is_rooted(term.factors)):
            return None
        if any(isinstance(self._bases[base], Parameter) for base, _ in term.factors):
            return None
        if len(term.factors) == 1 and term.factors[0][1] == 1.0:
            inner = self._bases[term.factors[0][0]]
            if isinstance(inner, Mean):  # one axis after the other
                if set(inner.axes) & set(axes):
                    return None
                merged = Mean(tuple(sorted((*inner.axes, *axes))), inner.of)
                return Term(term.coefficient, ((self.number(merged), 1.0),))
        return Term(term.coefficient, ((self.number(Mean(axes, term.factors)), 1.0),))

    def magnitude(self, term: Term) -> Term:
        """Return ``|term|``."""
        if self._are_positive(term.factors):
            return Term(abs(term.coefficient), term.factors)
        base = self.number(Magnitude(term.factors))
        self._has_magnitudes = True
        return Term(abs(term.coefficient), ((base, 1.0),))

    def floor(self, term: Term, least: float) -> Term | None:
        """Return ``max(term, least)`` for a positive coefficient and a floor that is not negative."""
        if term.coefficient <= 0 or least < 0 or not term.factors or self.varies(term.factors):
            return None
        base = self.number(Floor(term.factors, least / term.coefficient))
        return Term(term.coefficient, ((base, 1.0),))

    def _are_positive(self, factors: Factors) -> bool:
        for base, exponent in factors:  # noqa: SIM110 (the same)
            if not (self._positive[base] or exponent % 2 == 0):
                return False
        return True
