"""The gallery of repairs, docs/gallery.md with its pictures: the samples of a run that the frozen model gets wrong and
the optimized one right, the most gained first.

python -m ttopt fit --families '[two,visit]' --split ood --seed 3003 --limit 10 --run-dir runs/picture
python -m benchmarks.gallery runs/picture docs/gallery.md --command "python -m ttopt fit ..."
"""

from __future__ import annotations

import argparse
import html
import re
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.picture import GAP, HOLD, frames_of
from ttopt.data.sample import check_id
from ttopt.data.video import read_video
from ttopt.errors import UserError
from ttopt.record.result import FILE, Optimization, Result, Scored

SIDE, FPS = 288, 4  # pixels of a video; frames a second
HEAD = """\
# Gallery of repairs

See what optimizing at test time changes, sample by sample: left the frozen video model's video, right the same model's
from the same noise after its LoRA was optimized for this one prompt. Of {count} samples the frozen model gets {before}
right and the optimized one {after}: {repaired} repaired, {broken} broken; {shown} of the repaired are shown, the most
gained first. Make it from a run of your own:

<!-- not run: the run takes minutes -->
```bash
{command}
python -m benchmarks.gallery runs/picture docs/gallery.md
```
"""
ENTRY = """
**{prompt}**

![{name}: frozen beside optimized](gallery/{name}.webp)

{words} Repaired in {steps}: loss {before} → {after}.
"""


def scores(result: Result) -> tuple[Optimization, Scored, Scored] | None:
    """A result's optimization, and the scores of the frozen model's video and of the one that was kept."""
    o = result.optimization
    return (o, o.score_before, result.score) if o and o.score_before and result.score else None


def picture(folder: Path, path: Path) -> None:
    """Writes both videos of a sample side by side as one looping image."""
    base, video = (frames_of(read_video(folder / f"{name}.mp4"), SIDE) for name in ("base", "video"))
    pages = []
    for first, second in zip(base, video, strict=True):
        left, right = np.asarray(first), np.asarray(second)
        gap = np.full((len(left), GAP, 3), 255, np.uint8)
        pages.append(Image.fromarray(np.concatenate([left, gap, right], axis=1)))
    pages += pages[-1:] * HOLD
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=round(1000 / FPS), loop=0, quality=90)


def plain(text: str) -> str:
    """Text that Markdown and HTML show as it is."""
    return re.sub(r"([\\`*_{}\[\]()#+!|$~-])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def entry(name: str, result: Result, o: Optimization, before: Scored) -> str:
    words = "; ".join(f"“{plain(before.words[r])}” No" if r in before.words else plain(r)
                      for r, holds in before.rules.items() if not holds)  # fmt: skip
    steps = "no step, by the choice of the noise or the one-step prediction" if not o.steps else f"{o.steps} steps"
    return ENTRY.format(
        prompt=plain(result.prompt), name=name, words=f"The frozen model fails: {words}.",
        steps="1 step" if o.steps == 1 else steps,
        before=f"{o.video_before.loss:.2f}", after=f"{o.video_after.loss:.2f}",
    )  # fmt: skip


def make(run: Path, page: Path, command: str, most: int) -> int:
    """Writes the page and its pictures; returns how many repairs it shows. Raises UserError if there are none."""
    folders = [path.parent for path in sorted((run / "samples").glob(f"[!.]*/{FILE}"))]
    found = [(folder, Result.load(folder, folder.name)) for folder in folders]
    scored = [(folder, result, *known) for folder, result in found if (known := scores(result))]
    repaired = [each for each in scored if each[4].success and not each[3].success]
    if not repaired:
        raise UserError(f"{run} holds no repaired sample; give a run with more samples, or harder ones")
    chosen = sorted(repaired, key=lambda each: each[3].partial - each[4].partial)[:most]
    broken = sum(each[3].success and not each[4].success for each in scored)
    text = HEAD.format(
        shown=len(chosen), repaired=len(repaired), count=len(scored), command=command,
        before=sum(each[3].success for each in scored), after=sum(each[4].success for each in scored),
        broken=broken,
    )  # fmt: skip
    pictures = page.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    for old in pictures.glob("*.webp"):
        old.unlink()
    for folder, result, o, before, _ in chosen:
        check_id(folder.name)
        picture(folder, pictures / f"{folder.name}.webp")
        text += entry(folder.name, result, o, before)
    page.write_text(text, encoding="utf-8")
    return len(chosen)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=" ".join((__doc__ or "").split("\n\n")[0].split()))
    parser.add_argument("run", type=Path)
    parser.add_argument("page", type=Path, help="the page, a .md file; its pictures go into the folder of its name")
    parser.add_argument("--command", default="python -m ttopt fit --run-dir runs/picture", help="what made the run")
    parser.add_argument("--most", type=int, default=12, help="repairs that are shown")
    args = parser.parse_args()
    print(f"{make(args.run, args.page, args.command, args.most)} repairs: {args.page}")


if __name__ == "__main__":
    main()
