"""MME-CoF's judge (arXiv 2510.26802): sixteen frames of a video, rated from 0 to 4 in five aspects in one call.

The words are read out of the benchmark's genai_client.py, which lies beside its data.json (its README says so) and is
never run. Its script keeps the reply as text; here a reply without the five numbers is asked for again.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ttopt.config.comparison import CompareSettings
from ttopt.data.files import inside
from ttopt.data.mme_cof import output_path
from ttopt.data.sample import Sample
from ttopt.data.video import decode
from ttopt.errors import UserError, brief
from ttopt.evaluate.judges import Evaluator, Judgment, mean_of, server, verdict
from ttopt.models.chat import Chat, Jpeg, Message, fingerprint
from ttopt.record.run_folder import read_json, write_text

CODE = "genai_client.py"
ASPECTS = ("instruction_alignment", "temporal_consistency", "visual_stability", "content_fidelity", "focus_relevance")
MOST = 4  # of each aspect


def evaluator(settings: CompareSettings) -> Evaluator:
    """The judge behind chat.*; the benchmark's own is gemini-2.5-pro. Raises UserError without a server."""
    chat, root = server(settings, "MME-CoF", "gemini-2.5-pro"), Path(str(settings.root))

    def evaluate(videos: Path, judged: Sequence[Sample], samples: Sequence[Sample], work: Path) -> Judgment:
        return judge_all(chat, root, videos, judged, samples, work, settings.chat.model)

    return evaluate


def judge_all(
    chat: Chat, root: Path, videos: Path, judged: Sequence[Sample], samples: Sequence[Sample], work: Path, model: str
) -> Judgment:
    """Judges what ``work`` does not hold yet: one file a sample."""
    ratings: dict[str, dict[str, float]] = {}
    errors: dict[str, str] = {}
    for sample in judged:
        path = work / output_path(sample).with_suffix(".json")
        try:
            messages = question(sample.prompt, inside(root, CODE), videos / output_path(sample))
            asked = [model, fingerprint(messages)]
            found = _kept(read_json(path), asked)
            if found is None:
                judged_now = verdict(chat, messages, ratings_of)
                found, reply = judged_now
                path.parent.mkdir(parents=True, exist_ok=True)
                content = {"asked": asked, "reply": reply, "ratings": found}
                write_text(path, json.dumps(content, indent=1, ensure_ascii=False))
            ratings[sample.id] = found
        except UserError as error:  # a file of the data set, or a ChatError
            errors[sample.id] = str(error)
    scores = {name: mean_of(list(found.values())) / MOST for name, found in ratings.items()}
    return Judgment("MME-CoF score", scores, summary(samples, ratings), errors, {"judge": model}, ratings)


def _kept(content: dict[str, Any], asked: list[str]) -> dict[str, float] | None:
    reply = content.get("reply")
    if content.get("asked") != asked or not isinstance(reply, str):
        return None
    try:
        return ratings_of(reply)
    except ValueError:
        return None


def question(prompt: str, code: Path, video: Path) -> list[Message]:
    """What the judge is asked about one video, as the benchmark's script asks it."""
    text, count = words_of(code, prompt)
    film = decode(video)
    numbers = np.linspace(0, len(film.frames) - 1, num=count, dtype=int).tolist()
    frames: list[str | Tensor | Jpeg] = [Jpeg(frame) for frame in film.pixels(numbers)]
    return [Message("user", (text, *frames))]


def words_of(code: Path, prompt: str) -> tuple[str, int]:
    """The question's text for a prompt, and the number of frames, from the benchmark's source. Raises UserError."""
    try:
        tree = ast.parse(code.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{code} cannot be read ({brief(error)}); put the benchmark's {CODE} beside data.json"
        ) from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{code} is no Python ({brief(error)}); fetch the benchmark's code again") from error
    known: dict[str, Any] = {"input_description": prompt}
    assigned = [
        node for node in ast.walk(tree) if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    ]
    for node in sorted(assigned, key=lambda node: node.lineno):
        name = node.targets[0].id  # type: ignore[attr-defined]
        if isinstance(node.value, ast.Constant):
            known[name] = node.value.value
        elif isinstance(node.value, ast.JoinedStr):
            text = _text(node.value, known)
            if text is not None:
                known[name] = text
    text, count = known.get("eval_prompt"), known.get("SAMPLE_FRAMES")
    if not isinstance(text, str) or prompt not in text or not isinstance(count, int) or not 0 < count < 1000:
        raise UserError(
            f"{code} is written otherwise than it was (no eval_prompt or SAMPLE_FRAMES); see docs/benchmarks.md"
        )
    return text, count


def _text(node: ast.JoinedStr, known: dict[str, Any]) -> str | None:
    """An f-string made of constants and known texts; None for any other."""
    parts = []
    for value in node.values:
        if isinstance(value, ast.FormattedValue):
            name = value.value.id if isinstance(value.value, ast.Name) else None
            part = known.get(name) if name else None
        else:
            part = value.value if isinstance(value, ast.Constant) else None
        if not isinstance(part, str):
            return None
        parts.append(part)
    return "".join(parts)


def ratings_of(reply: str) -> dict[str, float]:
    """The five ratings of a reply. Raises ValueError saying what is wrong with it."""
    found = re.search(r"\{[^{}]*\}", reply)
    if not found:
        raise ValueError("there is no JSON object")
    try:
        content = json.loads(re.sub(r"//[^\n]*", "", found[0]))  # the question's own example has such comments
    except ValueError as error:
        raise ValueError(f"its JSON cannot be read ({brief(error)})") from error
    ratings = {}
    for aspect in ASPECTS:
        value = content.get(aspect)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MOST:
            raise ValueError(f"{aspect} must be a number from 0 to {MOST}, but is {value!r}"[:200])
        ratings[aspect] = float(value)
    return ratings


def summary(samples: Sequence[Sample], ratings: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Means, 0 to 4, of each aspect and of all five, overall and by category; what has no verdict counts 0."""
    groups: dict[str, list[Sample]] = {"overall": list(samples)}
    for sample in samples:
        groups.setdefault(sample.family, []).append(sample)
    found = {}
    for label, chosen in groups.items():
        means = {a: mean_of([ratings.get(s.id, {}).get(a, 0.0) for s in chosen]) for a in ASPECTS}
        found[label] = {
            name: round(value, 3) for name, value in {**means, "mean": mean_of(list(means.values()))}.items()
        }
    return found
