"""What a page shows, read from result folders."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
from PIL import Image
from pydantic import RootModel

from ttopt.data.replies import parse_reply
from ttopt.errors import UserError
from ttopt.evaluate.table import Entry, Row, score_name
from ttopt.record.result import Result, Scored
from ttopt.record.run_folder import read_json

EMBED_MB = 64.0  # more video than this is linked, not embedded: browsers choke on larger pages
THUMBNAIL = 96  # pixels
BEFORE = "before"


@dataclass(frozen=True)
class Clip:
    """One method's video of a sample. ``outcome``: solved, wrong, failed (no usable video) or done (no scorer)."""

    method: str
    outcome: str
    source: str = ""  # data URI or relative path; empty: there is none
    hacked: bool = False
    p_yes: Sequence[float] = ()
    note: str = ""
    score: str = ""
    rules: Mapping[str, bool] = field(default_factory=dict)
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


@dataclass(frozen=True)
class Page:
    """Everything a page shows. ``table`` is empty for a run of fits; ``taus`` are the lines in the methods' losses."""

    title: str
    about: Sequence[tuple[str, str]]
    reference: str
    methods: Sequence[str]
    samples: Sequence[SampleView]
    taus: Mapping[str, float]
    score: str = ""
    table: Sequence[Row] = ()
    embedded: bool = True


def comparison_page(
    folder: Path,
    title: str,
    about: Sequence[tuple[str, str]],
    entries: Mapping[str, Mapping[str, Entry]],
    slugs: Mapping[str, str],
    table: Sequence[Row],
    reference: str,
    taus: Mapping[str, float],
) -> Page:
    """The page of a comparison: ``entries`` method -> sample -> entry, ``slugs`` the methods' folders."""
    queries = read_json(folder / "queries.json")
    places = {m: folder / "methods" / slugs[m] / "samples" for m in entries}
    embed = _fits([places[m] / s / "video.mp4" for m, samples in entries.items() for s in samples])
    views = []
    for sample in next(iter(entries.values())):
        clips = [_clip(m, samples[sample], places[m] / sample, folder, embed) for m, samples in entries.items()]
        asked = queries.get(sample) or {}
        views.append(
            _sample(sample, entries, places, clips, [asked["goal"], *asked["process"]] if "goal" in asked else [])
        )
    return Page(title, about, reference, list(entries), views, taus, score_name(entries), table, embed)


def fit_page(folder: Path, title: str, about: Sequence[tuple[str, str]], results: Sequence[Result], tau: float) -> Page:
    """The page of a run: every sample's video, and beside an optimized one the frozen model's."""
    files = [folder / "samples" / r.sample / f"{name}.mp4" for r in results for name in ("base", "video")]
    embed = _fits(files)
    views, methods = [], dict.fromkeys(BEFORE for r in results if r.optimization)
    for result in results:
        place, o = folder / "samples" / result.sample, result.optimization
        made = _clip(result.method, Entry(result), place, folder, embed)
        methods[result.method] = None
        clips = [made]
        if o is not None:
            source = _source(place / "base.mp4", folder, embed)
            score = o.score_before
            before = Clip(BEFORE, _outcome(score), source, p_yes=o.video_before.p_yes, score=_partial(score))
            clips = [before, dataclasses.replace(made, p_yes=o.video_after.p_yes)]
        views.append(_view(result, place / "video.mp4", clips, made.queries))
    taus = dict.fromkeys(methods, tau)
    return Page(title, about, next(iter(methods), ""), list(methods), views, taus, embedded=embed)


def _sample(
    sample: str, entries: Mapping[str, Mapping[str, Entry]], places: Mapping[str, Path], clips: list[Clip],
    queries: Sequence[str],
) -> SampleView:  # fmt: skip
    known = [(m, samples[sample].result) for m, samples in entries.items() if samples[sample].result is not None]
    if not known:
        return SampleView(sample, "", "", "", "", 1, 1, 1, 1, queries, clips)
    with_video = [(m, r) for m, r in known if (places[m] / sample / "video.mp4").exists()]
    method, result = (with_video or known)[0]
    assert result is not None
    return _view(result, places[method] / sample / "video.mp4", clips, queries)


