"""``python two_processes.py torchrun|slurm fit ...``: ttopt in two processes that share a model, with the environment
that torchrun or SLURM gives them. Both are forked from one that has imported everything, which saves seconds.

Also callbacks that watch such processes, and that break one.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

import callbacks  # noqa: F401
from ttopt.__main__ import main
from ttopt.errors import UserError
from ttopt.evaluate import report  # noqa: F401
from ttopt.models.reasoner import Reasoner
from ttopt.optimization.training import TestTimeTraining
from ttopt.run import run as engine  # noqa: F401

PATIENCE = 30  # seconds


def environment(kind: str, rank: int, port: int) -> dict[str, str]:
    if kind == "slurm":
        count = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_JOB_NAME": "train"}
        place = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}
    else:
        count = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    return count | place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def run(kind: str, arguments: list[str]) -> int:
    """Ends the other as torchrun does when one has failed, but leaves it the time to say why it ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        if (child := os.fork()) == 0:
            os.environ.update(environment(kind, rank, port))
            torch.set_num_threads(1)
            sys.exit(main(arguments))
        children.append(child)
    codes = []
    while children:
        child, status = os.wait()
        children.remove(child)
        codes.append(os.waitstatus_to_exitcode(status))
        if codes[-1] and children:
            signal.signal(signal.SIGALRM, lambda *_: os.kill(children[0], signal.SIGTERM))
            signal.alarm(PATIENCE)
    return next((abs(code) for code in codes if code), 0)


def rank() -> str:
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "alone"))


def held(reasoner: Reasoner) -> int:
    """Bytes of the blocks' frozen weights in this process."""
    parts = [network for network in (reasoner.transformer, reasoner.low_noise) if network is not None]
    weights = [weight for part in parts for name, weight in part.blocks.named_parameters() if "lora_" not in name]
    local: list[Tensor] = [weight.to_local() if hasattr(weight, "to_local") else weight for weight in weights]
    return sum(weight.numel() * weight.element_size() for weight in local)


class Watch(L.Callback):
    """Notes what this process holds and has trained."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TestTimeTraining)
        trained = hashlib.sha256(b"".join(weight.detach().numpy().tobytes() for weight in pl_module.lora)).hexdigest()
        seen = {"held": held(pl_module.frozen.reasoner), "trained": trained, "processes": trainer.world_size}
        (self.folder / f"{rank()}.json").write_text(json.dumps(seen))


class Break(L.Callback):
    """Breaks one process, or all (None), after some steps."""

    def __init__(self, process: int | None, how: str, step: int = 2) -> None:
        self.process, self.how, self.step = process, how, step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: object) -> None:
        assert isinstance(pl_module, TestTimeTraining)
        if pl_module.steps != self.step or self.process not in (None, trainer.global_rank) or trainer.world_size == 1:
            return
        match self.how:
            case "killed in its second clip":
                clips = Path("clips")
                clips.mkdir(exist_ok=True)
                (clips / str(len(list(clips.iterdir())))).touch()
                if len(list(clips.iterdir())) == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "memory":
                raise torch.OutOfMemoryError("CUDA out of memory")
            case "disk":
                raise UserError("cannot write to x") from OSError("No space left on device")
            case "sample":
                raise UserError("it cannot be")
            case "bug":
                raise RuntimeError("a bug")


if __name__ == "__main__":
    sys.modules["two_processes"] = sys.modules["__main__"]  # for the callbacks' class paths
    sys.exit(run(sys.argv[1], sys.argv[2:]))
