"""The loss and every query's P("Yes") over the steps, as numbers and as a picture."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L

from ttopt.optimization.training import Grade, TestTimeTraining


class RewardCurves(L.Callback):
    """Writes ``curves.csv`` as the steps go, and at the end, if there are two grades or more, ``curves.png``.

    Row n holds the losses of the adapter after n steps; the last row is that of the kept weights (unless its loss is
    not finite: then the row with the lowest). A resumed training writes the file again.
    """

    def __init__(self, tau: float | None = None) -> None:
        self.tau = tau
        self._written: dict[Path, int] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._written = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TestTimeTraining)
        for each in pl_module.rows:
            self._append(pl_module.folder(each) / "curves.csv", each.grades)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TestTimeTraining)
        for each in pl_module.rows:
            path = pl_module.folder(each) / "curves.csv"
            self._append(path, each.grades)
            if len(each.grades) > 1:
                draw(each.grades, self.tau, path.with_suffix(".png"))

    def _append(self, path: Path, grades: list[Grade]) -> None:
        written = self._written.get(path, 0)
        rows = [row(grade) for grade in grades[written:]]
        with path.open("a" if written else "w", newline="", encoding="utf-8") as file:
            if rows and not written:
                csv.writer(file).writerow(rows[0])
            csv.writer(file).writerows(line.values() for line in rows)
        self._written[path] = len(grades)


def row(grade: Grade) -> dict[str, float]:
    """One line of curves.csv: step, loss, then loss and P("Yes") of each query."""
    names = query_names(len(grade.per_query))
    losses = {f"loss_{name}": loss for name, loss in zip(names, grade.per_query)}
    p_yes = {f"p_yes_{name}": p for name, p in zip(names, grade.p_yes)}
    return {"step": grade.step, "loss": grade.total, **losses, **p_yes}


def query_names(count: int) -> list[str]:
    return ["goal", *(f"process_{number}" for number in range(1, count))]


def draw(grades: list[Grade], tau: float | None, path: Path) -> None:
    """The loss with the line of tau, and P("Yes") of each query, as a PNG."""
    from matplotlib.figure import Figure  # a Figure of its own needs no display and no global state

    steps = [grade.step for grade in grades]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, [grade.total for grade in grades], color="black", marker=".", label="loss")
    if tau is not None:
        left.axhline(tau, color="tab:red", linestyle="--", label=f"tau = {tau:g}")
    left.set(xlabel="step", title="Loss", ylim=(0, None))
    left.legend(loc="upper right")  # "best" is looked for among all points
    for name, curve in zip(query_names(len(grades[0].per_query)), zip(*(grade.p_yes for grade in grades))):
        right.plot(steps, curve, marker=".", label=name.replace("_", " "), linewidth=2.5 if name == "goal" else 1.2)
    right.set(xlabel="step", title='P("Yes") of each query', ylim=(-0.02, 1.02))
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=110)
