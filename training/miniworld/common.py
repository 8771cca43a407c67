"""What the first edition's trainings share beyond training/common.py: task banks, runs and steps of one optimizer."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.common import Ema, average_gradients, rank, under
from ttopt.miniworld.multistep import legs
from ttopt.miniworld.scene import Task
from ttopt.miniworld.tasks import FAMILIES, MULTI_STEP, TWO_STOPS, make_task


def task_bank(split: str, seed: int, count: int, families: Sequence[str] = FAMILIES) -> list[Task]:
    """``count`` tasks, families in turn, the same for the same arguments."""
    return [make_task(families[i % len(families)], split, seed, i // len(families)) for i in range(count)]


def step_bank(split: str, seed: int, count: int) -> list[Task]:
    """About ``count`` single steps of longer tasks, a mixture of all families that have several stops."""
    out: list[Task] = []
    for index in itertools.count():
        for family in (*TWO_STOPS, *MULTI_STEP):
            out += legs(make_task(family, split, seed, index))
        if len(out) >= count:
            return out
    raise AssertionError


def carry_over(old: dict[str, Tensor], network: nn.Module, name: str, rows: list[tuple[int, int]]) -> None:
    """Loads ``old`` weights into ``network``, whose embedding ``name`` has another vocabulary.

    ``rows`` pairs (new, old) row numbers; other rows stay as they are.
    """
    fresh = network.state_dict()
    table = fresh[name].clone()
    for new, known in rows:
        table[new] = old[name][known]
    fitting = {k: v.to(fresh[k].dtype) for k, v in old.items() if k in fresh and v.shape == fresh[k].shape}
    network.load_state_dict({**fitting, name: table}, strict=False)


def shared_rows(new: Any, old: Any) -> list[tuple[int, int]]:
    """(new, old) numbers of the tokens that two tokenizers share."""
    known = old.get_vocab()
    return [(number, known[token]) for token, number in new.get_vocab().items() if token in known]


class Run:
    """Folder of one training: log.jsonl, and state.safetensors from which it goes on after an interruption."""

    def __init__(
        self, folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, ema: Ema | None = None
    ):
        self.folder, self.modules, self.optimizer, self.ema = folder, modules, optimizer, ema
        folder.mkdir(parents=True, exist_ok=True)
        self.started = time.time()
        self.seconds_before = 0.0

    def steps(self, total: int, save_every: int = 200) -> Iterator[int]:
        """Yields step numbers from where the last run stopped; saves the state as it goes and at the end."""
        first = self._load()
        for step in range(first, total):
            yield step
            if rank() == 0 and ((step + 1) % save_every == 0 or step + 1 == total):
                self._save(step + 1)

    def log(self, step: int, **values: float | Tensor) -> None:
        """One line of numbers to the console and to log.jsonl (first process only)."""
        if rank():
            return
        seconds = self.seconds_before + time.time() - self.started
        row = {
            "step": step,
            "seconds": round(seconds, 1),
            **{k: round(float(torch.as_tensor(v).detach()), 5) for k, v in values.items()},
        }
        print(" ".join(f"{k} {v:g}" for k, v in row.items()), flush=True)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _tensors(self) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            out |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            out |= {f"optimizer/{index}/{key}": torch.as_tensor(value) for key, value in state.items()}
        if self.ema:
            out |= {f"ema/{key}": value for key, value in self.ema.shadow.items()}
        return out

    def _save(self, step: int) -> None:
        seconds = self.seconds_before + time.time() - self.started
        tensors = {key: value.detach().contiguous().clone() for key, value in self._tensors().items()}
        temporary = self.folder / "state.tmp"
        save_file(tensors, temporary, metadata={"step": str(step), "seconds": str(seconds)})
        temporary.replace(self.folder / "state.safetensors")

    def _load(self) -> int:
        path = self.folder / "state.safetensors"
        if not path.exists():
            return 0
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        for name, module in self.modules.items():
            module.load_state_dict(under(tensors, name))
        state: dict[int, dict[str, Any]] = {}
        for key, value in under(tensors, "optimizer").items():
            index, field = key.split("/")
            state.setdefault(int(index), {})[field] = value
        current = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})
        if self.ema:
            self.ema.shadow = under(tensors, "ema")
        self.seconds_before = float(metadata["seconds"])
        print(f"continuing {self.folder} at step {metadata['step']}", flush=True)
        return int(metadata["step"])


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def cosine(step: int, total: int, peak: float, warmup: int = 100, floor: float = 0.03) -> float:
    """Linear warm-up, then a cosine to ``floor`` times the peak."""
    import math

    if step < warmup:
        return peak * (step + 1) / warmup
    part = (step - warmup) / max(1, total - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * part)))


def update(
    loss: Tensor,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Ema,
    rate: float,
    averaged: nn.Module | None = None,
) -> None:
    """One optimizer step of ``network`` at learning rate ``rate``, gradients shared; those of it, or of its part
    ``averaged``, are clipped and its average updated."""
    set_rate(optimizer, rate)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(network)
    kept = network if averaged is None else averaged
    torch.nn.utils.clip_grad_norm_(kept.parameters(), 1.0)
    optimizer.step()
    ema.update(kept)
