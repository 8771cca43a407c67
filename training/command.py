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


def state(out: Path, stage: str) -> Path:
    """The file in which a stage keeps its state."""
    return out / stage / "state.safetensors"


def run(stage: str, out: Path, steps: int | None) -> None:
    """One stage in this process; states and logs go to ``out``/stage."""
    from training import chat, distill, light, reasoner, teacher, vae

    given: dict[str, Any] = {} if steps is None else {"steps": steps}
    stages: dict[str, Callable[[], None]] = {
        "encoder": lambda: vae.train_encoder(out / "encoder", **given),
        "decoder": lambda: vae.train_decoder(out / "decoder", **given),
        "light": lambda: light.train(out / "light", **given),
        "distill": lambda: distill.train(out / "distill", state(out, "reasoner"), **given),
        "twin": lambda: reasoner.train(out / "twin", twin=state(out, "reasoner"), **given),
        "teacher": lambda: teacher.train(out / "teacher", state(out, "light"), state(out, "reasoner"), **given),
        "reasoner": lambda: reasoner.train(out / "reasoner", **given),
        "chat": lambda: chat.train(
            out / "chat",
            state(out, "teacher"),
            state(out, "distill"),
            vae.halves(state(out, "encoder"), state(out, "decoder")),
            **given,
        ),
        "weights": lambda: write_weights(out),
        "pack": lambda: pack_all(out),
    }
    stages[stage]()


def write_weights(out: Path) -> None:
    """Writes what has been trained so far to ``out``/weights, in float16 and the layout of public models."""
    from training import chat, light, reasoner, teacher, vae

    weights, made = out / "weights", {stage: state(out, stage) for stage in STAGES if state(out, stage).exists()}
    if "encoder" in made and "decoder" in made:
        vae.assemble(made["encoder"], made["decoder"], weights / "reasoner" / "vae")
    if "light" in made:
        light.save(made["light"], weights / "light_decoder")
    if "reasoner" in made:
        latest = made.get("distill", made["reasoner"])
        reasoner.save(*reasoner.load_state(latest), weights / "reasoner")
    if "twin" in made:
        transformer, _ = reasoner.load_state(made["twin"])
        save_half(transformer, weights / "base" / "transformer")
    if "teacher" in made:
        teacher.save(made["teacher"], weights / "teacher")
    if "chat" in made:
        chat.save(made["chat"], weights / "chat")


def pack_all(out: Path) -> None:
    """Writes the states so far to ``out``/packed, small enough to keep."""
    for stage in STAGES:
        if state(out, stage).exists():
            pack(state(out, stage), state(out / "packed", stage))


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
