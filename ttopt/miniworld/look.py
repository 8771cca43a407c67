"""What the world looks like: its colours, things, pads and walls, and how a film of them becomes pixels.

96x96 RGB frames on a light ground with a 6x6 board of 16-pixel cells. A *thing* is one of 24 looks (six colours x four
shapes), 10x10 pixels in the middle of its cell; a *pad* is a coloured outline around the place of a thing, so that it
stays visible beneath one; a *wall* fills its cell. A film shows one board a latent frame: frame 0 is board 0, and
during move k (frames 4k-3 .. 4k) things slide from their cells on board k-1 to those on board k, four pixels a frame.

Shapes: T = 4 (B - 1) + 1 frames, B boards, 36 cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GRID, CELL = 6, 16
SIZE, CELLS = GRID * CELL, GRID * GRID
BOARDS, PER_MOVE, FPS = 7, 4, 8
FRAMES = PER_MOVE * (BOARDS - 1) + 1
COLORS = {
    "red": (0.87, 0.16, 0.15),
    "green": (0.13, 0.62, 0.24),
    "blue": (0.15, 0.36, 0.88),
    "yellow": (0.97, 0.75, 0.05),
    "purple": (0.60, 0.22, 0.74),
    "black": (0.10, 0.10, 0.11),
}
COLOR_NAMES = tuple(COLORS)
SHAPE_NAMES = ("square", "circle", "triangle", "cross")
PAPER, LINE, STONE = (0.95, 0.94, 0.91), (0.87, 0.86, 0.83), (0.58, 0.58, 0.60)  # ground, its grid lines, walls
LOOKS, EMPTY, WALL, GROUNDS = 24, 0, 7, 8  # grounds 1..6 are pads
BODY, MARGIN = 10, 3  # a thing's size, and its distance from the edge of its cell
ABSENT = -1  # instead of a cell: the thing is not on this board

Image = NDArray[np.float32]  # (H, W, 3) in [0, 1]


def look(color: str, shape: str) -> int:
    """Number 0..23 of a thing's look."""
    return COLOR_NAMES.index(color) * len(SHAPE_NAMES) + SHAPE_NAMES.index(shape)


def color_of(number: int) -> str:
    return COLOR_NAMES[number // len(SHAPE_NAMES)]


def shape_of(number: int) -> str:
    return SHAPE_NAMES[number % len(SHAPE_NAMES)]


def thing_name(number: int) -> str:
    return f"{color_of(number)} {shape_of(number)}"


def pad(color: str) -> int:
    """Ground number 1..6 of a pad."""
    return 1 + COLOR_NAMES.index(color)


def pad_name(ground: int) -> str:
    return f"{COLOR_NAMES[ground - 1]} pad"


def _masks() -> dict[str, NDArray[np.bool_]]:
    y, x = np.mgrid[:BODY, :BODY] - (BODY - 1) / 2
    return {
        "square": np.maximum(np.abs(x), np.abs(y)) < 4,
        "circle": x**2 + y**2 < 25,
        "triangle": np.abs(x) <= (y + (BODY + 1) / 2) / 2,
        "cross": (np.abs(x) < 2) | (np.abs(y) < 2),
    }


def _outline() -> NDArray[np.bool_]:
    y, x = np.abs(np.mgrid[:CELL, :CELL] - (CELL - 1) / 2)
    far = np.maximum(x, y)
    mask: NDArray[np.bool_] = (far > 5) & (far < 7) & (x + y < 13)
    return mask


MASKS = _masks()  # (10, 10) bool by shape
OUTLINE = _outline()  # (16, 16) bool: the pixels of a pad


@dataclass
class Actor:
    """A thing: its cell (or ABSENT) and its look on each board."""

    track: list[int]
    looks: list[int]

    @property
    def look(self) -> int:
        return self.looks[0]


@dataclass
class Film:
    """What a video shows: actors (the first is drawn on top) and the ground numbers (B, 36) of each board."""

    actors: list[Actor]
    grounds: NDArray[np.int64]


def ground_image(grounds: NDArray[np.int64]) -> Image:
    """Ground numbers (36,) -> the board without things, (96, 96, 3)."""
    image = np.empty((SIZE, SIZE, 3), np.float32)
    image[:] = PAPER
    image[::CELL], image[:, ::CELL] = LINE, LINE
    for cell in np.flatnonzero(grounds):
        row, column = divmod(int(cell), GRID)
        square = image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        if grounds[cell] == WALL:
            square[1:, 1:] = STONE
        else:
            square[OUTLINE] = COLORS[COLOR_NAMES[grounds[cell] - 1]]
    return image


def paint(image: Image, number: int, top: int, left: int) -> None:
    """Draws a thing with its upper left pixel at (top, left)."""
    image[top : top + BODY, left : left + BODY][MASKS[shape_of(number)]] = COLORS[color_of(number)]


def adjacent(a: int, b: int) -> bool:
    """Whether two cells share an edge."""
    return abs(a // GRID - b // GRID) + abs(a % GRID - b % GRID) == 1


def place(actor: Actor, frame: int) -> tuple[int, int, int] | None:
    """Look and upper left pixel (top, left) of an actor in a frame; None where it is absent.

    To a cell next door it slides; to any other it jumps in the move's first frame, in which it also takes a new look.
    """
    board = -(-frame // PER_MOVE)
    cell = actor.track[board]
    if cell == ABSENT:
        return None
    top, left = cell // GRID * CELL + MARGIN, cell % GRID * CELL + MARGIN
    before = actor.track[board - 1] if board else cell
    if before != ABSENT and adjacent(before, cell):
        left_over = PER_MOVE * board - frame  # frames until it is there
        step = CELL // PER_MOVE
        top += (before // GRID - cell // GRID) * left_over * step
        left += (before % GRID - cell % GRID) * left_over * step
    return actor.looks[board], top, left


def render(film: Film) -> Tensor:
    """The film's video (T, 3, 96, 96) float32 in [0, 1]."""
    boards = len(film.grounds)
    frames = np.empty((PER_MOVE * (boards - 1) + 1, SIZE, SIZE, 3), np.float32)
    known: dict[bytes, Image] = {}
    for frame in range(len(frames)):
        grounds = film.grounds[-(-frame // PER_MOVE)]
        key = grounds.tobytes()
        if key not in known:
            known[key] = ground_image(grounds)
        frames[frame] = known[key]
        for actor in reversed(film.actors):
            where = place(actor, frame)
            if where is not None:
                paint(frames[frame], *where)
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
