"""Reads what the frames of a video show, by naming each pixel's color and measuring the blobs: no templates, no task.

The second scorer and the labels of generated videos rest on it; the first scorer shares none of it. A blob that is
thicker than a pad's outline is a thing; its shape follows from the corners of the box around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ttopt.miniworld.look import CELL, CELLS, COLOR_NAMES, EMPTY, GRID, PER_MOVE, WALL, Film, look, place

UNKNOWN = -1
BLANK, GRAY = 6, 7  # names of pixels besides the six colors, in the order of COLOR_NAMES
_HUES = {"red": 0.0, "yellow": 46.0, "green": 134.0, "blue": 223.0, "purple": 284.0}
COLORFUL, DARK, PALE = 0.28, 0.36, 0.76  # chroma of a colored pixel; brightness of a black and of a blank one
LEAST = 22  # pixels of the smallest thing after opening
RIM = 0.6  # share of a pad's uncovered pixels that must have its color

Names = NDArray[np.int8]  # (..., 96, 96): 0..5 colors, BLANK, GRAY, UNKNOWN


@dataclass
class Blob:
    """A thing in one frame: its look (UNKNOWN: of no known shape) and its middle in pixels from the upper left."""

    look: int
    y: float
    x: float

    @property
    def cell(self) -> int:
        """The cell in which its middle lies."""
        return int(self.y // CELL) * GRID + int(self.x // CELL)

    @property
    def rests(self) -> bool:
        """Whether it lies in the middle of its cell."""
        return max(abs(self.y % CELL - CELL / 2), abs(self.x % CELL - CELL / 2)) <= 2.6


@dataclass
class Seen:
    """What a video shows, frame by frame: things; grounds (T, 36), UNKNOWN where a cell is something else or hidden;
    ``stray``: the most pixels in one cell that belong to nothing. ``per_move``: frames a move, 1 if they are boards."""

    things: list[list[Blob]]
    grounds: NDArray[np.int64]
    stray: NDArray[np.int64]  # (T,)
    per_move: int = PER_MOVE

    def __len__(self) -> int:
        return len(self.things)

    def __getitem__(self, frames: slice) -> Seen:
        return Seen(self.things[frames], self.grounds[frames], self.stray[frames], self.per_move)


def from_film(film: Film, boards: bool = False) -> Seen:
    """The same of a film, from what it was rendered from, not from pixels; of its ``boards`` alone if so wished."""
    frames = np.arange(PER_MOVE * (len(film.grounds) - 1) + 1)[:: PER_MOVE if boards else 1]
    things: list[list[Blob]] = []
    for frame in frames.tolist():
        places = [place(actor, frame) for actor in film.actors]
        # A cell's edge line is its upper left pixel row: the middle of the 10x10 place is at 8 of 16.
        things.append([Blob(p[0], p[1] + 5.0, p[2] + 5.0) for p in places if p is not None])
    grounds = film.grounds[-(-frames // PER_MOVE)]
    return Seen(things, grounds, np.zeros(len(frames), np.int64), 1 if boards else PER_MOVE)


def read(video: Tensor, boards: bool = False) -> Seen:
    """A video (T, 3, 96, 96) in [0, 1]; ``boards``: its frames are boards, between which the moves are not shown."""
    names = name_pixels(video.float().clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy())
    things, grounds, stray = [], [], []
    for frame in names:
        blobs, boxes = _blobs(frame)
        ground, left = _grounds(frame, boxes)
        things.append(blobs)
        grounds.append(ground)
        stray.append(left)
    return Seen(things, np.stack(grounds), np.array(stray), 1 if boards else PER_MOVE)


def name_pixels(frames: NDArray[np.float32]) -> Names:
    """RGB (..., 3) -> names: by hue where a pixel is colorful, else by brightness."""
    high, low = frames.max(-1), frames.min(-1)
    chroma = high - low
    r, g, b = np.moveaxis(frames, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        hue = np.where(
            high == r, ((g - b) / chroma) % 6, np.where(high == g, (b - r) / chroma + 2, (r - g) / chroma + 4)
        )
    hue = np.nan_to_num(hue * 60)
    angles = np.array([_HUES[c] for c in COLOR_NAMES if c != "black"])
    numbers = np.array([COLOR_NAMES.index(c) for c in COLOR_NAMES if c != "black"], np.int8)
    away = np.abs((hue[..., None] - angles + 180) % 360 - 180)
    colored = numbers[away.argmin(-1)]
    plain = np.where(high < DARK, COLOR_NAMES.index("black"), np.where(low > PALE, BLANK, GRAY))
    out: Names = np.where(chroma > COLORFUL, colored, plain).astype(np.int8)
    return out


def _erode(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    out = mask.copy()
    for axis in (0, 1):
        out = out & np.roll(out, 1, axis) & np.roll(out, -1, axis)
    return out


def _grow(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    out = mask.copy()
    for axis in (0, 1):
        out = out | np.roll(out, 1, axis) | np.roll(out, -1, axis)
    return out


def _around(mask: NDArray[np.bool_]) -> NDArray[np.int8]:
    """How many of the nine pixels around each one, itself included, are set; none beyond the edge."""
    count = np.pad(mask, 1).astype(np.int8)
    count = count[:-2] + count[1:-1] + count[2:]
    out: NDArray[np.int8] = count[:, :-2] + count[:, 1:-1] + count[:, 2:]
    return out


def _blobs(names: Names) -> tuple[list[Blob], list[tuple[int, int, int, int]]]:
    """Things of a frame (96, 96) and their boxes (top, left, bottom, right)."""
    blobs, boxes = [], []
    for color in range(len(COLOR_NAMES)):
        thick = names == color
        if thick.sum() < LEAST:
            continue
        thick |= _around(thick) >= 7  # holes that noise made
        core = _erode(thick)
        opened = _grow(core) & thick
        for pixels in _pieces(opened):
            if len(pixels) < LEAST:
                continue
            y, x = np.array(pixels).T
            top, left, bottom, right = int(y.min()), int(x.min()), int(y.max()) + 1, int(x.max()) + 1
            part = np.zeros((bottom - top, right - left), bool)
            part[y - top, x - left] = True
            # The tip of a triangle is too thin for the opening: what is above counts as its own.
            shape = _shape(part)
            tall = bottom - top
            if shape == "triangle":
                middle = (left + right) // 2
                tip = thick[max(0, top - 4) : top, middle - 1 : middle + 1].any(1)[::-1]
                tall += int(np.argmin(tip)) if not tip.all() else len(tip)
            number = UNKNOWN if shape is None else look(COLOR_NAMES[color], shape)
            blobs.append(Blob(number, bottom - tall / 2, (left + right) / 2))
            boxes.append((bottom - tall, left, bottom, right))
    return blobs, boxes


def _pieces(mask: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """Connected pixels of a mask."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    out = []
    while left:
        todo = [left.pop()]
        piece = []
        while todo:
            y, x = todo.pop()
            piece.append((y, x))
            for near in ((y, x + 1), (y, x - 1), (y + 1, x), (y - 1, x)):
                if near in left:
                    left.remove(near)
                    todo.append(near)
        out.append(piece)
    return out


