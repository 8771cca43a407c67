"""Intervals cover what they promise, pairing sharpens a comparison, and McNemar's test is the binomial one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ttopt.evaluate.statistics import estimate, failures_cut, paired, sign_test


def test_intervals_cover_the_true_mean() -> None:
    rng = np.random.default_rng(1)
    found = [estimate(rng.random(100) < 0.3, draws=400) for _ in range(200)]
    covered = sum(e.low <= 0.3 <= e.high for e in found) / len(found)
    assert 0.90 <= covered <= 0.99


def test_edges() -> None:
    assert math.isnan(estimate([]).mean) and estimate([]).n == 0
    one = estimate([1.0])
    assert (one.mean, one.low, one.high, one.n) == (1, 1, 1, 1)
    assert estimate([0, 1, 1]) == estimate([0, 1, 1]), "seeded"
    with pytest.raises(ValueError, match="cannot be paired"):
        paired([1.0], [1.0, 0.0])


def test_rounding_is_no_difference() -> None:
    there, back = ([sum(values) / 3] * 9 for values in ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]))
    assert there != back
    found = paired(there, back)
    assert (found.better, found.worse, found.p, found.difference.mean) == (0, 0, 1.0, 0.0)


def test_pairing_removes_what_samples_share() -> None:
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 10, 60)
    ours, base = hard + 1 + rng.normal(0, 0.1, 60), hard
    found = paired(list(ours), list(base))
    assert found.difference.low > 0.9 and found.difference.high < 1.1
    alone = estimate(ours)
    assert alone.high - alone.low > 10 * (found.difference.high - found.difference.low)
    assert (found.better, found.worse) == (60, 0)


def test_failures_cut_counts_what_is_broken_too() -> None:
    base, ours = [1.0] * 70 + [0.0] * 30, [0.0] * 2 + [1.0] * 88 + [0.0] * 10
    cut = failures_cut(ours, base)
    assert cut.mean == pytest.approx((20 - 2) / 30) and cut.low < cut.mean < cut.high and cut.n == 100
    assert failures_cut(base, base).high == 0 and failures_cut([1.0] * 100, base).low == 1
    assert failures_cut([0.5, 0.0], [0.0, 0.0]).mean == pytest.approx(0.25), "partial scores"
    assert math.isnan(failures_cut([0.0, 1.0], [1.0, 1.0]).mean)


TESTS = [(0, 0, 1.0), (5, 5, 1.0), (8, 0, 2 / 256), (1, 5, 14 / 64), (26, 15, 0.1173)]


@pytest.mark.parametrize("better, worse, p", TESTS)
def test_the_sign_test(better: int, worse: int, p: float) -> None:
    assert sign_test(better, worse) == pytest.approx(p, abs=5e-5)
