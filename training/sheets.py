"""Contact sheets: a row a video, its frames side by side, enlarged by a whole factor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

GAP = 4  # pixels between frames and rows


def sheet(rows: Sequence[Tensor], factor: int = 1, background: int = 255) -> Image.Image:
    """Videos (T, 3, H, W) in [0, 1], one a row. Shorter ones leave the rest of their row blank."""
    height, width = rows[0].shape[-2:]
    length = max(len(row) for row in rows)
    out = np.full((len(rows) * (height + GAP), length * (width + GAP), 3), background, np.uint8)
    for i, row in enumerate(rows):
        pixels = (row.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        for j, frame in enumerate(pixels):
            top, left = i * (height + GAP), j * (width + GAP)
            out[top : top + height, left : left + width] = frame
    image = Image.fromarray(out)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def write_sheet(path: Path, rows: Sequence[Tensor], factor: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet(rows, factor).save(path, optimize=True)
