"""Text replies that the tiny vision-language models learn: questions for a prompt, plans, verdicts and routes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from training.miniworld import dialogues
from training.miniworld.dialogues import FATES, PLAN, ROUTE, SEEN, VERIFY, as_text, checks, done_text, evolved, is_lost
from training.miniworld.sight import Sight
from ttopt.miniworld.multistep import legs
from ttopt.miniworld.questions import Question
from ttopt.miniworld.scene import Task
from ttopt.miniworld.scorer import rule_truths
from ttopt.miniworld.tokenizer import CELL_NAMES, TENTHS, phrases
from ttopt.miniworld.world import COLOUR_NAMES, Reading, read, render
from ttopt.models.teacher import Teacher
from ttopt.models.teacher import prompts as words

QUERIES = "Questions: {prompt}"
CHOICES = "Does Has visit still exactly turned turns goes Move Paint Make Bring".split()  # what a sentence is to be
NO_IMAGES = torch.empty(0, 3, 48, 48)


@dataclass(frozen=True)
class Dialogue:
    """Images (n, 3, 48, 48) in [0, 1], the request, then the reply, which is learnt but for its beginning ``given``.

    What became of things (``FATES``) and which things are to move is learnt there too: it follows from what is told
    before it.
    """

    images: Tensor
    request: str
    reply: str
    given: str = ""


def reply_loss(teacher: Teacher, dialogues: Sequence[Dialogue], sight: Sight | None = None) -> Tensor:
    """Cross-entropy of the replies, averaged over their tokens with the weights of ``decisive``; and of ``sight``."""
    tokenizer, vision = teacher.tokenizer, teacher.vision
    number = tokenizer.convert_tokens_to_ids
    fates, places = torch.tensor(number(list(FATES))), torch.tensor(number([*CELL_NAMES, "?"]))
    rows, starts, pixels, grids = [], [], [], []
    for dialogue in dialogues:
        slots = ""
        for image in dialogue.images:
            patches, grid = vision.image_patches(image)
            pixels.append(patches)
            grids.append(grid)
            slots += words.IMAGE_SLOT.replace(words.IMAGE_PAD, words.IMAGE_PAD * vision.frame_token_count(grid))
        request = words.chat_text(tokenizer, [("user", dialogue.request)], slots)
        question = tokenizer(request, add_special_tokens=False)["input_ids"]
        rows.append(question + tokenizer(dialogue.reply + words.END, add_special_tokens=False)["input_ids"])
        given = len(tokenizer(dialogue.given, add_special_tokens=False)["input_ids"])
        starts.append((len(question), len(question) + given))
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    motion = _since(ids, number("Motion")) & ~_since(ids, number("reason"))  # who moves, and where
    follows = torch.isin(ids, fates) | (motion & ~torch.isin(ids, places))
    for i, (row, (begin, start)) in enumerate(zip(rows, starts, strict=True)):
        labels[i, start : len(row)] = ids[i, start : len(row)]
        labels[i, begin:start] = torch.where(follows[i, begin:start], ids[i, begin:start], -100)
    shown = {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.tensor(grids)} if pixels else {}
    kinds = (ids == teacher.model.config.image_token_id).int()
    out = teacher.model.model(input_ids=ids, attention_mask=mask, mm_token_type_ids=kinds, **shown)
    learnt = labels[:, 1:] >= 0
    wanted = labels[:, 1:][learnt]
    logits = teacher.model.lm_head(out.last_hidden_state[:, :-1][learnt])
    weights = decisive(tokenizer)[wanted]
    past = _since(ids, number("Motion"), number("observation"))[:, 1:]  # the grids are before it
    weights[past[learnt] & torch.isin(wanted, places)] = 6.0  # few, and what decides
    ends = torch.tensor(number([",", "."]))
    weights[motion[:, 1:][learnt] & torch.isin(wanted, ends)] = 8.0  # whether one more thing is to move
    loss = (weights * F.cross_entropy(logits, wanted, reduction="none")).sum() / weights.sum()
    if sight is None or not pixels:
        return loss
    return loss + sight(read(torch.cat([dialogue.images for dialogue in dialogues])[:, None]))


def _since(ids: Tensor, *words: int) -> Tensor:
    """Which tokens of ids (B, L) are one of the words or come after one, (B, L) bool."""
    return torch.isin(ids, torch.tensor(words)).cumsum(1) > 0


def decisive(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Weights of the vocabulary in the loss: names and judgements count more than the glue between them."""
    weights = torch.ones(len(tokenizer))
    for named, weight in (
        ([*phrases(), *COLOUR_NAMES, *TENTHS, *CHOICES, "nothing"], 4.0),
        (["Yes", "true", "false", "accept", "reject", *FATES[1:]], 8.0),
        (["No", "copy"], 16.0),  # one check of five fails in a wrong video
    ):
        weights[tokenizer.convert_tokens_to_ids(named)] = weight
    return weights


