"""Stop as soon as the teacher is satisfied."""

from __future__ import annotations

import lightning as L

from ttopt.errors import UserError
from ttopt.optimization.training import TestTimeTraining
from ttopt.record.result import ACCEPTED


class LossThreshold(L.Callback):
    """Stops when the loss is at most ``tau``, before the weights take another step (Algorithm 1, ``L <= tau``).

    0.22, the paper's, is about 80 % confidence in "Yes": exp(-0.22) = 0.80.
    """

    def __init__(self, tau: float = 0.22) -> None:
        if tau < 0:
            raise UserError(f"tau is {tau}, but a loss is never below 0; give 0.22, or 0 to use all steps")
        self.tau = tau

    def on_graded(self, trainer: L.Trainer, module: TestTimeTraining) -> None:
        for row in module.open_rows:
            if row.grades[-1].total <= self.tau:
                row.stop = ACCEPTED
