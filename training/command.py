"""Command line of the trainings: python -m training STAGE --out FOLDER."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STAGES = ("encoder", "decoder", "vae", "light", "reasoner", "twin", "distill", "teacher")


def run(stage: str, out: Path, steps: int | None) -> None:
    """One stage in this process: weights go to ``out``/weights, states and logs to ``out``/stage."""
    from training import distill, light, reasoner, teacher, vae

    weights = out / "weights"
    given: dict[str, Any] = {} if steps is None else {"steps": steps}
    stages: dict[str, Callable[[], None]] = {
        "encoder": lambda: vae.train_encoder(out / "encoder", **given),
        "decoder": lambda: vae.train_decoder(out / "decoder", **given),
        "vae": lambda: vae.assemble(
            out / "encoder" / "state.safetensors", out / "decoder" / "state.safetensors", weights / "reasoner" / "vae"
        ),
        "light": lambda: light.train(out / "light", **given),
        "distill": lambda: distill.train(out / "distill", out / "reasoner" / "state.safetensors", **given),
        "twin": lambda: reasoner.train(out / "twin", twin=out / "reasoner" / "state.safetensors", **given),
        "teacher": lambda: teacher.train(
            out / "teacher", out / "light" / "state.safetensors", out / "reasoner" / "state.safetensors", **given
        ),
        "reasoner": lambda: reasoner.train(out / "reasoner", **given),
    }
    stages[stage]()


def _worker(rank: int, processes: int, port: int, stage: str, out: Path, steps: int | None) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes)
    run(stage, out, steps)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="training", description="Train the embedded models on the toy world.")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, default=Path("runs/training"))
    parser.add_argument("--steps", type=int, help="instead of the stage's own number of steps")
    parser.add_argument("--processes", type=int, default=1, help="single-threaded processes that share the batch")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.processes == 1:
        run(args.stage, args.out, args.steps)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = (args.processes, port, args.stage, args.out, args.steps)
    torch.multiprocessing.spawn(_worker, given, nprocs=args.processes)
