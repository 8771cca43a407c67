"""Text replies that the tiny vision-language models learn: questions for a prompt, plans, verdicts and routes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ttopt.miniworld.look import COLOR_NAMES, render
from ttopt.miniworld.questions import questions
from ttopt.miniworld.scene import Task
from ttopt.miniworld.words import phrases
from ttopt.models.teacher import Teacher
from ttopt.models.teacher import prompts as words

QUERIES = "Questions: {prompt}"
NAMED = 4.0  # weight of names in the loss: they decide, the words between them are easy


@dataclass(frozen=True)
class Dialogue:
    """Images (n, 3, 96, 96) in [0, 1], the request, then the reply, which is learned."""

    images: Tensor
    request: str
    reply: str


def queries(task: Task) -> Dialogue:
    """The questions of a perfect teacher about a prompt and its first frame."""
    goal, *process = (question.text for question in questions(task))
    film = task.film()
    film.grounds = film.grounds[:1]
    reply = json.dumps({"goal": goal, "process": process})
    return Dialogue(render(film), QUERIES.format(prompt=task.prompt), reply)


def reply_loss(teacher: Teacher, dialogues: Sequence[Dialogue]) -> Tensor:
    """Cross-entropy of the replies, a weighted mean over all their tokens."""
    tokenizer, vision = teacher.tokenizer, teacher.vision
    where = teacher.model.device
    rows, starts, pixels, grids = [], [], [], []
    for dialogue in dialogues:
        slots = ""
        for image in dialogue.images.to(where):
            patches, grid = vision.image_patches(image)
            pixels.append(patches)
            grids.append(grid)
            slots += words.IMAGE_SLOT.replace(words.IMAGE_PAD, words.IMAGE_PAD * vision.frame_token_count(grid))
        request = words.chat_text(tokenizer, [("user", dialogue.request)], slots)
        asked = tokenizer(request, add_special_tokens=False)["input_ids"]
        rows.append(asked + tokenizer(dialogue.reply + words.END, add_special_tokens=False)["input_ids"])
        starts.append(len(asked))
    ids = torch.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, start : len(row)] = ids[i, start : len(row)]
        mask[i, : len(row)] = 1
    ids, labels, mask = ids.to(where), labels.to(where), mask.to(where)
    out = teacher.model.model(
        input_ids=ids, attention_mask=mask, mm_token_type_ids=(ids == teacher.model.config.image_token_id).int(),
        pixel_values=torch.cat(pixels), image_grid_thw=torch.tensor(grids, device=where),
    )  # fmt: skip
    learned = labels[:, 1:] >= 0
    wanted = labels[:, 1:][learned]
    logits = teacher.model.lm_head(out.last_hidden_state[:, :-1][learned])
    weights = torch.ones(logits.shape[-1], device=where)
    weights[tokenizer.convert_tokens_to_ids([*phrases(), *COLOR_NAMES])] = NAMED
    return F.cross_entropy(logits, wanted, weights)
