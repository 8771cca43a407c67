"""What a page shows, read from result folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import RootModel

from ttopt.data.replies import parse_reply
from ttopt.evaluate.comparison import Comparison
from ttopt.evaluate.files import TRACE, Questions, Trace, TraceCall, read_curves, read_each
from ttopt.evaluate.grading import QUERIES
from ttopt.evaluate.judges import Judgment
from ttopt.evaluate.report import headline
from ttopt.evaluate.report.headline import Headline
from ttopt.evaluate.report.media import Look, Media
from ttopt.evaluate.table import Entry, Row
from ttopt.record.plain import read_typed
from ttopt.record.result import Result, Scored

MANY = 100  # samples; from so many on, videos are linked
BEFORE = "frozen"
# What result.json calls a method, as people do; a comparison names its methods itself.
NAMES = {
    "teacher_lora": "teacher LoRA", "seed_ensemble": "seed ensemble", "loop": "step loop", "pe": "PE",
    "videotpo": "VideoTPO",
}  # fmt: skip
KEPT = {"base": "the frozen model’s video is kept", "prediction": "its one-step prediction is kept"}


@dataclass(frozen=True)
class Broken:
    """A rule of the scorer that a video breaks: its name, what it asks for, and the frames (from 0) that break it."""

    rule: str
    words: str
    frames: Sequence[int]

    @property
    def where(self) -> str:
        """The frames as a player counts them: "frames 3-5, 9"."""
        runs: list[list[int]] = []
        for number in self.frames:
            if runs and number == runs[-1][-1] + 1:
                runs[-1].append(number)
            else:
                runs.append([number])
        spans = [str(run[0] + 1) if len(run) == 1 else f"{run[0] + 1}–{run[-1] + 1}" for run in runs]
        return f"{'frame' if len(self.frames) == 1 else 'frames'} {', '.join(spans)}" if spans else ""


@dataclass(frozen=True)
class Clip:
    """One method's video of a sample. ``outcome``: right, wrong, failed (no usable video), out (left out), or done
    (no scorer)."""

    method: str
    outcome: str
    source: str = ""  # data URI or relative path; empty: there is none
    hacked: bool = False
    p_yes: Sequence[float] = ()
    note: str = ""
    partial: float | None = None  # the scorer's, in [0, 1]
    score: str = ""
    rules: int = 0  # how many the scorer knows
    broken: Sequence[Broken] = ()
    cost: str = ""
    curves: Sequence[Mapping[str, float]] = ()  # rows of curves.csv
    queries: Sequence[str] = ()  # that the curves are of, goal first
    trace: Sequence[Mapping[str, Any]] = ()  # of the step loop: its clips, and what its planner and router said
    notes: Sequence[tuple[str, str]] = ()  # what any other method notes in its result: a rewritten prompt, a choice


@dataclass(frozen=True)
class SampleView:
    """One sample with the videos of all methods."""

    id: str
    family: str
    split: str
    prompt: str
    thumbnail: str
    fps: float
    frames: int
    width: int
    height: int
    queries: Sequence[str]  # goal first
    clips: Sequence[Clip]
    change: str = ""  # repaired or broken, by the page's method


@dataclass(frozen=True)
class Page:
    """Everything a page shows. ``table`` is empty for a run of fits; ``taus`` are the lines in the methods' losses."""

    title: str
    headline: Headline
    about: Sequence[tuple[str, str]]
    reference: str
    methods: Sequence[str]
    samples: Sequence[SampleView]
    taus: Mapping[str, float]
    score: str = ""
    table: Sequence[Row] = ()
    embedded: bool = True
    problems: Sequence[str] = ()  # what went wrong or could not be read
    zeros: Sequence[tuple[str, str, str]] = ()  # method, sample, and why it counts 0
    official: Mapping[str, Judgment] = field(default_factory=dict)  # method -> the benchmark's own numbers
    complete: bool = True


