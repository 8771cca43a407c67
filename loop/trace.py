"""trace.json: everything that happened, in order, for a person and for counting."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttopt.models.chat import Message, Reply, fingerprint
from ttopt.record.result import json_safe
from ttopt.record.run_folder import writing

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

FILE = "trace.json"


class Trace:
    """Calls, clips and warnings of one sample; the file is whole after every event."""

    def __init__(self, folder: Path, head: dict[str, Any]) -> None:
        self.path = folder / FILE
        self.head = head
        self.calls: list[dict[str, Any]] = []
        self.clips: list[dict[str, Any]] = []
        self.warnings: list[str] = []

    def call(self, role: str, step: int, messages: Sequence[Message], reply: Reply) -> None:
        """A reply of the planner, verifier or router, usable or not."""
        where = {"role": role, "step": step, "clip": len(self.clips)}
        asked = {"prompt_hash": fingerprint(messages), "prompt": messages[0].text, "images": len(messages[0].images)}
        self.calls.append({**where, **asked, **asdict(reply), "latency": round(reply.latency, 3), "error": ""})
        self.save()

    def failed_call(self, role: str, step: int, messages: Sequence[Message], error: str) -> None:
        """A call without a usable answer: unreachable, or unreadable twice."""
        where = {"role": role, "step": step, "clip": len(self.clips)}
        asked = {"prompt_hash": fingerprint(messages), "prompt": messages[0].text, "images": len(messages[0].images)}
        self.calls.append({**where, **asked, "text": "", "error": error})
        self.save()

    def clip(self, entry: dict[str, Any]) -> None:
        self.clips.append(entry)
        self.save()

    def verdict(self, verdict: dict[str, Any]) -> None:
        """Of the last clip."""
        self.clips[-1]["verdict"] = verdict
        self.save()

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.save()

    def totals(self) -> dict[str, Any]:
        """The papers' units of cost."""
        return {
            "clips": len(self.clips),
            "generated_seconds": round(sum(clip["generated_seconds"] for clip in self.clips), 4),
            "vlm_calls": len([call for call in self.calls if "tokens_in" in call]),
            "tokens_in": sum(call.get("tokens_in", 0) for call in self.calls),
            "tokens_out": sum(call.get("tokens_out", 0) for call in self.calls),
            "cost": round(sum(call.get("cost", 0.0) for call in self.calls), 6),
            "vlm_seconds": round(sum(call.get("latency", 0.0) for call in self.calls), 3),
        }

    def save(self, **ending: Any) -> None:
        """Writes the file beside itself and renames it."""
        content = self.head | {
            "calls": self.calls,
            "clips": self.clips,
            "warnings": self.warnings,
            "totals": self.totals(),
            **ending,
        }
        with writing(self.path.parent):
            half = self.path.with_suffix(".tmp")
            text = json.dumps(json_safe(content), indent=2, ensure_ascii=False, allow_nan=False)
            half.write_text(text + "\n", encoding="utf-8")
            half.replace(self.path)

    def log(self, logger: Logger | None) -> None:
        """Calls and clips as W&B tables, and the clips themselves, handed over as files."""
        if logger is None or not hasattr(logger, "experiment"):
            return
        import wandb

        columns = ["role", "step", "prompt", "text", "latency", "tokens_in", "tokens_out", "cost", "error"]
        calls = wandb.Table(columns=columns, data=[[call.get(name) for name in columns] for call in self.calls])
        shown = ["file", "step", "attempt", "prompt", "seed", "kept_frames"]
        table = wandb.Table(columns=[*shown, "verdict", "suggestion"])
        media = []  # a video inside a table is only kept online
        for clip in self.clips:
            verdict = clip["verdict"] or {}
            table.add_data(*(clip[name] for name in shown), verdict.get("verdict"), verdict.get("suggestion"))
            caption = f"step {clip['step']}, attempt {clip['attempt']}: {verdict.get('verdict', 'not judged')}"
            media.append(wandb.Video(str(self.path.parent / clip["file"]), caption=caption, format="mp4"))
        logger.experiment.log({"calls": calls, "clips": table} | ({"clip": media} if media else {}))
