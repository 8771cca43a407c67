"""The table's arithmetic, on results made up for it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from ttopt.evaluate.statistics import Estimate, Paired
from ttopt.evaluate.table import BENCHMARK, QUESTIONS, Entry, Judged, Row, agrees, columns, rows
from ttopt.record.result import Cost, Result, Scored


def result(sample: str, success: bool | None, **changes: Any) -> Result:
    score = None if success is None else Scored(success, 0.5 + 0.5 * success, {})
    made = Result(
        sample, "f", "id", "p", "m", None, "", score, Cost(2.0, 4, 0.5, 1), 0.9, {}, {"total": 1}, {}, "cpu", {}, "now"
    )
    return dataclasses.replace(made, **changes)


def optimized(steps: int) -> Any:
    """What the table reads of an optimization."""
    return SimpleNamespace(steps=steps, lora_norm=2.0)


def entries(successes: list[int], **changes: Any) -> dict[str, Entry]:
    return {f"s{i}": Entry(result(f"s{i}", bool(ok), **changes)) for i, ok in enumerate(successes)}


def family(sample: str) -> str:
    return "even" if int(sample[1:]) % 2 == 0 else "odd"


def test_success_and_gain_on_the_same_samples() -> None:
    single, ours = rows({"single": entries([1, 0, 0, 0]), "ours": entries([1, 1, 0, 1])}, "single", family)
    assert (single.score.mean, single.gain, single.failures_cut) == (0.25, None, None)
    assert ours.gain is not None and ours.gain.difference.mean == 0.5
    assert (ours.gain.better, ours.gain.worse, ours.gain.p) == (2, 0, 0.5)
    assert ours.failures_cut and ours.failures_cut.mean == pytest.approx(2 / 3)
    assert ours.by_family == {"even": 0.5, "odd": 1.0}
    assert ours.partial == pytest.approx(0.875)


def test_what_failed_counts_as_wrong_and_is_named_but_its_cost_counts() -> None:
    bad = entries([1, 1])
    bad["s1"] = Entry(result("s1", True, error="the server is down", cost=Cost(8.0, 16, 2.5, 3)))
    bad["s2"] = Entry(None)
    _, ours = rows({"single": entries([1, 1, 1]), "ours": bad}, "single", family)
    assert ours.score.mean == pytest.approx(1 / 3) and ours.failed == ["s1", "s2"]
    assert (ours.generated_seconds, ours.wall_seconds, ours.equal_time) == (5.0, 1.5, 3.0)
    assert (ours.partial, ours.counted["partial"]) == (pytest.approx(1 / 3), 3), (
        "what is left of a failed sample is none"
    )


def test_hacked_is_what_the_judge_took_and_the_scorer_refuses() -> None:
    both = {"s0": Entry(result("s0", True, accepted=True, optimization=optimized(4))),
            "s1": Entry(result("s1", False, accepted=True, optimization=optimized(8))),
            "s2": Entry(result("s2", False, accepted=False, optimization=optimized(20)))}  # fmt: skip
    _, ours = rows({"single": entries([0, 0, 0]), "ours": both}, "single", family)
    assert (ours.accepted, ours.hacked) == (pytest.approx(2 / 3), 0.5)
    assert (ours.counted["accepted"], ours.counted["hacked"]) == (3, 2)
    assert (ours.steps, ours.lora_norm) == (pytest.approx(32 / 3), 2.0)


def test_without_a_scorer_the_benchmark_then_the_questions_decide() -> None:
    judged = Judged([0.9, 0.2], 0.5, 20.0)
    asked = {"single": {"s0": Entry(result("s0", None), judged)}}
    assert rows(asked, "single", family, name=QUESTIONS)[0].score.mean == 0.5
    official = {"single": {"s0": Entry(result("s0", None), judged, 0.7)}}
    (row,) = rows(official, "single", family, name=BENCHMARK)
    assert row.score.mean == pytest.approx(0.7) and row.satisfied == 0.5 and row.hacked is None
    assert "hacked" not in columns([row]) and "ssim" in columns([row])


def test_where_nothing_could_be_asked_nothing_is_known() -> None:
    judged, silent = Judged([0.9, 0.8], None, None), Judged(None, None, None)
    both = {"s0": Entry(result("s0", None), judged), "s1": Entry(result("s1", None), silent), "s2": Entry(None)}
    single, ours = rows({"single": {"s1": both["s1"]}, "ours": both}, "single", family, name=QUESTIONS)
    assert (ours.score.mean, ours.score.n) == (0.5, 2), "a missing video still counts 0"
    assert single.score.n == 0 and ours.gain is not None and ours.gain.difference.n == 0
    assert ours.failures_cut is None and single.by_family == {}


def test_a_video_without_a_verdict_counts_zero_and_is_named() -> None:
    """Also where no judgment came through at all: the column stays what it is."""
    judged = Judged([0.9, 0.8], None, None)
    some = {"s0": Entry(result("s0", None), judged, 0.5), "s1": Entry(result("s1", None), judged, problem="cut off")}
    none = {name: dataclasses.replace(entry, official=None) for name, entry in some.items()}
    first, second = rows({"single": some, "ours": none}, "single", family, name=BENCHMARK)
    assert (first.score.mean, first.failed) == (0.25, ["s1"]) and some["s1"].why == "cut off"
    assert (second.score.mean, second.failed) == (0, ["s0", "s1"]) and second.satisfied == 1


def test_what_is_left_out_counts_nowhere_and_is_named() -> None:
    mine = entries([1, 1]) | {"s2": Entry(None, left_out="not done yet")}
    _, ours = rows({"single": entries([0, 1, 1]), "ours": mine}, "single", family)
    assert (ours.score.n, ours.score.mean, ours.failed, ours.left_out) == (2, 1, [], ["s2"])
    assert ours.counted["partial"] == 2 and ours.gain is not None and ours.gain.difference.n == 2


def test_repairs_without_a_step_are_counted_apart() -> None:
    mine = {f"s{i}": Entry(result(f"s{i}", True, optimization=optimized(i))) for i in range(3)}
    single, ours = rows({"single": entries([0, 0, 1]), "ours": mine}, "single", family)
    assert ours.gain is not None and (ours.gain.better, ours.unstepped, single.unstepped) == (2, 1, None)


def test_an_ablation_agrees_in_sign_only_if_the_interval_leaves_zero_out() -> None:
    (full,) = rows({"full": entries([1, 1])}, "full", family, {"full": 0.781})

    def row(mean: float, low: float, high: float, paper: float | None) -> Row:
        return dataclasses.replace(full, gain=Paired(Estimate(mean, low, high, 9), 0, 0, 1.0), paper=paper)

    assert agrees(row(-0.1, -0.2, -0.05, 0.7), full) == "yes"
    assert agrees(row(-0.1, -0.2, -0.05, 0.8), full) == "no"
    assert agrees(row(-0.1, -0.2, 0.05, 0.7), full) == "unsure"
    assert agrees(row(-0.1, -0.2, -0.05, 0.781), full) == "equal", "there is no sign to have"
    assert agrees(row(-0.1, -0.2, -0.05, None), full) == "" and agrees(full, full) == ""
