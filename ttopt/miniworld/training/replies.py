"""Text replies that the tiny vision-language models learn: questions for a prompt, plans, verdicts and routes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ttopt.miniworld import dialogues
from ttopt.miniworld.dialogues import PLAN, ROUTE, SEEN, VERIFY, as_text, checks, done_text, evolved, is_lost
from ttopt.miniworld.multistep import legs
from ttopt.miniworld.questions import Keeps, Question
from ttopt.miniworld.scene import Task
from ttopt.miniworld.scorer import rule_truths
from ttopt.miniworld.tokenizer import CELL_NAMES, TENTHS, phrases
from ttopt.miniworld.world import (
    CELLS,
    COLOUR_NAMES,
    EMPTY,
    NONE,
    SPRITES,
    WALL,
    Reading,
    pad_name,
    read,
    render,
    sprite_name,
)
from ttopt.teacher import Teacher
from ttopt.teacher import prompts as words

QUERIES = "Questions: {prompt}"
CHOICES = "Does Has visit still exactly turned turns goes Move Paint Make Bring".split()  # what a sentence is to be


@dataclass(frozen=True)
class Dialogue:
    """Images (n, 3, 48, 48) in [0, 1], the request, then the reply, which is learnt but for its beginning ``given``."""

    images: Tensor
    request: str
    reply: str
    given: str = ""


class Sight(nn.Module):
    """Training-only: each vision token, which is one cell, says by the words' own embeddings what it is and shows.

    It should look like the sum of its name and of what is in it. To write down a cell is then to find its name and to
    copy, and to say where something is, to find the thing and to copy.
    """

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        width = teacher.model.config.text_config.hidden_size
        self.content, self.place = nn.Linear(width, width), nn.Linear(width, width)
        self.empty = nn.Parameter(torch.randn(1, width))
        self.scales = nn.Parameter(torch.tensor([8.0, 8.0]))
        self.sums = nn.ParameterList(torch.tensor([8.0, -3.0]) for _ in range(2))  # scale and bias: objects, cells
        ids = teacher.tokenizer.convert_tokens_to_ids
        sprites = [sprite_name(number) for number in range(1, SPRITES)]
        pads = [pad_name(ground) for ground in range(1, WALL)]
        self.objects, self.names = torch.tensor(ids([*sprites, *pads, "wall"])), torch.tensor(ids(CELL_NAMES))
        self.embedding = [teacher.model.model.language_model.embed_tokens]  # in a list: not a part of this module
        self.tokens: list[Tensor] = []
        teacher.model.model.visual.merger.register_forward_hook(lambda _m, _i, out: self.tokens.append(out))

    def forward(self, images: Tensor) -> Tensor:
        """Sum of the cross-entropies for the images (N, 3, 48, 48) that the model has just been shown."""
        tokens = self.tokens.pop().unflatten(0, (len(images), CELLS))  # (N, 36, D)
        words = self.embedding[0].weight
        content, place = seen(images), torch.arange(CELLS).expand(len(images), -1)  # (N, 36), content 0: empty
        objects, names = words[self.objects], words[self.names]
        weights = torch.ones(1 + len(objects))
        weights[0] = 0.1
        contents = self.scales[0] * cosines(self.content(tokens), torch.cat([self.empty, objects]))  # (N, 36, 26)
        places = self.scales[1] * cosines(self.place(tokens), names)  # (N, 36, 36)
        total = F.cross_entropy(contents.flatten(0, 1), content.flatten(), weights)
        total = total + F.cross_entropy(places.flatten(0, 1), place.flatten())
        there = F.one_hot(content.clamp_min(0), len(weights))[..., 1:].float()  # (N, 36, 25)
        own = F.one_hot(place, CELLS).float()
        for (scale, bias), named, target in zip(self.sums, (objects, names), (there, own), strict=True):
            logits = scale * cosines(tokens, named) + bias
            total = total + 5 * F.binary_cross_entropy_with_logits(logits, target)
        return total


def cosines(tokens: Tensor, words: Tensor) -> Tensor:
    """Cosines of tokens (..., D) and words (K, D): (..., K)."""
    return F.normalize(tokens, dim=-1) @ F.normalize(words, dim=-1).T


def seen(images: Tensor) -> Tensor:
    """What the cells of images (N, 3, 48, 48) show, (N, 36): 0 nothing, 1..18 a sprite, 19..24 a pad, 25 a wall, -100 a
    smear."""
    reading = read(images[None])
    codes = reading.codes()[0]  # (N, 36)
    sprite, ground = codes % SPRITES, codes // SPRITES
    shown = torch.where(sprite == NONE, torch.where(ground == EMPTY, 0, SPRITES - 1 + ground), sprite)
    return shown.masked_fill(reading.sprite[0].amax(-1) <= 0.5, -100)


def reply_loss(teacher: Teacher, dialogues: Sequence[Dialogue], sight: Sight | None = None) -> Tensor:
    """Cross-entropy of the replies, averaged over their tokens with the weights of ``decisive``; and of ``sight``."""
    tokenizer, vision = teacher.tokenizer, teacher.vision
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
        starts.append(len(question) + len(tokenizer(dialogue.given, add_special_tokens=False)["input_ids"]))
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, start : len(row)] = ids[i, start : len(row)]
        mask[i, : len(row)] = 1
    shown = {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.tensor(grids)} if pixels else {}
    kinds = (ids == teacher.model.config.image_token_id).int()
    out = teacher.model.model(input_ids=ids, attention_mask=mask, mm_token_type_ids=kinds, **shown)
    learnt = labels[:, 1:] >= 0
    wanted = labels[:, 1:][learnt]
    logits = teacher.model.lm_head(out.last_hidden_state[:, :-1][learnt])
    weights = decisive(tokenizer)[wanted]
    cells, motion = tokenizer.convert_tokens_to_ids([*CELL_NAMES, "?"]), tokenizer.convert_tokens_to_ids("Motion")
    moving = ((labels == motion).cumsum(1)[:, 1:] > 0)[learnt] & torch.isin(wanted, torch.tensor(cells))
    weights[moving] = 6.0  # few, and what decides
    loss = (weights * F.cross_entropy(logits, wanted, reduction="none")).sum() / weights.sum()
    return loss if sight is None or not pixels else loss + sight(torch.cat([dialogue.images for dialogue in dialogues]))


def decisive(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Weights of the vocabulary in the loss: names and judgements count more than the glue between them."""
    weights = torch.ones(len(tokenizer))
    for named, weight in (
        ([*phrases(), *COLOUR_NAMES, *TENTHS, *CHOICES, "nothing"], 4.0),
        (["Yes", "true", "false", "accept", "reject"], 8.0),
        (["No"], 16.0),  # one check of five fails in a wrong video
    ):
        weights[tokenizer.convert_tokens_to_ids(named)] = weight
    return weights


def written(task: Task, prompt: str) -> list[Question]:
    """The questions about a prompt: the goal and up to three rules, of other objects only those that it names."""
    rules = [q for q in task.process if not isinstance(q, Keeps) or sprite_name(q.sprite) in prompt]
    return [task.goal, *rules[:3]]


def queries(task: Task, rng: np.random.Generator) -> Dialogue:
    """The questions for a task, or for the (evolved) prompt of a step."""
    prompt = evolved(task, rng)
    goal, *process = (q.text() for q in written(task, prompt))
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


def conclude(task: Task, reading: Reading, rng: np.random.Generator) -> Dialogue:
    """A verdict without pictures, in which what is seen is given: what follows has to be read from there."""
    request = VERIFY.format(action=evolved(task, rng), prompt=(task.parent or task).prompt)
    reply = as_text(dialogues.verdict(task, reading))
    return Dialogue(torch.empty(0, 3, 48, 48), request, reply, reply[: reply.index('"reason"')])


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
