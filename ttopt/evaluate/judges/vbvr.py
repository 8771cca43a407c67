"""VBVR-Bench's rules, by VBVR-EvalKit (module vbvr_bench, installed from its repository; OpenCV 4).

Its two entry points give different numbers; both are reported. "task": the rules of each task alone, the leaderboard's
(run_evaluation.py). "weighted": first frame .15, final frame .35, temporal .15, quality .10, task .25 (evaluate.py).
All means are plain means over samples. The kit skips a missing video; here it counts 0.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ttopt.config.comparison import CompareSettings
from ttopt.data.sample import Sample
from ttopt.data.vbvr import output_path
from ttopt.errors import UserError
from ttopt.evaluate.judges import Evaluator, Judgment, mean_of, opencv
from ttopt.record.run_folder import write_text

GROUPS = {"overall": "", "in domain": "id", "out of domain": "ood"}
INSTALL = "pip install -e '.[vbvr]' 'vbvr-bench @ git+https://github.com/Video-Reason/VBVR-EvalKit'"


def evaluator(settings: CompareSettings) -> Evaluator:
    """Checks that the kit can run. Raises UserError."""
    cv2 = opencv("VBVR-Bench")
    try:
        kit, script = (importlib.import_module(name) for name in ("vbvr_bench", "run_evaluation"))
    except ImportError as error:
        raise UserError(f"VBVR-EvalKit cannot be imported ({error}); {INSTALL}") from error
    root = str(settings.root)
    provenance = {"opencv": str(cv2.__version__), "vbvr-bench": _version()}

    def evaluate(videos: Path, judged: Sequence[Sample], samples: Sequence[Sample], work: Path) -> Judgment:
        work.mkdir(parents=True, exist_ok=True)
        output = io.StringIO()  # the kit prints a lot
        task: dict[str, Any] = {"samples": []}
        weighted: dict[str, Any] = {"detailed": []}
        if judged:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                task = script.evaluate_model("task", str(videos), root, str(work), "cpu") or task
                bench = kit.VBVRBench(gt_base_path=root, output_path=str(work), device="cpu")
                weighted = bench.evaluate(str(videos), name="weighted")
            write_text(work / "log.txt", output.getvalue())
        return _verdict(videos, judged, samples, task["samples"], weighted["detailed"], provenance)

    return evaluate


def _verdict(
    videos: Path,
    judged: Sequence[Sample],
    samples: Sequence[Sample],
    task: Sequence[dict[str, Any]],
    weighted: Sequence[dict[str, Any]],
    provenance: dict[str, str],
) -> Judgment:
    both: dict[str, dict[str, float]] = {"task": {}, "weighted": {}}
    failed: dict[str, dict[str, str]] = {"task": {}, "weighted": {}}
    ids = {str(videos / output_path(sample)): sample.id for sample in judged}
    for name, entries in (("task", task), ("weighted", weighted)):
        for entry in entries:
            sample = ids.get(str(entry["video_path"]))
            if sample is None:
                continue  # of another limit
            if entry.get("error"):
                failed[name][sample] = f"VBVR-EvalKit failed ({entry['error']})"
            else:
                both[name][sample] = min(1.0, max(0.0, float(entry["score"])))
        for sample in ids.values():
            if sample not in both[name]:
                failed[name].setdefault(sample, "VBVR-EvalKit has no rules for this task")
    summary = {}
    for label, split in GROUPS.items():
        wanted = [sample.id for sample in samples if not split or sample.split == split]
        if wanted:
            summary[label] = {
                name: round(mean_of([scores.get(s, 0.0) for s in wanted]), 4) for name, scores in both.items()
            }
    errors = {}
    for sample in ids.values():
        whys = {name: failed[name][sample] for name in both if sample in failed[name]}
        if whys:
            errors[sample] = f"{'; '.join(dict.fromkeys(whys.values()))}; counted as 0 in {' and '.join(whys)}"
    parts = {s: {name: scores[s] for name, scores in both.items() if s in scores} for s in ids.values()}
    return Judgment("VBVR-Bench task score", both["task"], summary, errors, provenance, parts)


def _version() -> str:
    try:
        return version("vbvr-bench")
    except PackageNotFoundError:
        return "unknown"
