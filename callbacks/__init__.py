"""Lightning callbacks for ttopt.optimization.training.TestTimeTraining; each can be used alone.

They write into the folder of each row, which is ``trainer.default_root_dir`` where a row has none.
"""

from __future__ import annotations

import lightning as L

from ttopt.config.settings import FitSettings

from .adapters import SaveAdapter
from .loss_threshold import LossThreshold
from .previews import Previews
from .reward_curves import RewardCurves

__all__ = ["LossThreshold", "Previews", "RewardCurves", "SaveAdapter", "standard"]


def standard(settings: FitSettings) -> list[L.Callback]:
    """The callbacks of ``ttopt fit``, new ones for each sample."""
    tau, every = settings.optimization.tau, settings.logging.previews_every
    found: list[L.Callback] = [LossThreshold(tau), RewardCurves(tau), SaveAdapter()]
    return [*found, Previews(every)] if every else found
