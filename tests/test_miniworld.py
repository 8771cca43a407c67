"""The toy world: right films pass both scorers, wrong ones fail for their rule in both, splits differ as promised."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.corruptions import CORRUPTIONS
from ttopt.config.parsing import parse_fit
from ttopt.data import miniworld
from ttopt.data.find import find_samples, given_queries
from ttopt.errors import UserError
from ttopt.miniworld import known, reader
from ttopt.miniworld.chains import legs
from ttopt.miniworld.look import ABSENT, BOARDS, FRAMES, SIZE, Film, adjacent, color_of, pad, render
from ttopt.miniworld.novelty import commands, found, held_out_color
from ttopt.miniworld.scene import Task, ways
from ttopt.miniworld.scorer import score_videos
from ttopt.miniworld.second import judge_videos
from ttopt.miniworld.tasks import FAMILIES, LONG, SPLITS, make_task, task_bank
from ttopt.miniworld.tokenizer import reasoner_tokenizer


def failed(task: Task, film: Film) -> tuple[set[str], set[str]]:
    """The rules that a film breaks by either scorer."""
    video = render(film)[None]
    (first,), (second,) = score_videos(task, video), judge_videos(task, video)
    assert first.success == (not {k for k, holds in first.rules.items() if not holds})
    assert first.rules.keys() == second.keys()
    return {k for k, holds in first.rules.items() if not holds}, {k for k, holds in second.items() if not holds}


@pytest.mark.parametrize("split", ["id", "ood"])
@pytest.mark.parametrize("family", (*FAMILIES, *LONG))
def test_every_right_answer_passes_both_scorers(family: str, split: str) -> None:
    for index in range(3):
        task = make_task(family, split, 5, index)
        for choice in task.choices:
            assert failed(task, task.film(choice)) == (set(), set()), task.name
        (score,) = score_videos(task, render(task.film())[None])
        assert score.success and score.last and score.partial == 1


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_wrong_film_breaks_its_rules_in_both_scorers(name: str) -> None:
    rng, tried = np.random.default_rng(0), 0
    for task in task_bank("id", 5, 10) + task_bank("ood", 5, 10):
        made = CORRUPTIONS[name](task, rng)
        if made is None or tried == 5:
            continue
        film, wanted = made
        first, second = failed(task, film)
        assert wanted <= first and wanted <= second, (task.name, wanted, first, second)
        tried += 1
    assert tried >= 3


def test_the_last_frame_alone_is_scored_too() -> None:
    task = make_task("move", "id", 5, 0)
    video = render(task.film())
    video[3] = video[0] * 0.5
    (score,) = score_videos(task, video[None])
    assert score.last and not score.success and 0 < score.partial < 1
    assert not score_videos(task, render(task.film())[:5][None])[0].last  # stopped too early


def test_things_slide_four_pixels_a_frame() -> None:
    task = make_task("move", "id", 5, 1)
    seen = reader.from_film(task.film())
    assert len(seen) == FRAMES
    for before, after in pairwise(seen.things):
        steps = [abs(a.y - b.y) + abs(a.x - b.x) for a, b in zip(before, after, strict=True)]
        assert set(steps) <= {0, 4}


def test_the_reader_reads_what_was_rendered() -> None:
    for task in task_bank("ood", 6, 10):
        told, seen = reader.from_film(task.film()), reader.read(render(task.film()))
        assert np.array_equal(told.grounds, seen.grounds) and seen.stray.max() == 0
        for expected, blobs in zip(told.things, seen.things, strict=True):
            for a, b in zip(*(sorted((x.look, x.y, x.x) for x in row) for row in (expected, blobs)), strict=True):
                assert a[0] == b[0] and abs(a[1] - b[1]) <= 1 and abs(a[2] - b[2]) <= 1


def test_training_commands_nothing_that_the_novel_splits_do() -> None:
    bank = [task.prompt for task in task_bank("train", 21, 1500) + task_bank("train", 21, 60, LONG)]
    for split in ("ood", "dev_ood", "teacher_ood"):
        for task in task_bank(split, 3, 60) + task_bank(split, 3, 8, LONG):
            novel = {(look, color) for look, color in commands(task.prompt) if color == held_out_color(look)}
            assert novel and not found(bank, novel), task.prompt
    told = {command for prompt in bank for command in commands(prompt)}
    assert len(told) == 24 * 4  # everything else is commanded: each thing with four of the other five colors


def test_prompts_name_what_the_task_wants() -> None:
    for task in task_bank("id", 8, 25) + task_bank("ood", 8, 10, LONG):
        wanted = {(task.actors[s.actor].look, s.ground) for s in task.stops}
        wanted |= {(task.actors[a].look, pad(color_of(new))) for a, new in task.turns}
        assert {(look, pad(color)) for look, color in commands(task.prompt)} == wanted, task.prompt


def test_novel_boards_are_fuller() -> None:
    for family in ("move", "maze", "visit", "paint", "two"):
        most = max(len(make_task(family, "train", 21, i).actors) for i in range(100))
        count = [len(make_task(family, "ood", 3, i).actors) for i in range(20)]
        assert max(count) > most


def test_tasks_are_the_same_for_the_same_arguments_alone() -> None:
    for family in (*FAMILIES, *LONG):
        a, b, c = (make_task(family, "id", 5, i) for i in (3, 3, 4))
        assert a.prompt == b.prompt and torch.equal(render(a.film()), render(b.film()))
        assert not torch.equal(render(a.film())[0], render(c.film())[0])
    names = {make_task("move", split, 5, 3).prompt for split in SPLITS}
    assert len(names) > 3
    with pytest.raises(UserError, match="unknown family"):
        make_task("fly", "id", 5, 0)
    with pytest.raises(UserError, match="unknown split"):
        make_task("move", "test", 5, 0)


def test_long_tasks_fall_into_clips_that_chain() -> None:
    for task in task_bank("ood", 5, 6, LONG):
        parts = legs(task)
        assert len(parts) == 3 and task.boards == 3 * (BOARDS - 1) + 1
        for before, after in pairwise(parts):
            assert torch.equal(render(before.film())[-1], render(after.film())[0])
        for part in parts:
            assert failed(part, part.film()) == (set(), set())
            assert commands(part.prompt) <= commands(task.prompt)


def test_ways_are_shortest_and_legal() -> None:
    for start, end in ((0, 35), (7, 10), (3, 3)):
        for way in ways(start, end, {8, 9}, 9):
            assert way[0] == start and way[-1] == end and not set(way) & {8, 9}
            assert all(adjacent(a, b) for a, b in pairwise(way))
    assert ways(0, 35, {1, 6}) == []


def test_every_prompt_is_in_the_vocabulary() -> None:
    tokenizer = reasoner_tokenizer(48)
    tasks = task_bank("id", 7, 60) + task_bank("ood", 7, 30, LONG)
    prompts = [task.prompt for task in tasks] + [leg.prompt for task in tasks[-6:] for leg in legs(task)]
    ids = tokenizer(prompts, padding=True, return_tensors="pt").input_ids
    assert not (ids == tokenizer.unk_token_id).any() and ids.shape[1] <= 48
    assert render(tasks[0].film()).shape == (FRAMES, 3, SIZE, SIZE)


def test_the_same_arguments_give_the_same_samples() -> None:
    first, second = (miniworld.samples("ood", None, 7, 10) for _ in range(2))
    assert [s.prompt for s in first] == [s.prompt for s in second]
    assert all(torch.equal(a.image, b.image) for a, b in zip(first, second, strict=True))  # type: ignore[arg-type]
    assert [s.prompt for s in miniworld.samples("ood", None, 8, 10)] != [s.prompt for s in first]
    assert {s.family for s in first} == set(FAMILIES)


def test_nothing_but_prompt_first_frame_and_format_is_in_a_sample() -> None:
    sample = miniworld.samples("id", ["visit"], 0, 1)[0]
    assert torch.equal(sample.image, miniworld.true_video(sample)[0])  # type: ignore[arg-type]
    assert sample.frames == FRAMES and (sample.height, sample.width) == (SIZE, SIZE)


def test_export_has_the_layout_of_vbvr_bench(tmp_path: Path) -> None:
    made = miniworld.export(tmp_path, "ood", ["maze", "two"], 3, 4)
    assert len(made) == 4
    for folder in made:
        assert folder.parts[-3] == "Out-of-Domain_50" and folder.parent.name.endswith("_data-generator")
        names = {"first_frame.png", "final_frame.png", "ground_truth.mp4", "prompt.txt", "metadata.json"}
        assert {p.name for p in folder.iterdir()} == names
        assert json.loads((folder / "metadata.json").read_text())["frames"] == FRAMES


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("id", ["flying"], 0, 4), "unknown family 'flying'"),
        (("id", None, 0, 0), "limit 0"),
        (("everything", None, 0, 4), "unknown split"),
    ],
)
def test_wrong_requests_say_what_to_do(arguments: tuple[str, list[str] | None, int, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        miniworld.samples(*arguments)


def test_a_score_says_in_words_what_is_broken_and_in_which_frames() -> None:
    task = make_task("maze", "id", 5, 0)
    sample = miniworld.to_sample(task)
    assert (right := miniworld.score(sample, miniworld.true_video(sample))).success and not right.frames
    film = task.film()
    film.actors[-1].track[2] = ABSENT  # away on one board, so in the four frames of the move that ends there
    broken = miniworld.score(sample, render(film))
    assert not broken.success and broken.last and broken.frames == {"whole": [5, 6, 7, 8]}
    assert broken.words.keys() == broken.rules.keys() and all(broken.words.values())


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["--prompt", "Move the red circle to the moon."], "sample.prompt: the embedded models do not know 'moon'"),
        (["--prompt", "Move it 3 times."], "do not know 'it', '3', 'times'"),
        (["--prompt", "Move the red circle to the blue pad.", "--image", "grey.png"], "no scene of the embedded world"),
        (
            ["--sample.queries.goal", "Is the sky blue?", "--sample.queries.process", "[Is it red?]"],
            "sample.queries: the embedded models do not know 'sky'",
        ),
    ],
)
def test_what_the_embedded_models_cannot_know_is_refused(
    arguments: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (96, 96), "grey").save("grey.png")
    settings = parse_fit(arguments)
    with pytest.raises(UserError, match=problem):
        find_samples(settings), given_queries(settings)


def test_every_own_scene_is_known() -> None:
    for sample in miniworld.samples("ood", [*FAMILIES, *LONG], 11, 14):
        known.check_prompt(sample.prompt)
        known.check_questions(miniworld.true_queries(sample).all)
        assert sample.image is not None
        known.check_scene(sample.image)
