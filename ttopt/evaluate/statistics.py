"""How sure a mean over samples is, and a difference between two methods on the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, nan

import numpy as np

DRAWS = 4000
LEVEL = 0.95
ROUNDING = 1e-9  # the same numbers added in another order differ by less


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` samples with its bootstrap interval (95 %, percentile); NaN without samples."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Paired:
    """A method against another on the samples that both have."""

    difference: Estimate
    better: int  # samples on which it is higher
    worse: int
    p: float  # exact sign test of better against worse, two-sided; of scores that are 0 or 1, McNemar's


def estimate(values: Sequence[float] | np.ndarray, draws: int = DRAWS) -> Estimate:
    """Mean and interval of one number a sample. The resampling is seeded: the same values, the same interval."""
    numbers = np.asarray(values, dtype=float)
    if not len(numbers):
        return Estimate(nan, nan, nan, 0)
    return _estimate(float(numbers.mean()), numbers[_draws(len(numbers), draws)].mean(1), len(numbers))


def interval(found: Estimate, sign: str = "", digits: int = 3) -> str:
    """Mean [low, high] as text, a difference with "+" as ``sign``; "unknown" without samples."""
    if not found.n:
        return "unknown"
    return f"{found.mean:{sign}.{digits}f} [{found.low:{sign}.2f}, {found.high:{sign}.2f}]"


def paired(values: Sequence[float], base: Sequence[float], draws: int = DRAWS) -> Paired:
    """``values`` against ``base`` of the same samples in the same order: resamples samples, not values, so that what
    both methods share (an easy sample, a hard one) cancels. Raises ValueError for lists of different length.
    """
    if len(values) != len(base):
        raise ValueError(f"{len(values)} values cannot be paired with {len(base)}")
    gain = np.asarray(values, dtype=float) - np.asarray(base, dtype=float)
    gain[abs(gain) < ROUNDING] = 0
    better, worse = int((gain > 0).sum()), int((gain < 0).sum())
    return Paired(estimate(gain, draws), better, worse, sign_test(better, worse))


def failures_cut(values: Sequence[float], base: Sequence[float], draws: int = DRAWS) -> Estimate:
    """The share of ``base``'s failures that ``values``, of the same samples in the same order, does without: what it
    breaks counts against what it repairs. Scores in [0, 1]; NaN if ``base`` fails nowhere."""
    before, after = 1 - np.asarray(base, dtype=float), 1 - np.asarray(values, dtype=float)
    if not before.sum():
        return Estimate(nan, nan, nan, 0)
    picked = _draws(len(before), draws)
    failures = before[picked].sum(1)
    cuts = 1 - after[picked].sum(1)[failures > 0] / failures[failures > 0]
    return _estimate(float(1 - after.sum() / before.sum()), cuts, len(before))


def _draws(n: int, draws: int) -> np.ndarray:
    """Indices (draws, n) of the samples of every bootstrap draw."""
    return np.random.default_rng(0).integers(n, size=(draws, n))


def _estimate(mean: float, drawn: np.ndarray, n: int) -> Estimate:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(mean, float(low), float(high), n)


def sign_test(better: int, worse: int) -> float:
    """Exact two-sided p of ``better`` against ``worse`` samples: a fair coin's binomial test, which is McNemar's where
    samples are repaired or broken."""
    n = better + worse
    tail = sum(comb(n, i) for i in range(min(better, worse) + 1)) / 2**n
    return min(1.0, 2 * tail)
