"""The README's picture: samples of a run, the frozen model's video above the optimized one, as one looping image.

python -m ttopt fit --families '[two,visit]' --split ood --seed 3003 --limit 10 --run-dir runs/picture
python -m benchmarks.picture runs/picture docs/repaired.webp --samples ID ID ID
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ttopt.data.video import read_video
from ttopt.record.result import Result

SIDE = 192  # pixels of a video
GAP, HEAD = 12, 78  # between videos; above them, for the prompt
HOLD = 6  # frames that the last picture stays


def frames_of(video: Tensor, side: int = SIDE) -> list[Image.Image]:
    """A video (T,3,H,W) in [0,1] as pictures, enlarged so that its pixels stay sharp."""
    pixels = (video.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(frame).resize((side, side), Image.Resampling.NEAREST) for frame in pixels]


def column(folder: Path) -> list[Image.Image]:
    """One sample: its prompt, the frozen model's video, the optimized one, each frame a picture."""
    result = Result.load(folder)
    base, video = frames_of(read_video(folder / "base.mp4")), frames_of(read_video(folder / "video.mp4"))
    before = result.optimization.score_before if result.optimization else None
    font, found = ImageFont.load_default(12), []
    for first, second in zip(base, video, strict=True):
        canvas = Image.new("RGB", (SIDE, HEAD + 2 * SIDE + 2 * GAP + 30), "white")
        draw = ImageDraw.Draw(canvas)
        draw.multiline_text((0, 0), _wrapped(result.prompt, font), fill="black", font=font)
        for place, picture, name, score in ((0, first, "frozen", before), (1, second, "optimized", result.score)):
            top = HEAD + place * (SIDE + GAP + 15)
            canvas.paste(picture, (0, top))
            right = score is not None and score.success
            verdict = "" if score is None else ": right" if right else ": wrong"
            draw.text((0, top + SIDE), name + verdict, fill="green" if right else "firebrick", font=font)
        found.append(canvas)
    return found + found[-1:] * HOLD


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > SIDE:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines[:5])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path, help=".webp, .gif or .png")
    parser.add_argument("--samples", nargs="+", required=True, help="their ids")
    parser.add_argument("--fps", type=float, default=4.0)
    args = parser.parse_args()
    columns = [column(args.run / "samples" / name) for name in args.samples]
    pictures = []
    for row in zip(*columns, strict=True):
        strips = [np.pad(np.asarray(each), ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255) for each in row]
        pictures.append(Image.fromarray(np.concatenate(strips, axis=1)))
    pictures[0].save(args.out, save_all=True, append_images=pictures[1:], duration=round(1000 / args.fps), loop=0)


if __name__ == "__main__":
    main()
