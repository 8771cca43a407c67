"""Gen-ViRe's judge and arithmetic (arXiv 2511.13853): a rubric of criteria a sub-category, several judge runs averaged.

A sample's rubric (``eval_json_path``) holds ``criteria``, some with a maximum of their own, and, for some samples,
``max_score``. The score of a run is the sum of the criteria over ``max_score``, or over their maxima (1 where none is
stated, so that it is their mean); the average is that of the main categories' means. Where a sample asks for the last
frame by itself (``needs_frame_extraction``) the judge gets it after the video's frames. How it is cropped for a
``frame_crop_mode`` is not known here: such samples count 0, and the average without them is given beside.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, create_model
from torch import Tensor

from ttopt.config.comparison import CompareSettings
from ttopt.data.files import inside
from ttopt.data.genvire import output_path
from ttopt.data.sample import Sample
from ttopt.data.video import read_video
from ttopt.errors import UserError
from ttopt.evaluate.judges import Evaluator, Judgment, mean_of, server
from ttopt.evaluate.judges.ruler import frames
from ttopt.models.chat import Chat, Message, ask, fingerprint
from ttopt.record.run_folder import read_json, write_text

RUNS = 3
OWN_MAXIMUM = ("max_score", "max", "points")  # what a rubric may call a criterion's own maximum
WHOLE = (None, "", "none", "full")  # crop modes that leave a frame as it is

QUESTION = """\
These are: the input image, the frames of a generated video in order{last}. The video was made for: "{prompt}"
Score it by each criterion on its own, from 0 to the number behind it, {total} for all together:
{criteria}
Reply with JSON only: {{"reason": "...", "scores": [one number a criterion, in order]}}"""


def evaluator(settings: CompareSettings) -> Evaluator:
    """The judge behind chat.*; the benchmark's own is gemini-2.5-pro. Raises UserError without a server."""
    chat, model = server(settings, "Gen-ViRe", "gemini-2.5-pro"), settings.chat.model

    def evaluate(videos: Path, judged: Sequence[Sample], samples: Sequence[Sample], work: Path) -> Judgment:
        return judge_all(chat, videos, judged, samples, work, model)

    return evaluate


def judge_all(
    chat: Chat, videos: Path, judged: Sequence[Sample], samples: Sequence[Sample], work: Path, model: str
) -> Judgment:
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
    return Judgment("Gen-ViRe score", scores, summary(samples, scores), errors, {"judge": model, "runs": str(RUNS)})


def rubric_of(sample: Sample) -> dict[str, Any]:
    """The rubric of a sample's sub-category. Raises UserError."""
    row: dict[str, Any] = sample.answer
    name = row.get("eval_json_path")
    if not name:
        raise UserError("the sample names no rubric (eval_json_path)")
    if unsupported(sample):
        raise UserError(
            f"its last frame should be cropped ({row['frame_crop_mode']}), which is not known; counted as 0"
        )
    path = inside(row["root"], str(name))
    try:
        rubric = json.loads(path.read_text(encoding="utf-8"))
        criteria = rubric["criteria"]
        if not isinstance(criteria, list) or not criteria:
            raise ValueError("criteria is empty")
        maxima, total = _maxima(rubric)
        if not min(*maxima, total) > 0:
            raise ValueError("a maximum is not above 0")
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
    maxima, total = _maxima(rubric)
    numbered = enumerate(zip(rubric["criteria"], maxima, strict=True), start=1)
    criteria = "\n".join(f"{number}. {_text(item)} ({most:g})" for number, (item, most) in numbered)
    text = QUESTION.format(last=last, prompt=sample.prompt, total=f"{total:g}", criteria=criteria)
    return [Message("user", (*parts, text))]


def run_score(rubric: dict[str, Any], scores: Sequence[float]) -> float:
    """0..1: the sum of the criteria over what they may reach together."""
    return sum(scores) / _maxima(rubric)[1]


def summary(samples: Sequence[Sample], scores: dict[str, float]) -> dict[str, Any]:
    """Each main category's mean, and the mean of these; a sample without a verdict counts 0. Where there are samples
    that cannot be judged here, also how many, and the average without them."""
    found = _means(samples, scores)
    known = [sample for sample in samples if not unsupported(sample)]
    if len(known) < len(samples):
        found["unsupported"] = len(samples) - len(known)
        found["average without unsupported"] = _means(known, scores)["average"]
    return found


def unsupported(sample: Sample) -> bool:
    """Whether its last frame should be cropped in a way that is not known here."""
    row: dict[str, Any] = sample.answer
    return bool(row.get("needs_frame_extraction")) and row.get("frame_crop_mode") not in WHOLE


def _means(samples: Sequence[Sample], scores: dict[str, float]) -> dict[str, float]:
    categories = sorted({sample.family for sample in samples})
    found = {c: mean_of([scores.get(s.id, 0.0) for s in samples if s.family == c]) for c in categories}
    return {name: round(value, 4) for name, value in {**found, "average": mean_of(list(found.values()))}.items()}


def _maxima(rubric: dict[str, Any]) -> tuple[list[float], float]:
    """The highest score of each criterion, and of all together, which alone bounds those that state none."""
    total = float(rubric.get("max_score") or 0)
    maxima = []
    for item in rubric["criteria"]:
        own = [item[name] for name in OWN_MAXIMUM if name in item] if isinstance(item, dict) else []
        maxima.append(float(own[0]) if own else total or 1.0)
    return maxima, total or sum(maxima)


def _text(criterion: Any) -> str:
    if not isinstance(criterion, dict):
        return str(criterion)
    return "; ".join(f"{name}: {value}" for name, value in criterion.items())


def _schema(rubric: dict[str, Any]) -> type[BaseModel]:
    maxima, total = _maxima(rubric)
    count = len(maxima)

    def bounded(scores: list[float]) -> list[float]:
        for number, (score, most) in enumerate(zip(scores, maxima, strict=True), start=1):
            if score > most:
                raise ValueError(f"score {number} is {score:g}, but at most {most:g} is possible")
        if sum(scores) > total + 1e-6:
            raise ValueError(f"the scores add up to {sum(scores):g}, but at most {total:g} is possible")
        return scores

    number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
    scores = Annotated[list[number], Field(min_length=count, max_length=count), AfterValidator(bounded)]
    return create_model("Scores", reason=(str, ""), scores=(scores, ...))
