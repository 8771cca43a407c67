"""The code of a film that the VAE's latents are taught: what is in each cell of each board, and how it came there.

Letting a VAE of this size find its own code took hours and made a muddled one. This one is written down: 20 numbers a
cell and board, most of them 0: a thing's color (6) and shape (4), a pad's color (6), a wall, where a thing comes from
in this move (down, right), and whether one slides away.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ttopt.miniworld.look import ABSENT, CELLS, GRID, SHAPE_NAMES, WALL, Film, adjacent

CHANNELS = 20
SCALE = 0.2  # latents are codes divided by it; their standard deviation is then about 1
COLOR, SHAPE, PAD, STONE, DOWN, RIGHT, LEAVES = 0, 6, 10, 16, 17, 18, 19  # first channel of each


def film_code(film: Film) -> Tensor:
    """(20, B, 6, 6) float32 in [-1, 1]."""
    grounds = torch.from_numpy(film.grounds)
    out = torch.zeros(CHANNELS, len(grounds), CELLS)
    for ground in range(1, WALL):
        out[PAD + ground - 1] = (grounds == ground).float()
    out[STONE] = (grounds == WALL).float()
    for actor in film.actors:
        before = ABSENT
        for board, (cell, look) in enumerate(zip(actor.track, actor.looks, strict=True)):
            if cell != ABSENT:
                out[COLOR + look // len(SHAPE_NAMES), board, cell] = 1
                out[SHAPE + look % len(SHAPE_NAMES), board, cell] = 1
                if before != ABSENT and adjacent(before, cell):
                    out[DOWN, board, cell] = cell // GRID - before // GRID
                    out[RIGHT, board, cell] = cell % GRID - before % GRID
                    out[LEAVES, board, before] = 1
            before = cell
    return out.view(CHANNELS, len(grounds), GRID, GRID)
