"""How sure a mean over samples is, and a difference between two methods on the same samples.

All intervals are 95 % and keep that near 0 and 1 and for few samples, where a bootstrap collapses: 64 of 64 is
[0.944, 1]. tests/test_statistics.py measures their coverage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, nan, sqrt

import numpy as np
from scipy.special import betaincinv, stdtrit

LEVEL = 0.95
ROUNDING = 1e-9  # the same numbers added in another order differ by less


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` samples with its 95 % interval; NaN without samples."""

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


UNKNOWN = Estimate(nan, nan, nan, 0)
SCORE = (0.0, 1.0)


def estimate(values: Sequence[float] | np.ndarray, ends: tuple[float, float] | None = SCORE) -> Estimate:
    """Mean and interval of one number a sample: the exact binomial interval (Clopper-Pearson) where all are 0 or 1,
    else that of ``adjusted``. ``ends`` are the least and the highest number there can be; None: there are none."""
    numbers = np.asarray(values, dtype=float)
    if not len(numbers):
        return UNKNOWN
    share = ends == SCORE and np.isin(numbers, SCORE).all()
    low, high = binomial(numbers.sum(), len(numbers)) if share else adjusted(numbers, ends)
    return Estimate(float(numbers.mean()), float(low), float(high), len(numbers))


def paired(values: Sequence[float], base: Sequence[float], ends: tuple[float, float] | None = SCORE) -> Paired:
    """``values`` against ``base`` of the same samples in the same order: the interval is of the differences sample by
    sample, so that what both methods share (an easy sample, a hard one) cancels. ``ends`` as in ``estimate``.

    Raises ValueError for lists of different length.
    """
    if len(values) != len(base):
        raise ValueError(f"{len(values)} values cannot be paired with {len(base)}")
    gain = np.asarray(values, dtype=float) - np.asarray(base, dtype=float)
    gain[abs(gain) < ROUNDING] = 0
    better, worse = int((gain > 0).sum()), int((gain < 0).sum())
    spread = None if ends is None else ends[1] - ends[0]
    difference = estimate(gain, None if spread is None else (-spread, spread))
    return Paired(difference, better, worse, sign_test(better, worse))


def failures_cut(values: Sequence[float], base: Sequence[float]) -> Estimate:
    """The share of ``base``'s failures that ``values``, of the same samples in the same order, does without: what it
    breaks counts against what it repairs. Scores in [0, 1]; NaN if ``base`` fails nowhere.

    It is repaired / failures - broken / failures. Given where the base fails, these are two independent shares, of its
    failures and of its successes; their exact intervals are combined by the square-and-add method (Newcombe 1998; Zou
    and Donner 2008).
    """
    before, after = np.asarray(base, dtype=float), np.asarray(values, dtype=float)
    gain = after - before
    failures, successes = float((1 - before).sum()), float(before.sum())
    if failures < ROUNDING:
        return UNKNOWN
    repaired, broken = float(gain[gain > 0].sum()), float(-gain[gain < 0].sum())
    weight = successes / failures
    fixed, low, high = repaired / failures, *binomial(repaired, failures)
    lost, least, most = (broken / successes, *binomial(broken, successes)) if successes > ROUNDING else (0.0, 0.0, 0.0)
    mean = fixed - weight * lost
    return Estimate(
        mean,
        mean - sqrt((fixed - low) ** 2 + (weight * (most - lost)) ** 2),
        min(1.0, mean + sqrt((high - fixed) ** 2 + (weight * (lost - least)) ** 2)),
        len(before),
    )


def binomial(successes: float, n: float) -> tuple[float, float]:
    """The exact interval (Clopper-Pearson) of a share. Fractions of successes give a wider interval than theirs: of all
    numbers in [0, 1] with the same mean, zeros and ones vary most."""
    tail = (1 - LEVEL) / 2
    low = 0.0 if successes < ROUNDING else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if n - successes < ROUNDING else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def adjusted(values: np.ndarray, ends: tuple[float, float] | None) -> tuple[np.ndarray, np.ndarray]:
    """Student's interval of the mean over the last axis. One number at each of the ``ends`` of what is possible is
    added (Agresti and Coull's way with proportions, Bonett and Price's with paired ones), so that equal numbers are not
    taken for certainty. It always holds the mean; NaN for a single number without ends."""
    added = np.broadcast_to(ends or (), (*values.shape[:-1], 2 if ends else 0))
    more = np.concatenate([values, added], axis=-1)
    n, center, mean = more.shape[-1], more.mean(-1), values.mean(-1)
    if n < 2:
        return np.full_like(mean, nan), np.full_like(mean, nan)
    half = stdtrit(n - 1, (1 + LEVEL) / 2) * more.std(-1, ddof=1) / np.sqrt(n)
    low, high = np.minimum(center - half, mean), np.maximum(center + half, mean)
    return (np.maximum(low, ends[0]), np.minimum(high, ends[1])) if ends else (low, high)


def interval(found: Estimate, sign: str = "", digits: int = 3) -> str:
    """Mean [low, high] as text, a difference with "+" as ``sign``; "unknown" without samples."""
    if not found.n:
        return "unknown"
    return f"{found.mean:{sign}.{digits}f} [{found.low:{sign}.2f}, {found.high:{sign}.2f}]"


def sign_test(better: int, worse: int) -> float:
    """Exact two-sided p of ``better`` against ``worse`` samples: a fair coin's binomial test, which is McNemar's where
    samples are repaired or broken."""
    n = better + worse
    tail = sum(comb(n, i) for i in range(min(better, worse) + 1)) / 2**n
    return min(1.0, 2 * tail)
