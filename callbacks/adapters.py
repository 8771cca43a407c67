"""Keep the adapter."""

from __future__ import annotations

import lightning as L

from ttopt.optimization.training import TestTimeTraining


class SaveAdapter(L.Callback):
    """Saves the kept adapter of every sample into ``adapter/``, with diffusers' and with the original Wan names; none
    where it has no effect, because no step was taken."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TestTimeTraining)
        for number, row in enumerate(pl_module.rows):
            if not pl_module.adapter.has_effect(number):
                continue
            metadata = {"steps": str(row.kept.step), "loss": str(row.kept.total), "stop": row.stop}
            pl_module.adapter.save(pl_module.folder(row) / "adapter", metadata, number)
