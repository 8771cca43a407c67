"""docs/quickstart.ipynb, run cell by cell as a notebook would."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from ttopt.run.api import Optimized

NOTEBOOK = Path(__file__).parent.parent / "docs/quickstart.ipynb"


def run(cells: list[str]) -> tuple[dict[str, Any], list[Any]]:
    """The names that the cells leave, and the values that they show."""
    names: dict[str, Any] = {}
    shown = []
    for cell in cells:
        tree = ast.parse(cell)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, str(NOTEBOOK), "exec"), names)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names))
    return names, shown


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells), "clear its outputs before a commit"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    matplotlib.use("Agg")
    names, shown = run(["".join(cell["source"]) for cell in cells])
    first, dark = (value for value in shown if isinstance(value, Optimized))
    assert all(value._repr_html_().count("<video") == 2 for value in (first, dark)), "before and after, inline"
    assert not first.result.optimization.score_before.success and first.result.score.success, (
        "a sample that is repaired"
    )
    assert [int(row["step"]) for row in names["rows"]] == list(range(len(names["rows"])))
    assert float(dark.video.mean()) < float(dark.base.mean()), "its own reward is followed"
