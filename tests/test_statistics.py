"""Intervals cover what they promise also near 0 and 1, pairing sharpens a comparison, and McNemar's test is the
binomial one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from ttopt.evaluate.statistics import Estimate, adjusted, estimate, failures_cut, paired, sign_test

RUNS = 3000
SIZES, SHARES = (5, 16, 64, 128), (0.5, 0.9, 0.97)


def covered(found: Sequence[Estimate], truth: float | Sequence[float]) -> float:
    """How often the intervals hold the truth."""
    low, high = np.array([(e.low, e.high) for e in found]).T
    return float(((low - 1e-9 <= truth) & (truth <= high + 1e-9)).mean())


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("p", SHARES)
def test_intervals_cover_a_share(n: int, p: float) -> None:
    """Exactly: every number of successes, weighted with how likely it is."""
    found = [estimate([1.0] * k + [0.0] * (n - k)) for k in range(n + 1)]
    weights = binom.pmf(range(n + 1), n, p)
    holds = np.array([e.low <= p <= e.high for e in found])
    assert holds @ weights >= 0.95
    exact = binomtest(n - 1, n).proportion_ci(0.95, "exact")
    assert (found[n - 1].low, found[n - 1].high) == pytest.approx((exact.low, exact.high), abs=1e-9)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("p", SHARES)
def test_intervals_cover_a_mean_and_a_difference(n: int, p: float) -> None:
    rng = np.random.default_rng(1)

    def cover(values: np.ndarray, ends: tuple[float, float], truth: float) -> float:
        low, high = adjusted(values, ends)
        return float(((low <= truth + 1e-9) & (truth - 1e-9 <= high)).mean())

    rare = np.where(rng.random((RUNS, n)) < p, 1.0, 0.3)
    assert cover(rare, (0, 1), p + 0.3 * (1 - p)) >= 0.93
    assert cover(rng.beta(4 * p, 4 * (1 - p), (RUNS, n)), (0, 1), p) >= 0.93
    base = rng.random((RUNS, n)) < p
    for repaired, broken in ((0.9, 0.03), (0.5, 0.0), (0.0, 0.0), (0.5, 0.2)):
        draw = rng.random((RUNS, n))
        ours = np.where(base, draw >= broken, draw < repaired)
        assert cover(ours * 1.0 - base, (-1, 1), (1 - p) * repaired - p * broken) >= 0.93


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("p", SHARES)
def test_intervals_cover_the_share_of_failures_cut(n: int, p: float) -> None:
    """Given where the base fails."""
    rng = np.random.default_rng(2)
    for repaired, broken in ((0.9, 0.03), (0.5, 0.2), (1.0, 0.0)):
        found, truth = [], []
        while len(found) < 300:
            base = rng.random(n) < p
            if base.all():
                continue
            ours = np.where(base, rng.random(n) >= broken, rng.random(n) < repaired)
            found.append(failures_cut(ours * 1.0, base * 1.0))
            truth.append(repaired - broken * base.sum() / (n - base.sum()))
        assert covered(found, truth) >= 0.93


def test_certainty_is_never_claimed() -> None:
    """Where all samples agree."""
    for values in ([1.0] * 64, [0.0] * 64, [0.7] * 64, [1.0]):
        found = estimate(values)
        assert found.low <= found.mean <= found.high and found.high - found.low > 0.02
    assert estimate([1.0] * 64).low == pytest.approx(0.944, abs=5e-4) and estimate([1.0] * 64).high == 1
    assert paired([1.0] * 9, [1.0] * 9).difference.high > 0.1
    assert failures_cut([1.0] * 9, [0.0] * 9).low < 0.75


def test_edges() -> None:
    assert math.isnan(estimate([]).mean) and estimate([]).n == 0 and paired([], []).difference.n == 0
    assert estimate([0, 1, 1]) == estimate([0, 1, 1])
    assert math.isnan(estimate([3.0], None).low) and estimate([3.0, 5.0], None).mean == 4
    with pytest.raises(ValueError, match="cannot be paired"):
        paired([1.0], [1.0, 0.0])


def test_rounding_is_no_difference() -> None:
    there, back = ([sum(values) / 3] * 9 for values in ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]))
    assert there != back
    found = paired(there, back)
    assert (found.better, found.worse, found.p, found.difference.mean) == (0, 0, 1.0, 0.0)


def test_pairing_removes_what_samples_share() -> None:
    rng = np.random.default_rng(2)
    base = rng.beta(0.5, 0.5, 200) * 0.8
    ours = base + 0.1 + rng.normal(0, 0.01, 200)
    found, alone = paired(list(ours), list(base)), estimate(ours)
    assert found.difference.low > 0.05 and found.difference.high < 0.15
    assert alone.high - alone.low > 2 * (found.difference.high - found.difference.low)
    assert (found.better, found.worse) == (200, 0)


def test_failures_cut_counts_what_is_broken_too() -> None:
    base, ours = [1.0] * 70 + [0.0] * 30, [0.0] * 2 + [1.0] * 88 + [0.0] * 10
    cut = failures_cut(ours, base)
    assert cut.mean == pytest.approx((20 - 2) / 30) and cut.low < cut.mean < cut.high and cut.n == 100
    assert failures_cut(base, base).mean == 0 and failures_cut([1.0] * 100, base).high == 1
    assert failures_cut([0.5, 0.0], [0.0, 0.0]).mean == pytest.approx(0.25), "partial scores"
    assert math.isnan(failures_cut([0.0, 1.0], [1.0, 1.0]).mean)


TESTS = [(0, 0, 1.0), (5, 5, 1.0), (8, 0, 2 / 256), (1, 5, 14 / 64), (26, 15, 0.1173)]


@pytest.mark.parametrize("better, worse, p", TESTS)
def test_the_sign_test(better: int, worse: int, p: float) -> None:
    assert sign_test(better, worse) == pytest.approx(p, abs=5e-5)