def _shape(part: NDArray[np.bool_]) -> str | None:
    """Shape of a blob that fills its box (h, w), from how full the box's corners are; None if it is none."""
    height, width = part.shape
    if not (6 <= height <= 12 and 6 <= width <= 12):
        return None
    y, x = max(2, round(height * 0.3)), max(2, round(width * 0.3))
    filled = float(part.mean())
    full = [float(c.mean()) for c in (part[:y, :x], part[:y, -x:], part[-y:, :x], part[-y:, -x:])]
    above, below = (full[0] + full[1]) / 2, (full[2] + full[3]) / 2
    if below - above > 0.35:
        return "triangle"
    mean = (above + below) / 2
    if max(full) - min(full) > 0.6:
        return None
    if mean < 0.3 and filled < 0.76:
        return "cross"
    if height + width <= 17:  # eight pixels wide, or nine where it is blurred
        return "square" if filled > 0.85 else None
    return "circle" if 0.65 < filled < 0.92 or height + width >= 19 else "square"


def _rim() -> NDArray[np.bool_]:
    mask = np.zeros((CELL, CELL), bool)
    mask[1:15, 1:15] = True
    mask[3:13, 3:13] = False
    for y in (1, 14):
        for x in (1, 14):
            mask[y, x] = False
    return mask


_RIM = _rim()


def _grounds(names: Names, boxes: list[tuple[int, int, int, int]]) -> tuple[NDArray[np.int64], int]:
    """Ground numbers (36,) of a frame, and the most pixels of one cell that are neither ground nor thing."""
    hidden = np.zeros(names.shape, bool)
    for top, left, bottom, right in boxes:
        hidden[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = True
    out = np.full(CELLS, UNKNOWN, np.int64)
    odd = np.zeros(names.shape, bool)  # pixels that belong to nothing
    for cell in range(CELLS):
        row, column = divmod(cell, GRID)
        area = np.s_[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        pixels, bare = names[area], ~hidden[area]
        rim = pixels[_RIM & bare]
        counts = np.bincount(rim, minlength=8) if len(rim) else np.zeros(8, int)
        gray = float((pixels[bare] == GRAY).mean()) if bare.any() else 0.0
        if gray > 0.7:
            out[cell] = WALL
            odd[area] = bare & (pixels < BLANK)
            continue
        color = int(counts[: len(COLOR_NAMES)].argmax())
        if len(rim) and counts[color] > RIM * len(rim):
            out[cell] = 1 + color
            odd[area] = bare & (pixels != BLANK) & ~(_RIM & (pixels == color))
        else:
            out[cell] = EMPTY
            odd[area] = bare & (pixels != BLANK)
    odd &= _around(odd) >= 6  # more than blurred edges and single pixels
    return out, int(odd.reshape(GRID, CELL, GRID, CELL).sum((1, 3)).max())
