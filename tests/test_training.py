"""Trainings of the toy world's models: they learn from what they say, and untrained models fit the real classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from loop.planner import Plan
from loop.verifier import Verdict
from training import common, dialogues, distill, light, reasoner, teacher, vae
from training.code import CHANNELS, COLOR, DOWN, LEAVES, PAD, RIGHT, SCALE, SHAPE, STONE, film_code
from training.corruptions import corrupt
from training.films import random_film
from training.muon import orthogonal
from training.sight import contents
from ttopt.data import miniworld as dataset
from ttopt.data.replies import parse_reply
from ttopt.miniworld.chains import legs
from ttopt.miniworld.look import BOARDS, FPS, FRAMES, PER_MOVE, SIZE, render
from ttopt.miniworld.reader import from_film
from ttopt.miniworld.tasks import FAMILIES, LONG, make_task, task_bank
from ttopt.miniworld.tokenizer import reasoner_tokenizer, teacher_tokenizer
from ttopt.models.reasoner import Reasoner, StandardDecoder
from ttopt.models.reasoner.sampler import Schedule


def test_a_code_says_what_a_film_shows() -> None:
    for task in task_bank("ood", 5, 10):
        code = film_code(task.film())
        assert code.shape == (CHANNELS, BOARDS, 6, 6)
        things, grounds = contents([from_film(task.film(), boards=True)])
        assert torch.equal(code[COLOR:SHAPE].sum(0).flatten(1) > 0, things[0] > 0)
        pads = (grounds[0] > 0) & (grounds[0] < 7)
        assert torch.equal(code[PAD:STONE].sum(0).flatten(1) > 0, pads)
        assert code[LEAVES].sum() == code[[DOWN, RIGHT]].abs().sum()  # whoever leaves a cell comes to the next


def test_the_reasoner_learns_the_first_of_two_right_answers() -> None:
    tasks = [task for index in range(20) for task in [make_task("move", "train", 21, index)] if len(task.choices) > 1]
    batch = reasoner.Batch(tasks, reasoner_tokenizer(reasoner.TEXT_LENGTH))
    first, other = batch.first() * SCALE, batch.answers(torch.ones(len(tasks), dtype=torch.bool)) * SCALE
    for task, one, two in zip(tasks, first, other, strict=True):
        assert torch.equal(one, film_code(task.film(task.choices[0]))) and not torch.equal(one, two)


def test_a_wavering_code_is_nearest_to_its_own() -> None:
    films = [random_film(np.random.default_rng(number), 3, 0.5) for number in range(8)]
    codes = torch.stack([film_code(film) for film in films])
    blends, noisy = (
        vae.unsure(codes, vae.Phase(1, 8, 6, 3, 1.0, noise=noise, unsure=0.4), torch.Generator().manual_seed(0)) - codes
        for noise in (0.0, 0.3)
    )
    assert 0.3 < blends[:, :DOWN].abs().max() <= 0.4, "of the numbers 0 and 1 less than half of another"
    assert noisy.std() > blends.std()


def test_one_thing_gets_two_colors_mixed() -> None:
    rng, code = np.random.default_rng(0), film_code(make_task("two", "train", 21, 0).film())
    for _ in range(20):
        change = (teacher.mixed(code / SCALE, rng) * SCALE - code).flatten(2)
        assert len(change.abs().sum((0, 1)).nonzero()) == 1, "in one cell"
        changed = change.abs().sum((1, 2)).nonzero().flatten().tolist()
        assert len(changed) == 2 and max(changed) < SHAPE and 0.24 < change.max() < 0.76


def test_prompts_end_in_repairs_that_the_tokenizer_knows() -> None:
    tokenizer = reasoner_tokenizer(reasoner.TEXT_LENGTH)
    prompts = [task.prompt for step in range(20) for task in reasoner.training_tasks(step, 8)]
    assert all(tokenizer.unk_token_id not in tokenizer(prompt)["input_ids"] for prompt in prompts)
    assert 0.1 < sum(prompt.count(". ") > 1 for prompt in prompts) / len(prompts) < 0.3


@pytest.mark.parametrize("family", (*FAMILIES, *LONG))
def test_perfect_replies_can_be_read_and_accept_what_is_right(family: str) -> None:
    tokenizer = teacher_tokenizer()
    task = make_task(family, "train", 21, 3)
    for step in legs(task) if family in LONG else [task]:
        right, wrong = (
            from_film(film, boards=True) for film in (step.film(), corrupt(step, np.random.default_rng(0))[1])
        )
        for seen, accepted in ((right, True), (wrong, False)):
            text = dialogues.as_text(dialogues.verdict(step, seen))
            read_back = tokenizer.decode(tokenizer(text)["input_ids"])
            assert parse_reply(read_back, Verdict).accepted == accepted
    for done in range(len(task.stops or (0,)) + 1):
        said = dialogues.plan(task, done, from_film(task.film(), boards=True)[-1:], 1, 6)
        plan = parse_reply(tokenizer.decode(tokenizer(dialogues.as_text(said))["input_ids"]), Plan)
        assert plan.instruction == said["instruction"]


def test_training_never_sees_the_novel_commands() -> None:
    tasks = [task for step in (0, 7000) for task in reasoner.training_tasks(step, 8)]
    assert {task.split for task in tasks} == {"train"}
    assert len({task.name for task in tasks}) == 16


def test_random_films_never_put_two_things_in_a_cell() -> None:
    for seed in range(20):
        film = random_film(np.random.default_rng(seed), 5, 1.0)
        for board in range(5):
            cells = [actor.track[board] for actor in film.actors if actor.track[board] >= 0]
            assert len(cells) == len(set(cells))


def test_a_training_goes_on_from_its_packed_state(tmp_path: Path) -> None:
    def run(folder: Path) -> tuple[torch.nn.Linear, common.Run, dict[str, torch.optim.Optimizer]]:
        network = torch.nn.Linear(3, 2)
        optimizers: dict[str, torch.optim.Optimizer] = {"adam": torch.optim.AdamW(network.parameters(), 0.1)}
        ema = common.Ema(network, 0.5)
        return network, common.Run(folder, {"all": network}, optimizers, ema), optimizers

    network, first, optimizers = run(tmp_path / "one")
    for _ in first.steps(3):
        assert first.ema
        common.update(network(torch.ones(1, 3)).square().sum(), network, optimizers, first.ema, 1.0)
    common.pack(tmp_path / "one/state.safetensors", tmp_path / "two/state.safetensors")
    other, second, _ = run(tmp_path / "two")
    assert list(second.steps(5)) == [3, 4] and first.ema and second.ema
    for name, weight in other.named_parameters():
        torch.testing.assert_close(weight, first.ema.shadow[name].half().float())
        torch.testing.assert_close(second.ema.shadow[name], weight)


def test_muon_steps_are_nearly_orthogonal() -> None:
    matrix = orthogonal(torch.randn(12, 40, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(matrix)
    assert values.min() > 0.5 and values.max() < 1.3


def test_a_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def run(folder: Path, upto: int) -> torch.nn.Module:
        torch.manual_seed(0)
        net = torch.nn.Linear(8, 8)
        optimizers, ema = common.matrices_and_rest(net, 0.01, 1e-3), common.Ema(net, 0.9)
        for step in common.Run(folder, {"net": net}, optimizers, ema).steps(upto):
            x = torch.randn((4, 8), generator=torch.Generator().manual_seed(step))
            common.update((net(x) - x).square().mean(), net, optimizers, ema, 1.0)
        return net

    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "parts", 3)
    again = run(tmp_path / "parts", 6)
    assert torch.equal(whole.weight, again.weight)
    averaged = torch.nn.Linear(8, 8)
    common.averaged(tmp_path / "parts" / "state.safetensors", "net", averaged)
    assert not torch.equal(averaged.weight, again.weight)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    torch.manual_seed(0)
    common.save_half(vae.build(), folder / "vae")
    reasoner.save(*reasoner.build(), folder)
    light.LightDecoder(light.CONFIG).half().save(folder / "light")
    return folder


def test_the_real_loading_code_takes_the_models(untrained: Path) -> None:
    loaded = Reasoner.load(untrained, schedule=Schedule(distill.SIGMAS), light_decoder=untrained / "light")
    (sample,) = dataset.samples("id", ["two"], 1, 1)
    condition = loaded.condition(sample)
    assert condition.shape == (CHANNELS, BOARDS, 6, 6)
    latents = loaded.generate(loaded.noise(condition, [1]), condition)
    assert loaded.decode(latents).shape == (1, FRAMES, 3, SIZE, SIZE)
    assert loaded.light_decoder is not None
    assert loaded.light_decoder(latents, teacher.SHOWN).shape == (1, BOARDS, 3, SIZE, SIZE)
    shown = StandardDecoder(loaded.vae)(latents, [0, FRAMES - 1])
    assert torch.allclose(shown, loaded.decode(latents)[:, [0, -1]], atol=1e-4)
    files = list(untrained.rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) < 12e6


def test_the_few_step_sampler_is_the_reasoners_own(untrained: Path) -> None:
    loaded = Reasoner.load(untrained, schedule=Schedule(distill.SIGMAS))
    condition = loaded.condition(dataset.samples("id", ["move"], 1, 1))
    z1 = loaded.noise(condition, [1])
    assert condition.first_frame is not None
    mine = distill.sample(loaded.transformer, z1, condition.first_frame, condition.text)
    assert torch.allclose(mine, loaded.generate(z1, condition), atol=1e-4)


def test_the_teacher_sees_one_frame_a_board() -> None:
    torch.manual_seed(0)
    model = teacher.build()
    rng = np.random.default_rng(0)
    task, film = teacher.draw(rng)
    frames = render(film)[::PER_MOVE][None].requires_grad_()
    asked, truths = teacher.choose(task, from_film(film, boards=True), rng)
    losses = model.yes_losses(frames, [[q.text for q in asked]], FPS, teacher.SHOWN)
    assert losses.shape == (1, teacher.QUESTIONS) and set(truths) <= {0.0, 1.0}
    losses.sum().backward()
    assert frames.grad is not None and (frames.grad.abs().amax((2, 3, 4)) > 0).all()  # every board counts
    tokens = teacher_tokenizer()
    for family in FAMILIES:
        sample = dataset.to_sample(make_task(family, "ood", 4, 0))
        assert tokens.unk_token_id not in tokens(" ".join(dataset.true_queries(sample).all)).input_ids
