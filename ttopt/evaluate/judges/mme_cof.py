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

import numpy as np
from torch import Tensor

from ttopt.config.comparison import CompareSettings
from ttopt.data.files import inside
from ttopt.data.mme_cof import output_path
from ttopt.data.sample import Sample
from ttopt.data.video import decode
from ttopt.errors import UserError, brief
from ttopt.evaluate.judges import Evaluator, Judgment, kept_verdict, mean_of, measured, server
from ttopt.evaluate.judges.source import parsed, text_of
from ttopt.models.chat import Chat, Jpeg, Message, fingerprint

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

    def rate(sample: Sample) -> dict[str, float]:
        messages = question(sample.prompt, inside(root, CODE), videos / output_path(sample))
        path = work / output_path(sample).with_suffix(".json")
        return kept_verdict(chat, [model, fingerprint(messages)], messages, ratings_of, path, "ratings")

    ratings, errors = measured(judged, rate)
    scores = {name: mean_of(list(found.values())) / MOST for name, found in ratings.items()}
    return Judgment("MME-CoF score", scores, summary(samples, ratings), errors, {"judge": model}, ratings)


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
        source = code.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{code} cannot be read ({brief(error)}); put the benchmark's {CODE} beside data.json"
        ) from error
    texts, count = {"input_description": prompt}, 0
    assigned = [node for node in ast.walk(parsed(source, code)) if isinstance(node, ast.Assign)]
    for node in sorted(assigned, key=lambda node: node.lineno):
        name, text = ast.unparse(node.targets[0]), text_of(node.value, texts)
        if text is not None:
            texts[name] = text
        elif name == "SAMPLE_FRAMES" and isinstance(node.value, ast.Constant) and isinstance(node.value.value, int):
            count = node.value.value
    words = texts.get("eval_prompt", "")
    if prompt not in words or not 0 < count < 1000:
        raise UserError(
            f"{code} is written otherwise than it was (no eval_prompt or SAMPLE_FRAMES); see docs/benchmarks.md"
        )
    return words, count


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
