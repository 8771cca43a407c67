"""One picture a sample: the frames before and after the optimization."""

from __future__ import annotations

import textwrap
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ttopt.data.video import sample_frames, to_uint8
from ttopt.errors import one_line
from ttopt.record.result import Scored

COLUMNS = 9  # most frames a row
SIDE, GAP = 132, 6  # pixels: of a frame's longer side, and between frames
LABEL, LINE = 110, 20  # pixels: the width of what stands left of a row, and the height of a line of text
TITLE_LINES = 3
BLACK, GREEN, RED = "black", "#2ca02c", "#d62728"


def before_after(
    path: Path, prompt: str, base: Tensor, video: Tensor, scores: tuple[Scored | None, Scored | None] = (None, None)
) -> None:
    """Writes a PNG with the frozen model's frames above the optimized ones; both videos (T,3,H,W) in [0,1]."""
    shown = sample_frames(min(COLUMNS, len(base)), len(base))
    longer = max(base.shape[-2:])
    width, height = (max(1, round(side * SIDE / longer)) for side in (base.shape[-1], base.shape[-2]))
    across = LABEL + len(shown) * (width + GAP)
    title = textwrap.wrap(one_line(prompt), max(20, across // 8))[:TITLE_LINES]
    top = GAP + LINE * (len(title) + 1)
    picture = Image.new("RGB", (across, top + 2 * (height + GAP)), "white")
    draw, font, small = ImageDraw.Draw(picture), _font(14), _font(11)
    draw.multiline_text((GAP, GAP), "\n".join(title), "black", font)
    for line, (name, frames, score) in enumerate(zip(("before", "after"), (base, video), scores, strict=True)):
        y = top + line * (height + GAP)
        verdict, color = "", BLACK
        if score is not None:
            verdict, color = ("\nsolved", GREEN) if score.success else ("\nnot solved", RED)
        draw.multiline_text((GAP, y + max(0, height // 2 - LINE)), name + verdict, color, font)
        for column, (number, image) in enumerate(zip(shown, to_uint8(frames[shown]), strict=True)):
            x = LABEL + column * (width + GAP)
            picture.paste(Image.fromarray(image).resize((width, height), _resampling(longer)), (x, y))
            if line == 0:
                draw.text((x, top - LINE + 2), f"frame {number}", "black", small)
    picture.save(path, format="PNG")


def _resampling(longer: int) -> Image.Resampling:
    return Image.Resampling.NEAREST if longer <= SIDE else Image.Resampling.LANCZOS


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu, which has more letters than Pillow's own."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)
