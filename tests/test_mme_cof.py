"""MME-CoF: its files, what its judge is asked, and its numbers; records in the public layout, a scripted judge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_judges import Judge, film

from ttopt.config.settings import SampleSettings
from ttopt.data import mme_cof as data
from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.evaluate.judges import mme_cof
from ttopt.models.chat import Jpeg

FORM = SampleSettings(frames=9, fps=8, height=180, width=320, multiple=4)
# The form of the benchmark's own file, with other words.
CODE = '''
SAMPLE_FRAMES = 4
TEXT_PROMPT_1 = "How good is it?"
TEXT_PROMPT_2 = """
Rate {"focus_relevance": 0}
"""
TITLE = f"{TEXT_PROMPT_1}{1 + 1}"

def evaluate_video(video_path, input_description, video_id):
    eval_prompt = f"{TEXT_PROMPT_1}\\\\n\\\\nDescription is:\\\\n{input_description}\\\\n\\\\n{TEXT_PROMPT_2}"
'''
GOOD = dict.fromkeys(mme_cof.ASPECTS, 3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rows = []
    for number, (category, size) in enumerate([("visual detail reasoning", (100, 100)), ("maze", (400, 100))] * 2):
        image = f"{category.replace(' ', '_')}/{number}.jpg"
        (tmp_path / image).parent.mkdir(exist_ok=True)
        Image.new("RGB", size, "black").save(tmp_path / image)
        rows.append(
            {"idx": number, "image": image, "category": category, "question": "?", "reasoning_prompt": f"Go {number}."}
        )
    (tmp_path / "data.json").write_text(json.dumps(rows))
    (tmp_path / "genai_client.py").write_text(CODE)
    return tmp_path


@pytest.fixture
def samples(root: Path) -> list[Sample]:
    return data.samples("id", None, 0, 9, root=root, form=FORM)


def test_images_become_16_to_9_by_white_borders(samples: list[Sample]) -> None:
    assert [s.id for s in samples] == ["visual_detail_reasoning.0", "maze.1", "visual_detail_reasoning.2", "maze.3"]
    square, wide = (s.image for s in samples[:2])
    assert square is not None and wide is not None
    assert all(abs(image.shape[2] / image.shape[1] - 16 / 9) < 0.06 for image in (square, wide))
    assert square[:, :, 0].min() > 0.99 and square[:, 0, 160].max() < 0.01, "white at the sides"
    assert wide[:, 0].min() > 0.99 and wide[:, 90, 0].max() < 0.01, "white above"
    assert data.borders(100, 100) == (0, 38) and data.borders(100, 400) == (62, 0)


def test_the_judge_is_asked_in_the_benchmarks_words(root: Path, tmp_path: Path) -> None:
    film(tmp_path / "v.mp4", frames=9)
    (message,) = mme_cof.question("Go.", root / "genai_client.py", tmp_path / "v.mp4")
    text, *frames = message.parts
    assert text == 'How good is it?\\n\\nDescription is:\\nGo.\\n\\n\nRate {"focus_relevance": 0}\n', "with its own \\n"
    levels = [float(frame.image.mean()) for frame in frames if isinstance(frame, Jpeg)]
    assert levels == pytest.approx((np.linspace(0, 8, 4, dtype=int) / 8).tolist(), abs=0.02)


def test_numbers_and_what_is_missing(root: Path, samples: list[Sample], tmp_path: Path) -> None:
    videos, work = tmp_path / "videos", tmp_path / "work"
    for sample in samples[:3]:
        film(videos / data.output_path(sample))
    better = "Sure:\n```json\n" + json.dumps(GOOD | {"focus_relevance": 4}).replace(",", ", // so\n", 1) + "\n```"
    judge = Judge(json.dumps(GOOD), "no idea", better, "no", "no", "no")
    found = mme_cof.judge_all(judge, root, videos, samples[:3], samples, work, "gemini")
    assert found.scores == {samples[0].id: 0.75, samples[1].id: pytest.approx(0.8)}
    assert "no usable verdict, asked 3 times" in found.errors[samples[2].id]
    assert found.summary["overall"]["visual_stability"] == 1.5 and found.summary["maze"]["focus_relevance"] == 2
    assert found.summary["overall"]["mean"] == pytest.approx((3 + 3.2) / 4)
    again = mme_cof.judge_all(Judge(json.dumps(GOOD)), root, videos, samples[:2], samples, work, "gemini")
    assert again.scores == found.scores, "kept, not asked again"


@pytest.mark.parametrize(
    "reply, problem",
    [
        ("fine", "no JSON object"),
        ("{4}", "cannot be read"),
        (json.dumps(GOOD | {"visual_stability": 5}), "visual_stability must be a number from 0 to 4"),
        (json.dumps(GOOD | {"visual_stability": True}), "visual_stability must be"),
        (json.dumps({"focus_relevance": 1}), "instruction_alignment must be"),
    ],
)
def test_replies_without_ratings(reply: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        mme_cof.ratings_of(reply)


def test_files_that_are_missing_or_written_otherwise(root: Path) -> None:
    with pytest.raises(UserError, match="the nearest is 'maze'"):
        data.samples("id", ["mazes"], 0, 1, root=root, form=FORM)
    (root / "genai_client.py").write_text("SAMPLE_FRAMES = 16")
    with pytest.raises(UserError, match="written otherwise than it was"):
        mme_cof.words_of(root / "genai_client.py", "Go.")
    with pytest.raises(UserError, match="beside data.json"):
        mme_cof.words_of(root / "none.py", "Go.")
    (root / "visual_detail_reasoning/0.jpg").unlink()
    with pytest.raises(UserError, match="there is no such file"):
        data.samples("id", None, 0, 9, root=root, form=FORM)


def test_an_image_travels_with_its_borders(samples: list[Sample]) -> None:
    frame = samples[0].first_frame
    assert frame is not None and not isinstance(frame, torch.Tensor)
    make, given = frame.__reduce__()
    assert torch.equal(make(*given).pixels(), frame.pixels())
