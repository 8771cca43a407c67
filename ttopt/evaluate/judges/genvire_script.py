"""What a task's script of Gen-ViRe sends to the judge: read out of its source, which is never run.

The scripts build one text from the rubric and constants of their own, upload files, and call generate_content with a
list of both. Reading the list keeps every word and its order as the benchmark has it.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from ttopt.errors import UserError
from ttopt.evaluate.judges.source import parsed, text_of

# What the scripts' variables for paths hold.
PATHS = {
    "input_image_path": "input", "answer_image_path": "answer", "gt_image_path": "gt", "choices_image_path": "gt",
    "last_frame_image_path": "frame", "last_frame_path": "frame", "target_image_path": "frame", "video_path": "video",
}  # fmt: skip
RUBRIC = ("eval_task_description", "eval_prompt")  # and for the rubric's text


@dataclass(frozen=True)
class Shown:
    """A file that the judge sees: input, answer, gt, frame (the last one, cropped as the sample says) or video."""

    what: str


def contents(source: str, rubric: str, where: object) -> list[str | Shown]:
    """The texts and files of a script's question, in order. Raises UserError for a script that is written otherwise."""
    tree = parsed(source, where)
    texts, files = dict.fromkeys(RUBRIC, rubric), {}
    found = None
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Assign, ast.Call))]
    for node in sorted(nodes, key=lambda node: node.lineno):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name, text = node.targets[0].id, text_of(node.value, texts)
            if text is not None and name not in RUBRIC:
                texts[name] = text
            uploaded = _uploaded(node.value)
            if uploaded:
                files[name] = uploaded
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "generate_content":
            given = next((word.value for word in node.keywords if word.arg == "contents"), None)
            found = given.elts if isinstance(given, ast.List) else None
    parts: list[str | Shown] = []
    for item in found or []:
        text = text_of(item, texts)
        shown = files.get(item.id) if isinstance(item, ast.Name) else None
        if text is None and shown is None:
            raise UserError(f"{where}: it is not known what {ast.unparse(item)[:60]} is that the judge gets")
        parts.append(Shown(shown) if text is None and shown else text or "")
    if not any(isinstance(part, Shown) for part in parts):
        raise UserError(f"{where} shows the judge nothing; fetch the benchmark's code again")
    return parts


def _uploaded(node: ast.AST) -> str | None:
    """What file a call uploads."""
    if not isinstance(node, ast.Call):
        return None
    names = [part.id for part in (*node.args, *(word.value for word in node.keywords)) if isinstance(part, ast.Name)]
    return next((PATHS[name] for name in names if name in PATHS), None)
