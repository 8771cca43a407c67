"""See what the teacher sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from ttopt.data.images import write_image
from ttopt.data.video import strip
from ttopt.errors import UserError
from ttopt.optimization.training import TestTimeTraining


class Previews(L.Callback):
    """Writes the graded frames side by side every ``every`` steps: ``previews/step_0010.png``; also the last ones."""

    def __init__(self, every: int = 10) -> None:
        if every < 1:
            raise UserError(f"previews every {every} steps is not possible; give 1 or more")
        self.every = every

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TestTimeTraining)
        for path in (Path(trainer.default_root_dir) / "previews").glob("step_*.png"):
            if int(path.stem.removeprefix("step_")) >= pl_module.steps:  # of a killed run that had got further
                path.unlink()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TestTimeTraining)
        if pl_module.grades[-1].step % self.every == 0:
            self._write(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TestTimeTraining)
        self._write(trainer, pl_module)

    def _write(self, trainer: L.Trainer, module: TestTimeTraining) -> None:
        assert module.frames is not None
        folder = Path(trainer.default_root_dir) / "previews"
        folder.mkdir(exist_ok=True)
        write_image(folder / f"step_{module.grades[-1].step:04d}.png", strip(module.frames))
