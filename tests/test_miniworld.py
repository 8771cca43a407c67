"""The sprite world: right answers pass, each wrong one fails for the right rule, splits differ as promised."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from ttopt.datasets import miniworld
from ttopt.errors import UserError
from ttopt.miniworld.corruptions import CORRUPTIONS
from ttopt.miniworld.scorer import rule_truths, score_videos
from ttopt.miniworld.tasks import FAMILIES, Task, distance, make_task
from ttopt.miniworld.tokenizer import reasoner_tokenizer, teacher_tokenizer
from ttopt.miniworld.world import CODES, COLOUR_NAMES, pad, read, render, sprite_colour


def tasks(split: str, each: int = 12) -> list[Task]:
    return [make_task(family, split, 5, i) for family in FAMILIES for i in range(each)]


@pytest.mark.parametrize("split", ["id", "ood"])
def test_right_answers_pass_every_rule(split: str) -> None:
    for task in tasks(split):
        score = score_videos(task, render(task.codes()).unsqueeze(0))[0]
        assert score.success and score.partial > 0.95, (task.name, score)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_fails_for_its_rule(name: str) -> None:
    rng, tried = np.random.default_rng(0), 0
    for task in tasks("id"):
        made = CORRUPTIONS[name](task, rng)
        if made is None or torch.equal(made[0], task.codes()):
            continue
        codes, wanted = made
        score = score_videos(task, render(codes).unsqueeze(0))[0]
        failed = {rule.removesuffix(", second") for rule, holds in score.rules.items() if not holds}
        assert not score.success and wanted <= failed, (task.name, wanted, failed)
        tried += 1
    assert tried >= 5


def test_reading_inverts_rendering() -> None:
    codes = torch.randint(CODES, (3, 9, 36), generator=torch.Generator().manual_seed(0))
    assert torch.equal(read(render(codes)).codes(), codes)


def test_a_ghost_counts_as_gone_and_a_copy_as_one_too_many() -> None:
    task = make_task("move", "id", 5, 0)
    video, start = render(task.codes()), render(task.codes()[:1])[0]
    faded = video.clone()
    faded[-1] = 0.75 * start + 0.25 * video[-1]  # the mover is mostly back at its start
    truths = rule_truths(task, read(torch.stack([video, faded])))
    assert truths["goal"][0] > 0.5 > truths["goal"][1]


def test_the_same_arguments_give_the_same_samples() -> None:
    first, second = (miniworld.samples("ood", None, 7, 10) for _ in range(2))
    assert [s.prompt for s in first] == [s.prompt for s in second]
    assert all(torch.equal(a.image, b.image) for a, b in zip(first, second, strict=True))  # type: ignore[arg-type]
    assert [s.prompt for s in miniworld.samples("ood", None, 8, 10)] != [s.prompt for s in first]
    assert {s.family for s in first} == set(FAMILIES)


def test_out_of_distribution_is_longer_and_has_unseen_colour_pairs() -> None:
    def way(task: Task) -> int:
        track = task.actors[0].track
        return sum(distance(a, b) for a, b in pairwise(track))

    def rare(task: Task) -> bool:
        subject = COLOUR_NAMES.index(sprite_colour(task.actors[0].sprite))
        target = next(i for i, c in enumerate(COLOUR_NAMES) if task.pads[task.actors[0].track[-1]] == pad(c))
        return (subject - target) % 6 == 3

    usual, hard = ([make_task("move", split, 5, i) for i in range(60)] for split in ("id", "ood"))
    assert max(map(way, usual)) <= 3 < max(map(way, hard)) <= 5
    assert not any(map(rare, usual)) and sum(map(rare, hard)) > 10


def test_nothing_but_prompt_first_frame_and_format_is_in_a_sample() -> None:
    sample = miniworld.samples("id", ["visit"], 0, 1)[0]
    assert torch.equal(sample.image, miniworld.true_video(sample)[0])  # type: ignore[arg-type]
    assert sample.frames == 9 and (sample.height, sample.width) == (48, 48)


def test_vocabularies_cover_every_prompt_and_question() -> None:
    reasoner, teacher = reasoner_tokenizer(28), teacher_tokenizer()
    for task in tasks("ood", 20):
        assert reasoner.unk_token_id not in reasoner(task.prompt).input_ids
        assert len(reasoner(task.prompt).input_ids) <= 28
        for text in (task.prompt, *(q.text() for q in (task.goal, *task.process))):
            assert teacher.unk_token_id not in teacher(text).input_ids, text


def test_export_has_the_layout_of_vbvr_bench(tmp_path: Path) -> None:
    made = miniworld.export(tmp_path, "ood", ["maze", "two"], 3, 4)
    assert len(made) == 4
    for folder in made:
        assert folder.parts[-3] == "Out-of-Domain_50" and folder.parent.name.endswith("_data-generator")
        names = {"first_frame.png", "final_frame.png", "ground_truth.mp4", "prompt.txt", "metadata.json"}
        assert {p.name for p in folder.iterdir()} == names
        assert json.loads((folder / "metadata.json").read_text())["frames"] == 9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("id", ["flying"], 0, 4), "unknown miniworld family 'flying'"),
        (("id", None, 0, 0), "limit 0"),
        (("everything", None, 0, 4), "unknown miniworld split"),
    ],
)
def test_wrong_requests_say_what_to_do(arguments: tuple[str, list[str] | None, int, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        miniworld.samples(*arguments)
