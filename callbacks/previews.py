"""See what the teacher sees."""

from __future__ import annotations

from typing import Any

import lightning as L

from ttopt.data.images import write_image
from ttopt.data.video import strip
from ttopt.errors import UserError
from ttopt.optimization.training import Row, TestTimeTraining


class Previews(L.Callback):
    """Writes the graded frames side by side every ``every`` steps: ``previews/step_0010.png``; also the last ones."""

    def __init__(self, every: int = 10) -> None:
        if every < 1:
            raise UserError(f"previews every {every} steps is not possible; give 1 or more")
        self.every = every

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TestTimeTraining)
        for row in pl_module.rows:
            for path in (pl_module.folder(row) / "previews").glob("step_*.png"):
                if int(path.stem.removeprefix("step_")) >= len(row.grades):  # of a killed run that had got further
                    path.unlink()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TestTimeTraining)
        for row in pl_module.rows:
            if (
                row.stop or row.grades[-1].step % self.every == 0
            ):  # a process that goes on later no longer has its frames
                self._write(pl_module, row)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TestTimeTraining)
        for row in pl_module.rows:
            self._write(pl_module, row)

    def _write(self, module: TestTimeTraining, row: Row) -> None:
        path = module.folder(row) / "previews" / f"step_{row.grades[-1].step:04d}.png"
        if row.frames is not None and not path.exists():  # a row that has stopped is looked at again and again
            path.parent.mkdir(exist_ok=True)
            write_image(path, strip(row.frames))
