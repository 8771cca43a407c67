"""Draws codes as boards, without any decoder: what the reasoner means, before the VAE can show it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.code import COLOR, PAD, SHAPE, STONE
from ttopt.miniworld.look import BODY, CELL, CELLS, COLOR_NAMES, GRID, MARGIN, SHAPE_NAMES, WALL, ground_image, paint


def boards(code: Tensor, least: float = 0.5) -> Tensor:
    """A code (20, B, 6, 6) -> pictures (B, 3, 96, 96): in each cell what is clearest, if above ``least``.

    A dark dot marks a thing whose color or shape is unclear.
    """
    out = []
    for board in code.flatten(2).transpose(0, 1).cpu():  # (20, 36)
        pads, stone = board[PAD:STONE], board[STONE]
        grounds = torch.where(pads.amax(0) > least, 1 + pads.argmax(0), 0)
        grounds = torch.where(stone > least, WALL, grounds)
        image = ground_image(grounds.numpy().astype(np.int64))
        colors, shapes = board[COLOR:SHAPE], board[SHAPE:PAD]
        for cell in range(CELLS):
            color, shape = float(colors[:, cell].max()), float(shapes[:, cell].max())
            top, left = cell // GRID * CELL + MARGIN, cell % GRID * CELL + MARGIN
            if min(color, shape) > least:
                number = int(colors[:, cell].argmax()) * len(SHAPE_NAMES) + int(shapes[:, cell].argmax())
                paint(image, number, top, left)
            elif max(color, shape) > 0.6 * least:
                middle = np.s_[top + BODY // 2 - 1 : top + BODY // 2 + 1, left + BODY // 2 - 1 : left + BODY // 2 + 1]
                image[middle] = 0.3
        out.append(torch.from_numpy(image).permute(2, 0, 1))
    assert len(COLOR_NAMES) == SHAPE - COLOR
    return torch.stack(out)
