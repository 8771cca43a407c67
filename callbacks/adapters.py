"""Keep the adapter."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from ttopt.optimization.training import TestTimeTraining


class SaveAdapter(L.Callback):
    """Saves the kept adapter into ``adapter/``, with diffusers' and with the original Wan names."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TestTimeTraining)
        kept = pl_module.kept
        metadata = {"steps": str(kept.step), "loss": str(kept.total), "stop": pl_module.stop}
        pl_module.adapter.save(Path(trainer.default_root_dir) / "adapter", metadata)
