"""One picture a sample: the frames before and after the optimization."""

from __future__ import annotations

import textwrap
from pathlib import Path

from torch import Tensor

from ttopt.data.video import sample_frames, to_uint8
from ttopt.record.result import Scored

COLUMNS = 9  # most frames a row


def before_after(
    path: Path, prompt: str, base: Tensor, video: Tensor, scores: tuple[Scored | None, Scored | None] = (None, None)
) -> None:
    """Writes a PNG with the frozen model's frames above the optimized ones; both videos (T,3,H,W) in [0,1]."""
    from matplotlib.figure import Figure  # a Figure of its own needs no display and no global state

    shown = sample_frames(min(COLUMNS, len(base)), len(base))
    figure = Figure(figsize=(1.25 * len(shown) + 0.9, 3.2), layout="constrained", facecolor="white")
    axes = figure.subplots(2, len(shown), squeeze=False)
    for row, name, frames, score in zip(axes, ("before", "after"), (base, video), scores, strict=True):
        verdict = "" if score is None else "\nsolved" if score.success else "\nnot solved"
        color = "black" if score is None else "tab:green" if score.success else "tab:red"
        for axis, number, image in zip(row, shown, to_uint8(frames[shown]), strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if row is axes[0]:
                axis.set_title(f"frame {number}", fontsize=8)
        row[0].set_ylabel(name + verdict, color=color, fontsize=11)
    # Prompts are shown as they are: no mathematics between dollar signs.
    title = "\n".join(textwrap.wrap(prompt, 110)[:3]).replace("$", r"\$")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)