def queries(task: Task, rng: np.random.Generator) -> Dialogue:
    """The questions for a task, or for the (evolved) prompt of a step."""
    prompt = evolved(task, rng)
    goal, *process = (question.text() for question in task.questions)
    reply = json.dumps({"goal": goal, "process": process})
    return Dialogue(noisy(render(task.codes()[:1]), rng), QUERIES.format(prompt=prompt), reply)


def plan(task: Task, rng: np.random.Generator) -> Dialogue:
    """A plan for the next step at a random point of a task, sometimes one whose last step was undone."""
    whole = task.parent or task
    parts = legs(whole)
    states = [part.codes()[0] for part in parts] + [parts[-1].codes()[-1]]
    done = int(rng.integers(len(states)))
    fine = done == 0 or rng.random() < 0.8
    codes = states[done if fine else done - 1]
    return _plan(whole, noisy(render(codes[None]), rng), done, rng)


def plan_after(step: Task, frames: Tensor, rng: np.random.Generator) -> Dialogue | None:
    """A plan that starts from the last frame of a clip (9, 3, 48, 48) of one step of a longer task."""
    if step.parent is None:
        return None
    return _plan(step.parent, frames[-1:], step.number + 1, rng)


def _plan(whole: Task, image: Tensor, done: int, rng: np.random.Generator) -> Dialogue:
    steps = int(rng.choice([3, 3, 3, 4, 5, 6]))
    step = min(steps, done + 1 + int(rng.choice([0, 0, 0, 1, 2])))
    request = PLAN.format(prompt=whole.prompt, done=done_text(whole, done), step=step, steps=steps)
    return Dialogue(image, request, as_text(dialogues.plan(whole, done, read(image[None]), step, steps)))


def verify(task: Task, frames: Tensor, reading: Reading, rng: np.random.Generator) -> Dialogue | None:
    """A verdict about a clip (9, 3, 48, 48); None where a rule is a borderline case."""
    truths = [float(truth) for truth in rule_truths(task, reading).values()]
    if any(0.3 < t < 0.7 for t in truths):
        return None
    whole = (task.parent or task).prompt
    request = VERIFY.format(action=evolved(task, rng), prompt=whole)
    return Dialogue(frames[SEEN], request, as_text(dialogues.verdict(task, reading)))


def told(dialogue: Dialogue, before: str = "") -> Dialogue:
    """The dialogue without pictures, with its reply given up to the words ``before``."""
    return replace(dialogue, images=NO_IMAGES, given=dialogue.reply[: dialogue.reply.index(before)])


def answer(question: Question, frames: Tensor, truth: float) -> Dialogue:
    """One question about a clip (9, 3, 48, 48), as the teacher is asked."""
    return Dialogue(frames[SEEN], question.text(), "Yes" if truth > 0.5 else "No")


def route(task: Task, frames: Tensor, reading: Reading, rng: np.random.Generator) -> Dialogue:
    """What to do about a clip that was rejected again and again."""
    found = checks(task, reading)
    request = ROUTE.format(
        action=evolved(task, rng), prompt=(task.parent or task).prompt, reason=dialogues.reason(found)
    )
    return Dialogue(frames[:1], request, as_text(dialogues.route(task, found, is_lost(task, reading))))


def noisy(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Images with a little noise."""
    level = 0.05 * float(rng.random())
    noise = torch.from_numpy(rng.standard_normal(images.shape).astype(np.float32))
    return (images + level * noise).clamp(0, 1)
