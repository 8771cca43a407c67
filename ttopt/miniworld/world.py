"""Pixels of the sprite world: what a cell can hold, how it is drawn, and how it is read back.

48x48 RGB frames hold a 6x6 grid of 8-pixel cells. A cell's *code* is ``ground * 19 + sprite``: the ground is empty, one
of six dim pads or a wall; the sprite is none or one of 18 (six colours x three shapes).

Shapes: N videos, T frames, 36 cells, 8 grounds, 19 sprites (0 = none).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

GRID, CELL = 6, 8
SIZE, CELLS = GRID * CELL, GRID * GRID
FRAMES, FPS = 9, 8
COLOURS = {
    "red": (0.92, 0.16, 0.14),
    "green": (0.16, 0.80, 0.22),
    "blue": (0.20, 0.36, 0.98),
    "yellow": (0.96, 0.86, 0.14),
    "purple": (0.72, 0.24, 0.90),
    "cyan": (0.12, 0.86, 0.92),
}
COLOUR_NAMES = tuple(COLOURS)
SHAPES = {  # 6x6 masks, centred in the cell
    "square": ("######",) * 6,
    "triangle": ("#.....", "##....", "###...", "####..", "#####.", "######"),
    "cross": ("..##..", "..##..", "######", "######", "..##..", "..##.."),
}
SHAPE_NAMES = tuple(SHAPES)
BACKGROUND = (0.08, 0.08, 0.10)
EMPTY, WALL, GROUNDS, SPRITES = 0, 7, 8, 19
NONE = 0
CODES = GROUNDS * SPRITES


def sprite(colour: str, shape: str) -> int:
    """Sprite number 1..18 of a colour and a shape."""
    return 1 + COLOUR_NAMES.index(colour) * 3 + SHAPE_NAMES.index(shape)


def sprite_colour(number: int) -> str:
    return COLOUR_NAMES[(number - 1) // 3]


def sprite_shape(number: int) -> str:
    return SHAPE_NAMES[(number - 1) % 3]


def sprite_name(number: int) -> str:
    return f"{sprite_colour(number)} {sprite_shape(number)}"


def pad(colour: str) -> int:
    """Ground number 1..6 of a pad."""
    return 1 + COLOUR_NAMES.index(colour)


def pad_name(ground: int) -> str:
    return f"{COLOUR_NAMES[ground - 1]} pad"


def _templates() -> Tensor:
    background = torch.tensor(BACKGROUND).view(3, 1, 1)
    out = torch.empty(GROUNDS, SPRITES, 3, CELL, CELL)
    for ground in range(GROUNDS):
        base = background.expand(3, CELL, CELL).clone()
        if ground == WALL:
            base[:] = 0.62
            base[:, 3], base[:, 7] = 0.38, 0.38
            base[:, :3, 3], base[:, 4:7, 7] = 0.38, 0.38
        elif ground != EMPTY:
            colour = torch.tensor(COLOURS[COLOUR_NAMES[ground - 1]]).view(3, 1, 1)
            base = (background + 0.38 * (colour - background)).expand(3, CELL, CELL).clone()
        out[ground, NONE] = base
        for number in range(1, SPRITES):
            mask = torch.tensor([[c == "#" for c in row] for row in SHAPES[sprite_shape(number)]])
            cell = base.clone()
            colour = torch.tensor(COLOURS[sprite_colour(number)])
            cell[:, 1:7, 1:7] = torch.where(mask, colour.view(3, 1, 1), cell[:, 1:7, 1:7])
            out[ground, number] = cell
    return out.reshape(CODES, 3, CELL, CELL)


TEMPLATES = _templates()  # (152, 3, 8, 8) in [0, 1]


def render(codes: Tensor) -> Tensor:
    """Cell codes (..., 36) int64 -> frames (..., 3, 48, 48) float32 in [0, 1]."""
    return rearrange(TEMPLATES[codes], "... (gy gx) c y x -> ... c (gy y) (gx x)", gy=GRID, gx=GRID).contiguous()


@dataclass
class Reading:
    """What the pixels show, per cell, with a margin so that borderline cells are graded and not guessed.

    ``sprite`` (N, T, 36, 19) and ``ground`` (N, T, 36, 8) hold soft presences in [0, 1]; above 0.5 counts as present.
    A sprite is present when it explains at least 60 % of its own contrast and no other sprite explains the cell better.
    ``trace`` (N, T, 36, 19) is a milder presence for sprites in transit, which every few-step model blurs: 40 % of the
    contrast, and the best among sprites though perhaps not better than an empty cell.
    """

    sprite: Tensor
    ground: Tensor
    trace: Tensor

    def __getitem__(self, rows: slice) -> Reading:
        return Reading(self.sprite[rows], self.ground[rows], self.trace[rows])

    def codes(self) -> Tensor:
        """Most likely code per cell, (N, T, 36) int64."""
        return self.ground.argmax(-1) * SPRITES + self.sprite.argmax(-1)


QUALITY, TRACE_QUALITY, QUALITY_WIDTH, MARGIN_WIDTH = 0.6, 0.4, 0.05, 0.1
_FLAT = TEMPLATES.reshape(CODES, -1)
_CONTRAST = (TEMPLATES.reshape(GROUNDS, SPRITES, -1) - TEMPLATES.reshape(GROUNDS, SPRITES, -1)[:, :1]).square().sum(-1)


def distances(frames: Tensor) -> Tensor:
    """Squared distances (N, T, 36, 152) of each cell of frames (N, T, 3, 48, 48) to every template; 1 is a pixel's
    full change of one channel."""
    cells = rearrange(frames, "n t c (gy y) (gx x) -> n t (gy gx) (c y x)", gy=GRID, gx=GRID)
    return cells.square().sum(-1, keepdim=True) - 2 * cells @ _FLAT.T + _FLAT.square().sum(-1)


def read(frames: Tensor) -> Reading:
    """Frames (N, T, 3, 48, 48) in [0, 1] -> Reading, by distance to every cell template."""
    distance = distances(frames.float().clamp(0, 1)).clamp_min(0).unflatten(-1, (GROUNDS, SPRITES))  # (N, T, 36, 8, 19)
    contrast = _CONTRAST.clone()
    contrast[:, NONE] = contrast[:, 1:].mean()
    quality = (1 - distance / contrast).amax(-2)  # best ground for each sprite
    margin = _margin(distance.amin(-2))
    presence = torch.sigmoid((quality - QUALITY) / QUALITY_WIDTH) * torch.sigmoid(margin / MARGIN_WIDTH)
    presence[..., NONE] = torch.sigmoid(margin[..., NONE] / MARGIN_WIDTH)
    ground = torch.sigmoid(_margin(distance.amin(-1)) / MARGIN_WIDTH)
    trace = torch.zeros_like(presence)
    among = _margin(distance.amin(-2)[..., 1:])
    trace[..., 1:] = torch.sigmoid((quality[..., 1:] - TRACE_QUALITY) / QUALITY_WIDTH) * torch.sigmoid(
        (among + MARGIN_WIDTH) / MARGIN_WIDTH
    )
    return Reading(presence, ground, trace)


def _margin(distance: Tensor) -> Tensor:
    """How much nearer each alternative is than the best other one, in [-1, 1]."""
    best, second = distance.topk(2, dim=-1, largest=False).values.unbind(-1)
    other = torch.where(distance <= best.unsqueeze(-1), second.unsqueeze(-1), best.unsqueeze(-1))
    return (other - distance) / (other + distance).clamp_min(1e-6)
