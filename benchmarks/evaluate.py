"""What `ttopt evaluate` costs before a benchmark's scorer starts: CPU seconds a video of 1024x1024.

    python benchmarks/evaluate.py --videos 4 --codec mpeg4

Makes videos of 81 frames and the samples that they belong to, in VBVR-Bench's layout, and has them taken in twice, as
those of two systems, without questions or a page. One sample is done first, so that what is loaded only once does not
count.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal, get_args

import av
import numpy as np
from PIL import Image

from ttopt.__main__ import main as ttopt

SIZE, FRAMES, RATE = 1024, 81, 16
Codec = Literal["mpeg4", "libx264"]


def make(root: Path, videos: Path, count: int, codec: Codec) -> None:
    """Samples and their videos: a square that moves over noise."""
    noise = np.random.default_rng(0).integers(0, 90, (SIZE, SIZE, 3), dtype=np.uint8)
    for number in range(count):
        place = Path("In-Domain_50/T-1_square_data-generator") / f"{number:05d}"
        (root / place).mkdir(parents=True)
        Image.fromarray(noise).save(root / place / "first_frame.png")
        (root / place / "prompt.txt").write_text("Move the square.")
        target = videos / place.with_suffix(".mp4")
        target.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(target), "w") as container:
            stream = container.add_stream(codec, rate=RATE, width=SIZE, height=SIZE, pix_fmt="yuv420p")
            for step in range(FRAMES):
                image = noise.copy()
                image[200:300, 10 * step : 10 * step + 100] = 255
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))


def seconds(root: Path, systems: list[Path], run: Path, count: int) -> float:
    """CPU seconds, user and system, of all threads."""
    args = ["evaluate", "--config", "mini", "--dataset", "vbvr", "--root", str(root), "--limit", str(count)]
    args += ["--sample.frames", str(FRAMES), "--sample.height", str(SIZE), "--sample.width", str(SIZE)]
    args += ["--videos", f"[{','.join(map(str, systems))}]", "--questions", "false", "--report", "false"]
    begin = os.times()
    if ttopt([*args, "--run-dir", str(run), "--logging.wandb", "disabled"]):
        raise SystemExit("evaluate failed")
    end = os.times()
    return end.user + end.system - begin.user - begin.system


def measure(count: int, codec: Codec) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, systems = Path(folder) / "root", [Path(folder) / name for name in ("one", "two")]
        make(root, systems[0], count, codec)
        shutil.copytree(systems[0], systems[1])
        seconds(root, systems, Path(folder) / "first", 1)
        each = seconds(root, systems, Path(folder) / "run", count) / count / len(systems)
        print(f"{codec}, {FRAMES} frames of {SIZE}x{SIZE}: {each:.1f} CPU s a video, {2 * count} videos")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--codec", default="mpeg4", choices=get_args(Codec))
    chosen = parser.parse_args()
    measure(chosen.videos, chosen.codec)
