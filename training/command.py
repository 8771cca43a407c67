"""Command line of the trainings: python -m training STAGE --out FOLDER."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from training.common import pack, save_half

STAGES = ("encoder", "decoder", "light", "reasoner", "twin", "distill", "teacher", "chat", "weights", "pack")


def run(stage: str, out: Path, steps: int | None) -> None:
    """One stage in this process; states and logs go to ``out``/stage."""
    from training import chat, distill, light, reasoner, teacher, vae

    given: dict[str, Any] = {} if steps is None else {"steps": steps}
    stages: dict[str, Callable[[], None]] = {
        "encoder": lambda: vae.train_encoder(out / "encoder", **given),
        "decoder": lambda: vae.train_decoder(out / "decoder", **given),
        "light": lambda: light.train(out / "light", **given),
        "distill": lambda: distill.train(out / "distill", out / "reasoner" / "state.safetensors", **given),
        "twin": lambda: reasoner.train(out / "twin", twin=out / "reasoner" / "state.safetensors", **given),
        "teacher": lambda: teacher.train(
            out / "teacher", out / "light" / "state.safetensors", out / "reasoner" / "state.safetensors", **given
        ),
        "reasoner": lambda: reasoner.train(out / "reasoner", **given),
        "chat": lambda: chat.train(
            out / "chat",
            out / "teacher" / "state.safetensors",
            out / "distill" / "state.safetensors",
            vae.halves(out / "encoder" / "state.safetensors", out / "decoder" / "state.safetensors"),
            **given,
        ),
        "weights": lambda: write_weights(out),
        "pack": lambda: pack_all(out),
    }
    stages[stage]()


def write_weights(out: Path) -> None:
    """Writes what has been trained so far to ``out``/weights, in float16 and the layout of public models."""
    from training import chat, light, reasoner, teacher, vae

    def state(stage: str) -> Path:
        return out / stage / "state.safetensors"

    weights = out / "weights"
    if state("encoder").exists() and state("decoder").exists():
        vae.assemble(state("encoder"), state("decoder"), weights / "reasoner" / "vae")
    if state("light").exists():
        light.save(state("light"), weights / "light_decoder")
    for stage in ("reasoner", "distill"):  # the later one stays
        if state(stage).exists():
            reasoner.save(*reasoner.load_state(state(stage)), weights / "reasoner")
    if state("twin").exists():
        transformer, _ = reasoner.load_state(state("twin"))
        save_half(transformer, weights / "base" / "transformer")
    if state("teacher").exists():
        teacher.save(state("teacher"), weights / "teacher")
    if state("chat").exists():
        chat.save(state("chat"), weights / "chat")


def pack_all(out: Path) -> None:
    """Writes the states so far to ``out``/packed, small enough to keep."""
    for stage in STAGES:
        state = out / stage / "state.safetensors"
        if state.exists():
            pack(state, out / "packed" / stage / "state.safetensors")


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
