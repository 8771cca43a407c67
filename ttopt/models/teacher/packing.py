"""Many questions behind one video: [prefix with the video | question 1 | question 2 | ...] in one forward.

A question's tokens see the prefix and themselves, never another question, and its positions restart behind
the prefix: each question gets exactly the result it would get alone, and the prefix is computed once for all.

Shapes: B rows, Q questions a row, A answer tokens, S tokens of the longest row, P prefix tokens,
D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttopt.errors import UserError


@dataclass(frozen=True)
class Prefix:
    """The tokens every question shares: chat opening and video."""

    ids: Tensor  # (P,) int64
    positions: Tensor  # (3,P) int64: Qwen3-VL's temporal, vertical, horizontal rotary positions
    video: Tensor  # (V,) int64: where the vision tokens are
    next_position: int  # where the text behind the prefix goes on


@dataclass(frozen=True)
class Packed:
    """One forward's worth of rows, padded to S tokens."""

    ids: Tensor  # (B,S) int64
    positions: Tensor  # (3,B,S) int64
    mask: Tensor  # (B,1,S-P,S) bool: what the questions' tokens may attend to
    video: Tensor  # (V,) int64: where the vision tokens are, the same in every row
    answers: Tensor  # (B,Q,A) int64: the tokens whose logits predict the answer

    def attention(self) -> dict[str, Any]:
        """The language model's arguments for ttopt/models/teacher/attention.py."""
        questions, tokens = self.mask.shape[2:]
        return {"attention_mask": self.mask, "prefix_tokens": tokens - questions}

    def to(self, device: torch.device) -> Packed:
        return Packed(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def make_prefix(ids: Sequence[int], video_id: int, grid: tuple[int, int], frames: int) -> Prefix:
    """Positions of a prefix with one video of ``frames`` temporal patches, each ``grid`` (h, w) tokens.

    Text advances all three axes by one a token; the tokens of a temporal patch share the temporal position,
    spread over the other two, and advance all by max(h, w). Equals Qwen3VLModel.get_rope_index.
    """
    h, w = grid
    tokens = torch.tensor(ids, dtype=torch.int64)
    video = (tokens == video_id).nonzero()[:, 0]
    assert len(video) == frames * h * w, "the prompt must hold exactly one slot per vision token"
    starts = video[:: h * w]
    positions = torch.empty(3, len(tokens), dtype=torch.int64)
    corner = torch.cartesian_prod(torch.arange(1), torch.arange(h), torch.arange(w)).T  # (3,h*w)
    at, done = 0, 0  # next position, tokens placed
    for start in starts.tolist():
        positions[:, done:start] = torch.arange(at, at + start - done)
        at += start - done
        positions[:, start : start + h * w] = corner + at
        at += max(h, w)
        done = start + h * w
    positions[:, done:] = torch.arange(at, at + len(tokens) - done)
    return Prefix(tokens, positions, video, at + len(tokens) - done)


def pack(prefix: Prefix, questions: Sequence[Sequence[Sequence[int]]], answer: Sequence[int]) -> Packed:
    """Rows of the prefix and Q questions each; ``questions[b][q]`` are the token ids behind the prefix.

    The answer's tokens but the last follow each question (teacher forcing): all of them are predicted.
    Shorter rows are filled with token 0, which only filling attends to.
    """
    forced = list(answer[:-1])
    rows: list[list[int]] = []
    ends: list[list[int]] = []
    for row in questions:
        rows.append([])
        ends.append([])
        for question in row:
            rows[-1] += [*question, *forced]
            ends[-1].append(len(rows[-1]))
    b, p, longest = len(rows), len(prefix.ids), max(map(len, rows))
    tail = torch.tensor([ids + [0] * (longest - len(ids)) for ids in rows])  # (B,S-P)
    end = torch.tensor(ends)  # (B,Q), counted from the end of the prefix
    start = torch.cat([torch.zeros_like(end[:, :1]), end[:, :-1]], dim=1)
    index = torch.arange(longest)
    owner = (index[:, None] >= end[:, None, :]).sum(2)  # (B,S-P) question of each token, Q = filling
    first = torch.cat([start, end[:, -1:]], dim=1).gather(1, owner)
    places = (index - first + prefix.next_position).expand(3, b, longest)

    own = (owner[:, None, :] == owner[:, :, None]).tril()  # (B,S-P,S-P)
    return Packed(
        ids=torch.cat([prefix.ids.expand(b, p), tail], dim=1),
        positions=torch.cat([prefix.positions[:, None].expand(3, b, p), places], dim=2),
        mask=torch.cat([torch.ones(b, longest, p, dtype=torch.bool), own], dim=2)[:, None],
        video=prefix.video,
        answers=end[:, :, None] + (p - len(answer)) + torch.arange(len(answer)),
    )


@dataclass(frozen=True)
class PackedOutput:
    """What one packed forward computed; differentiable in the frames and in the teacher's weights."""

    hidden: Tensor  # (B,S,D) last hidden states of all tokens
    answer_logits: Tensor  # (B,Q,A,V) logits that predict the answer's tokens
    packed: Packed

    @property
    def logits(self) -> Tensor:
        """(B,Q,V) logits of the answer's first token."""
        return self.answer_logits[:, :, 0]


def at(hidden: Tensor, index: Tensor) -> Tensor:
    """(B,S,D) at (B,...) -> (B,...,D)."""
    rows = torch.arange(len(hidden), device=hidden.device).view(-1, *[1] * (index.dim() - 1))
    return hidden[rows, index]


@torch.no_grad()
def check_masks(model: Any, position_ids: Callable[[Tensor], Tensor] = lambda positions: positions) -> None:
    """Raises UserError if a token's result depends on one the mask hides from it, as in recurrent layers."""
    language, device = model.model.language_model, model.device
    mask = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool, device=device)
    ids = torch.tensor([[0, 1, 2], [0, 3, 2]], device=device)  # differ in the hidden middle token only
    out = language(
        inputs_embeds=language.embed_tokens(ids),
        position_ids=position_ids(torch.tensor([0, 1, 1], device=device).expand(3, 2, 3)),
        attention_mask=mask.expand(2, 1, 3, 3),
        use_cache=False,
    ).last_hidden_state
    if not torch.allclose(out[0, 2], out[1, 2], atol=1e-3):
        raise UserError(
            f"the layers of {type(model).__name__} ignore attention masks, so packed questions would leak "
            "into each other; use a Qwen3-VL teacher"
        )