def comparison_page(
    found: Comparison, title: str, about: Sequence[tuple[str, str]], slugs: Mapping[str, str], taus: Mapping[str, float]
) -> Page:
    """The page of a comparison: ``slugs`` are the methods' folders."""
    entries = found.entries
    queries, problems = read_each(found.folder / QUERIES, found.folder, Questions)
    places = {m: found.folder / "methods" / slugs[m] / "samples" for m in entries}
    names = list(next(iter(entries.values())))
    media = Media(
        found.folder,
        [places[m] / s / "video.mp4" for m, samples in entries.items() for s in samples],
        len(names) < MANY,
    )
    views = []
    for sample in names:
        clips, looks = [], []
        for method, samples in entries.items():
            clip, look = _clip(method, samples[sample], places[method] / sample, media)
            clips.append(clip)
            looks.append((samples[sample].result, look))
        asked = queries[sample].all if sample in queries else []
        known = [(result, look) for result, look in looks if result is not None]
        result, look = next((each for each in known if each[1]), known[0] if known else (None, None))
        views.append(_view(sample, result, look, clips, asked))
    outcomes = [{clip.method: clip.outcome for clip in view.clips} for view in views]
    reference = found.settings.reference
    pairs = {method: [(each[reference], each[method]) for each in outcomes] for method in entries}
    opening = headline.of_comparison(found.table, reference, found.score, pairs)
    views = _ordered(views, reference, opening.method)
    zeros = [(row.method, sample, entries[row.method][sample].why) for row in found.table for sample in row.failed]
    return Page(
        title, opening, about, reference, list(entries), views, taus, found.score, found.table, media.embed,
        [*found.problems, *problems, *media.problems], zeros, found.official, found.complete,
    )  # fmt: skip


def fit_page(
    folder: Path, title: str, about: Sequence[tuple[str, str]], results: Sequence[Result], tau: float,
    problems: Sequence[str] = (),
) -> Page:  # fmt: skip
    """The page of a run: every sample's video, and beside an optimized one the frozen model's."""
    places = {result.sample: folder / "samples" / result.sample for result in results}
    media = Media(
        folder, [place / f"{name}.mp4" for place in places.values() for name in ("base", "video")], len(results) < MANY
    )
    views, methods = [], dict.fromkeys(BEFORE for r in results if r.optimization)
    for result in results:
        place, o = places[result.sample], result.optimization
        name = " + ".join(NAMES.get(part, part) for part in result.method.split(" + "))
        made, look = _clip(name, Entry(result), place, media)
        methods[name] = None
        clips = [made]
        if o is not None:
            source, _ = media.video(place / "base.mp4", needed=False)
            score = o.score_before
            before = Clip(
                BEFORE, _outcome(score), source, p_yes=o.video_before.p_yes, score=_partial(score), **_scored(score)
            )
            clips = [before, dataclasses.replace(made, p_yes=o.video_after.p_yes)]
        views.append(_view(result.sample, result, look, clips, made.queries))
    taus = dict.fromkeys(methods, tau)
    pairs = [(first.outcome, last.outcome) for first, last in (v.clips for v in views if len(v.clips) == 2)]
    opening = headline.of_run(results, pairs, list(methods)[-1])
    reference = next(iter(methods))
    views = _ordered(views, reference, opening.method)
    return Page(
        title, opening, about, reference, list(methods), views, taus, embedded=media.embed,
        problems=[*problems, *media.problems],
    )  # fmt: skip


def _view(
    sample: str, result: Result | None, look: Look | None, clips: Sequence[Clip], queries: Sequence[str]
) -> SampleView:
    family, split, prompt = (result.family, result.split, result.prompt) if result else ("", "", "")
    seen = look or Look("", 1.0, 1, 1, 1)
    return SampleView(
        sample, family, split, prompt, seen.thumbnail, seen.fps, seen.frames, seen.width, seen.height, queries, clips
    )


def _ordered(views: Sequence[SampleView], reference: str, method: str) -> list[SampleView]:
    """The samples by what became of them, the repaired first, and among these the most."""
    made = []
    for view in views:
        before, after = _pair(view, reference, method)
        changed = headline.change(before.outcome, after.outcome) if before else ""
        gained = (after.partial or 0.0) - (before.partial or 0.0) if before else 0.0
        rank = headline.rank(before.outcome if before else None, after.outcome)
        made.append(((rank, -gained), dataclasses.replace(view, change=changed)))
    return [view for _, view in sorted(made, key=lambda each: each[0])]


