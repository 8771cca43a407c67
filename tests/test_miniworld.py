"""The sprite world: right answers pass, each wrong one fails for the right rule, splits differ as promised."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from training.miniworld.corruptions import CORRUPTIONS, corrupt
from training.miniworld.dialogues import PAD_NAMES, SPRITE_NAMES, as_text, checks, ending, plan, route, verdict
from ttopt.data import miniworld
from ttopt.errors import UserError
from ttopt.miniworld.multistep import LONGEST, legs
from ttopt.miniworld.scene import Actor, Task, distance
from ttopt.miniworld.scorer import rule_truths, score_videos
from ttopt.miniworld.tasks import FAMILIES, MULTI_STEP, make_task
from ttopt.miniworld.tokenizer import CELL_NAMES, reasoner_tokenizer, teacher_tokenizer
from ttopt.miniworld.world import CODES, COLOUR_NAMES, pad, pad_name, read, render, sprite_colour


def tasks(split: str, each: int = 12) -> list[Task]:
    return [make_task(family, split, 5, i) for family in FAMILIES for i in range(each)]


@pytest.mark.parametrize("split", ["id", "ood"])
def test_right_answers_pass_every_rule(split: str) -> None:
    for task in tasks(split) + [make_task(family, split, 5, i) for family in MULTI_STEP for i in range(6)]:
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
        failed = {rule.partition(",")[0] for rule, holds in score.rules.items() if not holds}
        assert not score.success and wanted <= failed, (task.name, wanted, failed)
        tried += 1
    assert tried >= 5


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_what_is_asked_covers_what_is_scored(name: str) -> None:
    rng = np.random.default_rng(2)
    for task in tasks("ood"):
        assert len(task.questions) <= 4
        right, made = read(render(task.codes()[None])), CORRUPTIONS[name](task, rng)
        assert all(float(question.truth(right)) > 0.5 for question in task.questions), task.name
        if made is not None and not torch.equal(made[0], task.codes()):
            wrong = read(render(made[0][None]))
            assert any(float(question.truth(wrong)) < 0.5 for question in task.questions), task.name


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_verdict_follows_from_what_it_says_is_seen(name: str) -> None:
    rng = np.random.default_rng(1)
    for task in tasks("ood"):
        for codes in (task.codes(), *(made[0] for made in [CORRUPTIONS[name](task, rng)] if made)):
            reading = read(render(codes[None]))
            new, pads = checks(task, reading)[-2:]
            assert new.holds == (new.evidence == "nothing"), (task.name, new)
            shown = dict(re.findall(r"([a-f]\d)((?: [a-z]+ (?:pad|square|triangle|cross))?)", ending(reading)))
            shown = {CELL_NAMES.index(cell): name.strip() for cell, name in shown.items()}
            kept = all(shown[cell] in {pad_name(ground)} | SPRITE_NAMES for cell, ground in task.pads.items())
            added = any(name in PAD_NAMES for cell, name in shown.items() if cell not in task.pads)
            assert pads.holds == (kept and not added), (task.name, pads)


@pytest.mark.parametrize("family", MULTI_STEP)
def test_a_long_task_is_a_chain_of_steps_that_fit_a_clip_each(family: str) -> None:
    for task in (make_task(family, split, 5, i) for split in ("id", "ood") for i in range(6)):
        parts = legs(task)
        clips = [render(part.codes()) for part in parts]
        assert all(score_videos(p, c.unsqueeze(0))[0].success for p, c in zip(parts, clips, strict=True))
        assert all(torch.equal(a[-1], b[0]) for a, b in pairwise(clips))
        moves = sum(len(set(part.actors[0].track)) - 1 for part in parts)
        assert moves > LONGEST
        unfinished = torch.cat([clips[0], clips[1][1:]])
        assert not score_videos(task, unfinished.unsqueeze(0))[0].success


def test_a_relay_out_of_order_and_a_tour_without_its_first_pad_fail() -> None:
    relay = make_task("relay", "id", 5, 0)
    together = [Actor(a.sprite, legs(relay)[i].actors[0].track, [a.sprite] * 9) for i, a in enumerate(relay.actors[:3])]
    codes = replace(relay, actors=[*together, *(Actor(a.sprite, a.track[:9], a.looks[:9]) for a in relay.actors[3:])])
    failed = [k for k, v in score_videos(relay, render(codes.codes()).unsqueeze(0))[0].rules.items() if not v]
    assert failed == ["order"]
    tour = make_task("tour", "id", 5, 0)
    video = render(tour.codes())
    truths = rule_truths(tour, read(torch.stack([video, torch.cat([video[:1], video[9:], video[-8:]])])))
    assert truths["goal"][0] > 0.5 > truths["goal"][1]


def test_verdicts_agree_with_the_scorer_and_plans_solve_long_tasks() -> None:
    rng = np.random.default_rng(0)
    for task in tasks("id", 6):
        for codes in (task.codes(), CORRUPTIONS["mover_vanishes"](task, rng)[0]):  # type: ignore[index]
            reading = read(render(codes).unsqueeze(0))
            score = score_videos(task, render(codes).unsqueeze(0))[0]
            assert (verdict(task, reading)["verdict"] == "accept") == score.success
    for family in MULTI_STEP:
        task = make_task(family, "id", 5, 1)
        parts = legs(task)
        states = [part.codes()[:1] for part in parts] + [parts[-1].codes()[-1:]]
        replies = [plan(task, done, read(render(codes)[None]), done + 1, 4) for done, codes in enumerate(states)]
        assert [r["instruction"] for r in replies[:3]] == [part.prompt for part in legs(task)]
        assert [r["task_complete"] for r in replies] == [False, False, False, True]


def test_perfect_replies_use_known_words_only() -> None:
    tokenizer = teacher_tokenizer()
    for family in (*FAMILIES, *MULTI_STEP):
        task = make_task(family, "ood", 5, 0)
        reading = read(render(task.codes()).unsqueeze(0))
        for reply in (plan(task, 1, reading, 2, 3), verdict(task, reading), route(task, checks(task, reading), False)):
            assert tokenizer.unk_token_id not in tokenizer(as_text(reply))["input_ids"], reply


def test_a_verdict_can_be_checked_from_what_it_says_is_seen() -> None:
    """Every "still in its place?" by the cell it names in the list of the last frame's 36 cells."""
    rng, checked = np.random.default_rng(0), Counter[str]()
    for task in tasks("ood", 8):
        for codes in (task.codes(), corrupt(task, rng)[1], corrupt(task, rng)[1]):
            said = verdict(task, read(render(codes)[None]))
            end = re.search(r"End: (.*?)\.", str(said["seen"]))[1]  # type: ignore[index]
            cells = dict(re.findall(r"([a-f][1-6])(?: ([a-z]+ (?:square|triangle|cross|pad)|wall|\?))?", end))
            assert list(cells) == CELL_NAMES
            kept = re.findall(
                r"Is the ([a-z ]+) still in its place at the end\? ([a-f][1-6]) .*?: (\w+)", str(said["reason"])
            )
            assert [cell for _, cell, _ in kept] == sorted((cell for _, cell, _ in kept), key=CELL_NAMES.index)
            for name, cell, answer in kept:
                assert (cells[cell] == name) == (answer == "Yes")
                checked[answer] += 1
    assert min(checked["Yes"], checked["No"]) > 3


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
