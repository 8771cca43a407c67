"""A sample's optimization goes on where a killed run left it.

``state.safetensors`` in the sample's unfinished folder is all that Algorithm 1 needs between two steps. Its tensors are
those of ``TestTimeTraining.state``; its header holds, as JSON, the grades so far, the questions, the noise that was
chosen, the cost so far, and a digest of all that changes results. The rest (condition, noise, the frozen model's video)
is computed again. The result is that of a training that was never interrupted, to the bit on a CPU.

Not Lightning's checkpoints, which are pickles.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ttopt.config.settings import FitSettings, flat, is_free, to_dict
from ttopt.data.sample import Sample
from ttopt.models.teacher import Queries
from ttopt.models.tensorfile import save_tensors
from ttopt.optimization.training import Grade, TestTimeTraining
from ttopt.record.identity import inputs
from ttopt.record.meter import Meter, SharedMeter
from ttopt.record.result import versions
from ttopt.record.run_folder import STATE, replacing

FORMAT = 2  # of the file; another one is not read
SHARE = 0.02  # most of the time that writing may take


@dataclass(frozen=True)
class State:
    """An optimization between two steps."""

    queries: Queries
    noise_seed: int
    cost: dict[str, Any]  # of Meter.state
    grades: list[Grade]
    stop: str  # "" while it goes on; in a batch, one that has stopped waits for the others
    tensors: dict[str, Tensor]  # of TestTimeTraining.state


def digest(sample: Sample, settings: FitSettings, queries: Queries | None, start: str = "") -> str:
    """Of everything that changes a sample's result; ``queries`` are the user's own, ``start`` names the entry of the
    bank that it may start from."""
    decides = {name: value for name, value in flat(to_dict(settings)).items() if not is_free(name)}
    asked = queries and dataclasses.asdict(queries)
    text = json.dumps([FORMAT, decides, inputs(sample, settings), versions(), asked, start], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read(folder: Path, digest: str, note: Callable[[str], None]) -> State | None:
    """The state in ``folder``, if there is one.

    One that is broken or of another ``digest`` is removed, which ``note`` is told.
    """
    path = folder / STATE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        if header.pop("digest") == digest:
            queries, grades = header.pop("queries"), header.pop("grades")
            return State(
                queries=Queries(**{**queries, "process": tuple(queries["process"])}),
                grades=[Grade(step, total, tuple(per_query)) for step, total, per_query in grades],
                tensors=tensors,
                **header,
            )
        why = "was made with other settings, inputs or versions"
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        why = "cannot be read"
    path.unlink()
    note(f"{path} {why}: it is removed, and the sample starts over")
    return None


class KeepState(L.Callback):
    """Writes every row's state into its folder every ``every`` steps, or less often where it would take more than
    2 % of the time.

    ``headers``: of each row the digest, the questions and the seed of its noise; ``meter`` measures the work on them.
    """

    def __init__(self, every: int, headers: Sequence[tuple[str, Queries, int]], meter: Meter | SharedMeter) -> None:
        self.every, self.meter = every, meter
        self.headers = [
            {"digest": digest, "queries": dataclasses.asdict(queries), "noise_seed": noise_seed}
            for digest, queries, noise_seed in headers
        ]
        self._written = self._took = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TestTimeTraining)
        steps, begin = pl_module.steps, time.perf_counter()
        # After the last step there is none to go on with.
        due = steps % self.every == 0 and steps < pl_module.settings.steps and not trainer.should_stop
        if not due or begin - self._written < self._took / SHARE:
            return
        with pl_module.timer("keep state"):
            for number, row in enumerate(pl_module.rows):
                self._write(pl_module, number, pl_module.folder(row) / STATE)
        self._written = time.perf_counter()
        self._took = self._written - begin

    def _write(self, module: TestTimeTraining, number: int, file: Path) -> None:
        row = module.rows[number]
        grades = [[grade.step, grade.total, grade.per_query] for grade in row.grades]
        cost = self.meter.state(number)
        header = json.dumps({**self.headers[number], "grades": grades, "stop": row.stop, "cost": cost})
        with replacing(file) as path:
            save_tensors(path, module.state(number), {"state": header})