def _pair(view: SampleView, reference: str, method: str) -> tuple[Clip | None, Clip]:
    """A sample's clips by the reference, if that is another, and by the method that the page is about."""
    clips = {clip.method: clip for clip in view.clips}
    return (clips.get(reference) if method != reference else None), clips.get(method, view.clips[-1])


def _scored(score: Scored | None) -> dict[str, Any]:
    """What a clip shows of the scorer's verdict beside its outcome."""
    if score is None:
        return {}
    names = [rule for rule, holds in score.rules.items() if not holds]
    broken = [Broken(rule, score.words.get(rule, ""), score.frames.get(rule, [])) for rule in names]
    return {"partial": score.partial, "rules": len(score.rules), "broken": broken}


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _clip(method: str, entry: Entry, place: Path, media: Media) -> tuple[Clip, Look | None]:
    """A method's clip of a sample, and what its video looks like. What cannot be read is left out and told."""
    result = entry.result
    if result is None:
        return Clip(method, "out" if entry.left_out else "failed", note=entry.left_out or entry.why), None
    source, look = media.video(place / "video.mp4")
    cost = result.cost
    o = result.optimization
    trace = media.read(place / TRACE, lambda path: _trace(read_typed(path, media.root, Trace))) or []
    curves = media.read(place / "curves.csv", lambda path: read_curves(path, media.root)) or []
    outcome = "failed" if entry.failed else _outcome(result.score)
    clip = Clip(
        method,
        outcome,
        source,
        hacked=bool(result.accepted) and outcome == "wrong",
        p_yes=(entry.judged.p_yes if entry.judged else None) or [],
        note=result.error or entry.problem or "; ".join(filter(None, (result.stop, KEPT.get(o.kept, "") if o else ""))),
        score=", ".join(f"{name} {value:.3g}" for name, value in entry.parts.items()) or _partial(result.score),
        **_scored(result.score),
        cost=(f"{_count(o.steps, 'step')}, " if o else "")
        + f"{cost.wall_seconds:.3g} s: {cost.generated_seconds:.3g} s of video, {cost.reasoner_forwards} forwards"
        + (f", {_count(cost.vlm_calls, 'VLM call')}" if cost.vlm_calls else ""),
        curves=curves,
        queries=[o.queries["goal"], *o.queries["process"]] if o else [],
        trace=trace,
        notes=[] if trace else list(_notes(result.details)),
    )
    return clip, look


def _notes(details: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Names and values, those inside others with their way there: ("rounds 1: critique", "the cross stays")."""
    for name, value in details.items():
        path = f"{before}{name}"
        if isinstance(value, Mapping):
            yield from _notes(value, f"{path}: ")
        elif isinstance(value, list) and any(isinstance(part, (Mapping, list)) for part in value):
            yield from _notes({f"{path} {number}": part for number, part in enumerate(value, start=1)})
        elif isinstance(value, list) and value:
            yield path, ", ".join(map(_short, value))
        elif value not in ("", None, []):
            yield path, _short(value)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _trace(content: Trace) -> list[Mapping[str, Any]]:
    """A step loop's clips, each behind what the planner and the router said before it."""
    calls = [call for call in content.calls if call.role != "verifier"]
    events: list[Mapping[str, Any]] = []
    for number in range(len(content.clips) + 1):
        events += [call.model_dump(exclude_none=True) | {"said": _said(call)} for call in calls if call.clip == number]
        events += [clip.model_dump(exclude_none=True) for clip in content.clips[number : number + 1]]
    return events


class _Fields(RootModel[dict[str, Any]]):
    """Any JSON object."""


def _said(call: TraceCall) -> list[tuple[str, str]]:
    """A reply's fields and what they say, empty ones left out; the reply itself where it is no JSON object."""
    text = call.error or call.text
    try:
        fields = parse_reply(text, _Fields).root
    except ValueError:
        return [("", text)]
    return [(name.replace("_", " "), value) for name, value in _notes(fields)]


def _outcome(score: Scored | None) -> str:
    return "done" if score is None else "right" if score.success else "wrong"


def _partial(score: Scored | None) -> str:
    return "" if score is None else f"partial score {score.partial:.2f}"
