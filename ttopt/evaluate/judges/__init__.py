"""The benchmarks' own evaluators: VBVR-EvalKit where it is installed, a vision-language judge, or rules on pixels."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field

from ttopt.config.comparison import CompareSettings, chosen
from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.evaluate.files import find_sample
from ttopt.models.chat import Chat, ChatError, Message, OpenAIChat
from ttopt.record.plain import read_typed, there
from ttopt.record.result import CHECKED
from ttopt.record.run_folder import read_json, write_text, writing

OFFICIAL = "official.json"
Read = TypeVar("Read")
T = TypeVar("T")
Share = Annotated[float, Field(ge=0, le=1)]
SHOWN = 300  # characters of a reply that an error message quotes
ASKED = 3  # times, before a reply that cannot be read becomes an error
JUDGE_TOKENS = 8192  # at least: a judge thinks about every question first, and its thoughts count


@dataclass(frozen=True)
class Judgment:
    """One system's scores. ``scores`` holds one number in [0, 1] for every sample that has a video and a verdict."""

    __pydantic_config__ = CHECKED

    name: str
    scores: dict[str, Share]
    # The benchmark's own numbers: of all samples and of each of its groups, by metric; what has no verdict counts 0.
    summary: dict[str, dict[str, float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)  # sample -> what went wrong
    provenance: dict[str, str] = field(default_factory=dict)  # what decides the scores: versions, judge
    parts: dict[str, dict[str, float]] = field(default_factory=dict)  # sample -> its numbers by metric


@dataclass(frozen=True)
class Basis:
    """What a judgment is of."""

    __pydantic_config__ = CHECKED

    samples: list[str]
    videos: dict[str, str]  # sample -> when its video was finished
    prompt: str  # digest of the judge's instruction


@dataclass(frozen=True)
class Kept:
    """official.json."""

    __pydantic_config__ = CHECKED

    of: Basis
    verdict: Judgment


# The folder of a system's videos, the samples that have one, all samples, a folder to work in
Evaluator = Callable[[Path, Sequence[Sample], Sequence[Sample], Path], Judgment]


def find_evaluator(settings: CompareSettings) -> Evaluator | None:
    """The benchmark's evaluator, if it is asked for. Raises UserError if it cannot run here."""
    if not settings.official:
        return None
    judge_prompt(settings)  # a file that cannot be read
    found: Evaluator = importlib.import_module(f"ttopt.evaluate.judges.{settings.dataset}").evaluator(settings)
    return found


def judge(
    evaluator: Evaluator,
    settings: CompareSettings,
    folder: Path,
    samples: Sequence[Sample],
    note: Callable[[str], None],
) -> list[str]:
    """Writes official.json for every method whose videos, or else what decides its scores (all samples, as what is
    missing counts 0, and the judge's instruction), have changed; returns what went wrong."""
    prompt = hashlib.sha256(judge_prompt(settings).encode()).hexdigest()[:16]
    problems = []
    for method in chosen(settings):
        place = folder / "methods" / method.slug
        results = {s.id: find_sample(place / "samples" / s.id, folder) for s in samples}
        stamps = {name: r.finished for name, r in results.items() if r is not None and not r.error}
        of = Basis([sample.id for sample in samples], stamps, prompt)
        old = _kept(place, folder, note)
        if old is not None and old.of == of and not old.verdict.errors:
            verdict = old.verdict
        else:
            note(f"{method.name}: judging {len(stamps)} videos")
            judged = [sample for sample in samples if sample.id in stamps]
            verdict = evaluator(folder / "outputs" / method.slug, judged, samples, place / "official")
            with writing(folder):
                write_text(place / OFFICIAL, json.dumps(dataclasses.asdict(Kept(of, verdict)), indent=1))
        missing = [sample.id for sample in samples if sample.id not in stamps]
        if missing:
            problems.append(f"{method.name}: no video for {', '.join(missing)}; counted as 0")
        problems += [f"{method.name}: {sample}: {error}" for sample, error in verdict.errors.items()]
    return problems


def read_verdict(place: Path, root: Path) -> Kept:
    """A method's official.json. Raises UserError."""
    found: Kept = read_typed(place / OFFICIAL, root, Kept)
    return found


def _kept(place: Path, root: Path, note: Callable[[str], None]) -> Kept | None:
    if not there(place / OFFICIAL):
        return None
    try:
        return read_verdict(place, root)
    except UserError as error:
        note(f"{error}; judged again")
        return None


def server(settings: CompareSettings, benchmark: str, model: str) -> OpenAIChat:
    """The judge behind chat.*; ``model`` is the benchmark's own. Raises UserError without a server."""
    chat = settings.chat
    if chat.backend != "openai":
        raise UserError(
            f"{benchmark} needs a judge; give --chat.backend openai and --chat.model (the paper's: {model})"
        )
    return OpenAIChat(dataclasses.replace(chat, max_tokens=max(chat.max_tokens, JUDGE_TOKENS)))


def measured(judged: Sequence[Sample], measure: Callable[[Sample], T]) -> tuple[dict[str, T], dict[str, str]]:
    """What ``measure`` finds for each sample, and the problems of those at whose videos it raises UserError."""
    found: dict[str, T] = {}
    errors: dict[str, str] = {}
    for sample in judged:
        try:
            found[sample.id] = measure(sample)
        except UserError as error:
            errors[sample.id] = str(error)
    return found, errors


def opencv(benchmark: str) -> Any:
    """The module cv2. Raises UserError if it is not installed, or of a version that gives other numbers."""
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError as error:
        raise UserError(f"{benchmark}'s evaluator needs OpenCV ({error}); pip install -e '.[benchmarks]'") from error
    if int(cv2.__version__.split(".")[0]) >= 5:
        raise UserError(f"OpenCV is {cv2.__version__}, with which evaluators give other numbers; install OpenCV 4")
    return cv2


def verdict(chat: Chat, messages: Sequence[Message], read: Callable[[str], Read]) -> tuple[Read, str]:
    """What ``read`` makes of a reply's text, and the text; a reply that was cut off or at which ``read`` raises
    ValueError is asked for again. Raises ChatError after ASKED of them."""
    problem, cure = "", ""
    for _ in range(ASKED):
        reply = chat.reply(messages)
        if reply.cut:
            problem, cure = f"it was cut off after {reply.tokens_out} tokens", "raise chat.max_tokens"
            continue
        try:
            return read(reply.text), reply.text
        except ValueError as error:
            problem, cure = f"{error}; its last reply: {reply.text[:SHOWN]!r}", "use another judge"
    raise ChatError(f"{chat.name} gave no usable verdict, asked {ASKED} times: {problem}; {cure}")


def kept_verdict(
    chat: Chat, asked: list[str], messages: Sequence[Message], read: Callable[[str], Read], path: Path, name: str
) -> Read:
    """``verdict`` on messages, kept in ``path`` with the reply and, for people, what was read, as ``name``. A reply
    that is kept there with the same ``asked`` (the judge and the messages' fingerprint) is read again. Raises
    ChatError."""
    content = read_json(path)
    reply = content.get("reply")
    if content.get("asked") == asked and isinstance(reply, str):
        with suppress(ValueError):
            return read(reply)
    found, reply = verdict(chat, messages, read)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"asked": asked, "reply": reply, name: found}, indent=1, ensure_ascii=False))
    return found


def judge_prompt(settings: CompareSettings) -> str:
    """The judge's instruction where the user gives one, else "". Raises UserError."""
    if settings.judge_prompt is None:
        return ""
    try:
        return Path(settings.judge_prompt).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"judge_prompt {settings.judge_prompt} cannot be read ({error}); give a text file") from error


def mean_of(values: Sequence[float]) -> float:
    """0 for nothing: what is missing counts as 0."""
    return sum(values) / len(values) if values else 0.0
