"""What every training shares: a state to go on from, a log, averaged weights, learning rates, several processes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.muon import Muon

Optimizers = dict[str, torch.optim.Optimizer]


def device() -> torch.device:
    """Where trainings run: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Ema:
    """Exponential moving average of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        for name, p in module.named_parameters():
            self.shadow[name].lerp_(p, 1 - self.decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        for name, p in module.named_parameters():
            p.copy_(self.shadow[name])


class Run:
    """Folder of one training: log.jsonl, and state.safetensors from which it goes on after an interruption.

    Step numbers seed what is drawn, so an interrupted training sees the same data as one that was not.
    """

    def __init__(
        self, folder: Path, modules: dict[str, nn.Module], optimizers: Optimizers, ema: Ema | None = None
    ) -> None:
        self.folder, self.modules, self.optimizers, self.ema = folder, modules, optimizers, ema
        folder.mkdir(parents=True, exist_ok=True)
        self.started, self.seconds_before = time.time(), 0.0

    def steps(self, total: int, save_seconds: float = 240.0) -> Iterator[int]:
        """Yields step numbers from where the last run stopped; saves the state every few minutes and at the end."""
        first, saved = self._load(), time.time()
        for step in range(first, total):
            yield step
            if rank() == 0 and (time.time() - saved > save_seconds or step + 1 == total):
                self._save(step + 1)
                saved = time.time()

    def log(self, step: int, **values: float | Tensor) -> None:
        """One line of numbers to the console and to log.jsonl (first process only)."""
        if rank():
            return
        numbers = {k: float(f"{float(torch.as_tensor(v).detach()):.4g}") for k, v in values.items()}
        row = {"step": step, "seconds": round(self.seconds, 1), **numbers}
        print(" ".join(f"{k} {v:g}" for k, v in row.items()), flush=True)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.time() - self.started

    def _tensors(self) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            out |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for index, state in optimizer.state_dict()["state"].items():
                out |= {f"optimizer/{name}/{index}/{key}": torch.as_tensor(value) for key, value in state.items()}
        if self.ema:
            out |= {f"ema/{key}": value for key, value in self.ema.shadow.items()}
        return out

    def _save(self, step: int) -> None:
        tensors = {key: value.detach().cpu().contiguous().clone() for key, value in self._tensors().items()}
        temporary = self.folder / "state.tmp"
        save_file(tensors, temporary, metadata={"step": str(step), "seconds": str(self.seconds)})
        temporary.replace(self.folder / "state.safetensors")

    def _load(self) -> int:
        path = self.folder / "state.safetensors"
        if not path.exists():
            return 0
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        for name, module in self.modules.items():
            module.load_state_dict(under(tensors, name))
        for name, optimizer in self.optimizers.items():
            state: dict[int, dict[str, Any]] = {}
            for key, value in under(tensors, f"optimizer/{name}").items():
                index, field = key.split("/")
                state.setdefault(int(index), {})[field] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        if self.ema:
            weights = {key: value for name in self.modules for key, value in under(tensors, name).items()}
            shadow = weights | under(tensors, "ema")  # a packed state has the averages as weights
            self.ema.shadow = {name: shadow[name].to(old) for name, old in self.ema.shadow.items()}
        self.seconds_before = float(metadata["seconds"])
        print(f"continuing {self.folder} at step {metadata['step']}", flush=True)
        return int(metadata["step"])


def pack(state: Path, out: Path) -> None:
    """Writes a state with its averaged weights alone, in float16: a training can go on from it, with new momenta."""
    with safe_open(state, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(state)
    average = under(tensors, "ema")
    kept: dict[str, Tensor] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if kind not in ("optimizer", "ema"):
            kept[key] = average.get(name, value).half() if value.is_floating_point() else value
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(kept, out, metadata=metadata)


def under(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``name``/, without that."""
    return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(name + "/")}


def averaged(state: Path, name: str, module: nn.Module) -> None:
    """Loads the averaged weights of a training's state file into ``module``, saved there under ``name``; what only the
    training had is left out."""
    tensors = load_file(state)
    found = {**under(tensors, name), **under(tensors, "ema")}
    module.load_state_dict({key: found[key] for key in module.state_dict()})


def cosine(step: int, total: int, warmup: int = 30, floor: float = 0.02) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    part = (step - warmup) / max(1, total - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * part))


def matrices_and_rest(
    network: nn.Module, muon: float, adam: float, chosen: Callable[[str], bool] = lambda name: True
) -> Optimizers:
    """Muon for a network's matrices and filters with ``chosen`` names, AdamW for the rest, at these learning rates."""
    big: list[nn.Parameter] = []
    small: list[nn.Parameter] = []
    for name, weight in network.named_parameters():
        matrix = weight.ndim >= 2 and min(weight.shape[0], weight.numel() // weight.shape[0]) > 4
        (big if matrix and chosen(name) else small).append(weight)
    return {
        "muon": Muon(big, muon),
        "adam": torch.optim.AdamW(small, adam, weight_decay=0.0, betas=(0.9, 0.99)),
    }


def update(loss: Tensor, network: nn.Module, optimizers: Optimizers, ema: Ema, share: float) -> None:
    """One clipped step at this share of each optimizer's learning rate, gradients averaged over the processes."""
    for optimizer in optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(network)
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * share
        optimizer.step()
    ema.update(network)


def save_half(model: Any, folder: Path) -> None:
    """Writes a diffusers or transformers model in float16, without the path that it was once loaded from."""
    model.half().save_pretrained(folder)
    model.float()
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if config.pop("_name_or_path", None) is not None:
        path.write_text(json.dumps(config, indent=2) + "\n")


def rank() -> int:
    """Number of this process, 0 when there is only one."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def processes() -> int:
    """How many processes share the batch."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def average_gradients(module: nn.Module) -> None:
    """Averages gradients over the processes; two single-threaded processes beat one with two threads."""
    if processes() == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= processes()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
