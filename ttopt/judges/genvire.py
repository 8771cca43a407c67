"""Gen-ViRe's judge and arithmetic (arXiv 2511.13853): a rubric of criteria a sub-category, several judge runs averaged.

A sample's rubric (``eval_json_path``) holds ``criteria`` and, for some, ``max_score``. The score of a run is the mean
of the criteria, or their sum over ``max_score``; the average is that of the main categories' means. Where a sample asks
for the last frame by itself (``needs_frame_extraction``) the judge gets it after the video's frames.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, create_model
from torch import Tensor

from ttopt.chat import Chat, Message, ask, fingerprint
from ttopt.compare_config import CompareSettings
from ttopt.datasets.files import inside
from ttopt.datasets.genvire import output_path
from ttopt.errors import UserError
from ttopt.judges import Evaluator, Verdict, mean_of, server
from ttopt.judges.ruler import frames
from ttopt.runfolder import read_json, write_text
from ttopt.sample import Sample
from ttopt.video import read_video

RUNS = 3
WHOLE = (None, "", "none", "full")  # crop modes that leave a frame as it is

QUESTION = """\
These are: the input image, the frames of a generated video in order{last}. The video was made for: "{prompt}"
Score it by each criterion on its own, from 0 to {most}:
{criteria}
Reply with JSON only: {{"reason": "...", "scores": [one number a criterion, in order]}}"""


def evaluator(settings: CompareSettings) -> Evaluator:
    """The judge behind chat.*; the benchmark's own is gemini-2.5-pro. Raises UserError without a server."""
    chat, model = server(settings, "Gen-ViRe", "gemini-2.5-pro"), settings.chat.model

    def evaluate(videos: Path, judged: Sequence[Sample], samples: Sequence[Sample], work: Path) -> Verdict:
        return judge_all(chat, videos, judged, samples, work, model)

    return evaluate


def judge_all(
    chat: Chat, videos: Path, judged: Sequence[Sample], samples: Sequence[Sample], work: Path, model: str
) -> Verdict:
    """Judges what ``work`` does not hold yet: one file a sample and run."""
    runs: dict[str, list[float]] = {}
    errors: dict[str, str] = {}
    for sample in judged:
        try:
            rubric = rubric_of(sample)
            messages = question(sample, rubric, videos / output_path(sample))
            schema, key = _schema(rubric), fingerprint(messages)
            for run in range(1, RUNS + 1):
                path = work / f"run_{run}" / output_path(sample).with_suffix(".json")
                kept = read_json(path)
                if kept.get("asked") != [model, key]:
                    reply: Any = ask(chat, messages, schema)
                    kept = {"asked": [model, key], "scores": reply.scores, "reason": reply.reason}
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_text(path, json.dumps(kept, indent=1, ensure_ascii=False))
                runs.setdefault(sample.id, []).append(run_score(rubric, kept["scores"]))
        except UserError as error:  # also a ChatError: a judge that fails in one run leaves the sample unjudged
            errors[sample.id] = str(error)
            runs.pop(sample.id, None)
    scores = {sample: mean_of(values) for sample, values in runs.items()}
    return Verdict("Gen-ViRe score", scores, summary(samples, scores), errors, {"judge": model, "runs": str(RUNS)})


def rubric_of(sample: Sample) -> dict[str, Any]:
    """The rubric of a sample's sub-category. Raises UserError."""
    row: dict[str, Any] = sample.answer
    name = row.get("eval_json_path")
    if not name:
        raise UserError("the sample names no rubric (eval_json_path)")
    if row.get("needs_frame_extraction") and row.get("frame_crop_mode") not in WHOLE:
        raise UserError(f"its last frame should be cropped ({row['frame_crop_mode']}), which is not known here")
    path = inside(row["root"], str(name))
    try:
        rubric = json.loads(path.read_text(encoding="utf-8"))
        criteria = rubric["criteria"]
        if not isinstance(criteria, list) or not criteria:
            raise ValueError("criteria is empty")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"rubric {path} cannot be read ({error!r}); fetch the data set again") from error
    result: dict[str, Any] = rubric
    return result


def question(sample: Sample, rubric: dict[str, Any], video: Path) -> list[Message]:
    """What the judge is asked about one video."""
    parts: list[str | Tensor] = [] if sample.image is None else [sample.image]
    parts += frames(video)
    last = ""
    if sample.answer.get("needs_frame_extraction"):
        parts.append(read_video(video)[-1])
        last = ", and once more its last frame"
    criteria = [f"{number}. {_text(item)}" for number, item in enumerate(rubric["criteria"], start=1)]
    text = QUESTION.format(last=last, prompt=sample.prompt, most=f"{_most(rubric):g}", criteria="\n".join(criteria))
    return [Message("user", (*parts, text))]


def run_score(rubric: dict[str, Any], scores: Sequence[float]) -> float:
    """0..1: the mean of the criteria, or their sum over max_score."""
    total = rubric.get("max_score")
    return sum(scores) / float(total) if total else mean_of(scores)


def summary(samples: Sequence[Sample], scores: dict[str, float]) -> dict[str, Any]:
    """Each main category's mean, and the mean of these; a sample without a verdict counts 0."""
    categories = sorted({sample.family for sample in samples})
    found = {c: mean_of([scores.get(s.id, 0.0) for s in samples if s.family == c]) for c in categories}
    return {name: round(value, 4) for name, value in {**found, "average": mean_of(list(found.values()))}.items()}


def _most(rubric: dict[str, Any]) -> float:
    """The highest score of one criterion."""
    total = rubric.get("max_score")
    return float(total) / len(rubric["criteria"]) if total else 1.0


def _text(criterion: Any) -> str:
    if not isinstance(criterion, dict):
        return str(criterion)
    return "; ".join(f"{name}: {value}" for name, value in criterion.items())


def _schema(rubric: dict[str, Any]) -> type[BaseModel]:
    count, most = len(rubric["criteria"]), _most(rubric)
    number = Annotated[float, Field(ge=0, le=most)]
    scores = (list[number], Field(min_length=count, max_length=count))
    return create_model("Scores", reason=(str, ""), scores=scores)
