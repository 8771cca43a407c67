"""Several processes that work on one sample: torchrun or SLURM starts the same command in each (docs/sharding.md).

They hold parts of the same weights (reasoner/sharding.py), so all must run the same passes of the video model, in the
same order. Everything else each does for itself with the same inputs; what decides how it goes on is decided by
process 0 (``from_rank_zero``), and only what process 0 writes is kept.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy

from ttopt.config.settings import FitSettings
from ttopt.errors import UserError, brief

T = TypeVar("T")

COMMAND = "torchrun --nproc-per-node 2 -m ttopt fit --reasoner.shard true ... (docs/sharding.md)"
PATIENCE = timedelta(seconds=60)  # between the first and the last process that meet the same error
_groups: dict[str, dist.ProcessGroup] = {}  # how the processes talk; weights have a group of their own


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return bool(_groups)


def world_size() -> int:
    """How many there are."""
    return dist.get_world_size() if is_distributed() else 1


def is_rank_zero() -> bool:
    """Whether what this process writes is kept."""
    return not is_distributed() or dist.get_rank() == 0


def from_rank_zero(decide: Callable[[], T]) -> T:
    """What process 0 decides, in all processes; its UserError too."""
    if not is_distributed():
        return decide()
    decided: list[Any] = [None]
    if is_rank_zero():
        try:
            decided = [decide()]
        except UserError as error:
            decided = [error]
    dist.broadcast_object_list(decided, src=0, group=_groups["talk"])
    if isinstance(decided[0], UserError):
        raise decided[0]
    return decided[0]  # type: ignore[no-any-return]


def reached_by_all_ranks() -> bool:
    """Whether all processes have met an error in the current sample. If not, the others are in the middle of it, and
    this one must not go on to the next."""
    try:
        if is_distributed():
            dist.barrier(_groups["errors"])
    except RuntimeError:
        return False
    return True


@contextmanager
def joined(settings: FitSettings) -> Iterator[FitSettings]:
    """Begins to work together if ``reasoner.shard`` says so; gives the settings of this process.

    All but process 0 write into a folder that vanishes. Raises UserError for processes that cannot work together.
    """
    if not settings.reasoner.shard:
        if TorchElasticEnvironment.detect() and TorchElasticEnvironment().world_size() > 1:
            raise UserError(
                f"torchrun started {os.environ['WORLD_SIZE']} processes, which would all do the same; give "
                "--reasoner.shard true to share one model among them, or start one process"
            )
        yield settings
        return
    rank = _begin(settings.reasoner.device)
    with TemporaryDirectory(prefix="ttopt-") as scratch:
        if rank > 0:
            logging = dataclasses.replace(settings.logging, wandb="disabled")
            settings = dataclasses.replace(settings, run_dir=str(Path(scratch) / "run"), logging=logging)
        try:
            yield settings
            dist.barrier(_groups["talk"])  # whoever started the processes may end all when one has ended
        except BaseException as error:
            # The others may be waiting for this one, and leaving the group in order would wait for them: this process
            # ends at once, which ends the others.
            code = 130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, UserError) else 1
            atexit.register(_leave, code)
            if _ended_elsewhere(error):
                raise UserError(f"another process has ended, see there; so does this one ({brief(error)})") from error
            raise
    _groups.clear()
    dist.destroy_process_group()


def _begin(device: str) -> int:
    """Connects the processes that were started; returns this one's number."""
    environment, each = _started()
    gpu = device != "cpu" and torch.cuda.is_available()
    if gpu and each > torch.cuda.device_count():
        raise UserError(
            f"{each} processes were started on this machine, but each sees {torch.cuda.device_count()} GPUs; start "
            "one a GPU, and let each see all GPUs of its machine (SLURM: --gpus-per-node)"
        )
    if gpu:
        torch.cuda.set_device(environment.local_rank())
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    dist.init_process_group(
        "nccl" if gpu else "gloo",
        rank=environment.global_rank(),
        world_size=environment.world_size(),
        device_id=torch.device("cuda", environment.local_rank()) if gpu else None,
    )
    _groups["talk"] = dist.new_group(backend="gloo")
    _groups["errors"] = dist.new_group(backend="gloo", timeout=PATIENCE)
    return dist.get_rank()


def _started() -> tuple[ClusterEnvironment, int]:
    """What started the processes, and how many of them on each machine. Raises UserError if this is the only one."""
    if TorchElasticEnvironment.detect():
        environment: ClusterEnvironment = TorchElasticEnvironment()
        each = int(os.environ["LOCAL_WORLD_SIZE"])
    elif SLURMEnvironment.detect():
        if "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise UserError("reasoner.shard needs to know how many processes a node has; give srun --ntasks-per-node")
        environment, each = SLURMEnvironment(), int(os.environ["SLURM_NTASKS_PER_NODE"])
    else:
        environment, each = LightningEnvironment(), 1
    if environment.world_size() < 2:
        raise UserError(f"reasoner.shard shares the model among processes, but this is the only one; start {COMMAND}")
    return environment, each


def _ended_elsewhere(error: BaseException) -> TypeGuard[Exception]:
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "by peer" in str(error))


def _leave(code: int) -> None:
    sys.stdout.flush()
    os._exit(code)


def trainer_options(device: torch.device) -> dict[str, Any]:
    """A Trainer's arguments: where it works, here on ``device`` or together with the other processes."""
    gpu = device.type == "cuda"
    where: dict[str, Any] = {"accelerator": "gpu" if gpu else "cpu"}
    if is_distributed():
        _, each = _started()
        return {**where, "devices": each, "num_nodes": dist.get_world_size() // each, "strategy": Strategy()}
    # Whatever processes a scheduler has started: this one works alone.
    return {**where, "devices": [device.index or 0] if gpu else 1, "plugins": LightningEnvironment()}


class Strategy(ModelParallelStrategy):
    """Lightning's, without its device mesh: the model is sharded when it is loaded, and a new mesh for every sample
    would leave its process groups behind."""

    def setup_environment(self) -> None:
        self._setup_distributed()
