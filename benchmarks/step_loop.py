"""Does the loop help? Its parts against baselines that may generate as many seconds of video.

    python -m benchmarks.step_loop --families '[tour,relay]' --limit 64 --seed 1001 --run_dir runs/loop
    python -m benchmarks.step_loop --only '[single,loop,planning only]' --limit 16

Takes every setting of ``ttopt compare`` (configs/collabvr_compare.yaml); the same command goes on where it stopped.
First the listed methods run; then the best of k clips, and of k videos of chained clips, with the k that comes nearest
to the loop's mean seconds of video. Success has 95 % bootstrap intervals; all are compared with ``reference`` sample by
sample.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from ttopt.config.comparison import Compared, CompareSettings, parse_compare
from ttopt.errors import UserError, one_line

CONFIG = "collabvr_compare"
MATCHED = "loop"  # the method whose seconds the baselines get
TRACE = "traces.json"


def evaluate(settings: CompareSettings) -> Any:
    """Runs both rounds; returns the comparison of the second."""
    from callbacks import standard
    from ttopt.data.find import find_samples
    from ttopt.evaluate.compare import compare
    from ttopt.record.result import json_safe
    from ttopt.record.run_folder import new_path, write_text, writing
    from ttopt.run.console import Console

    if settings.run_dir is None:
        settings = dataclasses.replace(settings, run_dir=str(new_path(name="loop")))
    first = compare(dataclasses.replace(settings, report=False), Console(), standard)
    matched = settings
    if MATCHED in first.entries:
        seconds = mean_seconds(first.entries[MATCHED].values())
        samples, _ = find_samples(settings)
        clip = sum(sample.frames / sample.fps for sample in samples) / len(samples)
        matched = with_baselines(settings, seconds, clip)
    found = compare(matched, Console(), standard)
    with writing(found.folder):
        write_text(found.folder / TRACE, json.dumps(json_safe(summaries(found.entries)), indent=1))
    return found


def mean_seconds(entries: Any) -> float:
    """Mean seconds of video generated a sample."""
    values = [entry.result.cost.generated_seconds for entry in entries if entry.result is not None]
    if not values:
        raise UserError("no sample was finished, so that no cost can be matched; see the errors above")
    return sum(values) / len(values)


def with_baselines(settings: CompareSettings, seconds: float, clip: float) -> CompareSettings:
    """The methods and, for the same seconds, the best of k clips and of k videos of three chained clips.

    On the embedded world the scorer itself picks the best, so that no judge could make more of them.
    """
    k, chains = max(1, round(seconds / clip)), max(1, round(seconds / (3 * clip)))
    word, judge = ("best of ", {"judge": "scorer"}) if settings.dataset == "miniworld" else ("Pass@", {})
    added = [Compared(f"{word}{k}", "ttopt.methods.PassAtK", {"k": k, **judge})]
    if chains > 1:
        added.append(Compared(f"3 clips, {word}{chains}", "loop.Chain", {"clips": 3, "k": chains, **judge}))
    only = settings.only and [*settings.only, *(method.name for method in added)]
    return dataclasses.replace(settings, methods=[*settings.methods, *added], only=only)


def summaries(entries: Any) -> dict[str, dict[str, float]]:
    """What the loops did, a sample in the mean: the papers' cost table."""
    found = {}
    for name, samples in entries.items():
        results = [entry.result for entry in samples.values() if entry.result is not None]
        loops = [result for result in results if "clips" in result.details]
        if loops:
            found[name] = {
                "samples": len(loops),
                "accepted": mean([bool(result.accepted) for result in loops]),
                "errors": sum(bool(result.error) for result in loops),
                "steps": mean([len(result.details["steps"]) for result in loops]),
                "clips": mean([result.details["clips"] for result in loops]),
                "vlm_calls": mean([result.cost.vlm_calls for result in loops]),
                "generated_seconds": mean([result.cost.generated_seconds for result in loops]),
                "success if accepted": mean([r.score.success for r in loops if r.accepted and r.score]),
                "success if not": mean([r.score.success for r in loops if not r.accepted and r.score]),
            }
    return found


def mean(values: Sequence[float]) -> float:
    """NaN of nothing."""
    return round(sum(values) / len(values), 4) if values else float("nan")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not any(arg.partition("=")[0] == "--config" for arg in args):
        args = ["--config", CONFIG, *args]
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        found = evaluate(parse_compare(args))
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    from ttopt.evaluate.compare import show
    from ttopt.run.console import Console

    show(found, Console())
    for name, numbers in summaries(found.entries).items():
        print(f"{name}: " + ", ".join(f"{key} {value:g}" for key, value in numbers.items()))
    for problem in found.problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