def _view(result: Result, video: Path, clips: list[Clip], queries: Sequence[str]) -> SampleView:
    look = _look(video) if video.exists() else ("", 1.0, 1, 1, 1)
    return SampleView(result.sample, result.family, result.split, result.prompt, *look, queries, clips)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _clip(method: str, entry: Entry, place: Path, folder: Path, embed: bool) -> Clip:
    result = entry.result
    if result is None:
        return Clip(method, "failed", note="could not be done")
    video = place / "video.mp4"
    cost = result.cost
    o = result.optimization
    trace = _trace(read_json(place / "trace.json"))
    outcome = "failed" if entry.failed else _outcome(result.score)
    return Clip(
        method,
        outcome,
        _source(video, folder, embed) if video.exists() else "",
        hacked=bool(result.accepted) and outcome == "wrong",
        p_yes=(entry.judged.p_yes if entry.judged else None) or [],
        note=result.error or result.stop,
        score=f"{entry.official:.2f}" if entry.official is not None else _partial(result.score),
        rules=result.score.rules if result.score else {},
        cost=f"{cost.generated_seconds:.3g} s of video, {cost.reasoner_forwards} forwards, {cost.wall_seconds:.3g} s"
        + (f", {_count(cost.vlm_calls, 'VLM call')}" if cost.vlm_calls else "")
        + (f", {_count(o.steps, 'step')}" if o else ""),
        curves=_curves(place / "curves.csv"),
        queries=[o.queries["goal"], *o.queries["process"]] if o else [],
        trace=trace,
        notes=[] if trace else list(_notes(result.details)),
    )


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


def _trace(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A step loop's clips, each behind what the planner and the router said before it."""
    calls = [call | {"said": _said(call)} for call in content.get("calls", []) if call["role"] != "verifier"]
    events: list[Mapping[str, Any]] = []
    clips = content.get("clips", [])
    for number in range(len(clips) + 1):
        events += [call for call in calls if call["clip"] == number]
        events += clips[number : number + 1]
    return events


class _Fields(RootModel[dict[str, Any]]):
    """Any JSON object."""


def _said(call: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A reply's fields and what they say, empty ones left out; the reply itself where it is no JSON object."""
    text = str(call.get("error") or call.get("text", ""))
    try:
        fields = parse_reply(text, _Fields).root
    except ValueError:
        return [("", text)]
    return [(name.replace("_", " "), value) for name, value in _notes(fields)]


def _outcome(score: Scored | None) -> str:
    return "done" if score is None else "solved" if score.success else "wrong"


def _partial(score: Scored | None) -> str:
    return "" if score is None else f"{score.partial:.2f}"


def _fits(files: Sequence[Path]) -> bool:
    """Whether all these videos together are small enough to be embedded."""
    return sum(file.stat().st_size for file in files if file.exists()) <= EMBED_MB * 2**20


def _source(video: Path, folder: Path, embed: bool) -> str:
    if not embed:
        return os.path.relpath(video, folder).replace(os.sep, "/")
    return "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode()


def _look(video: Path) -> tuple[str, float, int, int, int]:
    """Thumbnail of the first frame as a data URI, frames a second, frames, width, height."""
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            image = next(container.decode(video=0)).to_image()
            fps, frames = float(stream.average_rate or 8), stream.frames or 1
    except (av.FFmpegError, StopIteration, IndexError) as error:
        raise UserError(f"{video} cannot be read as a video ({error}); remove its folder to make it anew") from error
    width, height = image.size
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode(), fps, frames, width, height


def _curves(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); remove its folder to make it anew") from error
    return [{n: v for n, v in row.items() if not n.startswith("loss_")} for row in rows]
