"""Trains the models that ship: python -m training.miniworld.train all --out runs/train

Stages, each resumable and each leaving a log.jsonl, in the order of ``all``: vae, latents, light, student, decoder (the
VAE's decoder, polished on its frozen latents), distill, teacher, chat (from the teacher's weights).
``--start`` lets student, teacher and chat go on from finished weights, also from those of a smaller vocabulary.
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable
from pathlib import Path

import torch

STAGES = ("vae", "latents", "light", "student", "decoder", "distill", "teacher", "chat")
SHARED = ("vae", "decoder", "teacher", "chat")  # stages whose work several processes can share


def run(stage: str, out: Path, steps: int | None, start: Path | None) -> None:
    """One stage in this process; weights go to ``out``/weights, states and logs to ``out``/stage."""
    from training.miniworld import chat, light, student, teacher, vae

    weights = out / "weights"
    vae_folder, base, shipped = weights / "reasoner" / "vae", weights / "base", weights / "reasoner"
    light_folder = weights / "light_decoder"
    given = {} if steps is None else {"steps": steps}
    stages: dict[str, Callable[[], None]] = {
        "vae": lambda: vae.train(out / "vae", vae_folder, **given),
        "latents": lambda: student.make_bank(vae_folder, out / "bank.safetensors"),
        "light": lambda: light.train(out / "light", vae_folder, light_folder, **given),
        "student": lambda: student.train(out / "student", base, vae_folder, start=start, **given),
        "decoder": lambda: vae.polish(out / "decoder", vae_folder, **given),
        "distill": lambda: student.distill(out / "distill", shipped, base, vae_folder, **given),
        "teacher": lambda: teacher.train(
            out / "teacher", vae_folder, light_folder, shipped, weights / "teacher", start=start, **given
        ),
        "chat": lambda: chat.train(
            out / "chat", vae_folder, shipped, start or weights / "teacher", weights / "chat", **given
        ),
    }
    stages[stage]()


def _worker(rank: int, processes: int, port: int, stage: str, out: Path, steps: int | None, start: Path | None) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes)
    run(stage, out, steps, start)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the embedded models on the sprite world.")
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--out", type=Path, default=Path("runs/train"))
    parser.add_argument("--steps", type=int, help="instead of the stage's own number of steps")
    parser.add_argument(
        "--processes", type=int, default=1, help="processes that share the batch (vae, decoder, teacher, chat)"
    )
    parser.add_argument(
        "--start", type=Path, help="weights to go on from: a reasoner's (student) or a teacher's folder"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    for stage in STAGES if args.stage == "all" else (args.stage,):
        if args.processes > 1 and stage in SHARED:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            torch.multiprocessing.spawn(
                _worker, (args.processes, port, stage, args.out, args.steps, args.start), nprocs=args.processes
            )
        else:
            run(stage, args.out, args.steps, args.start)


if __name__ == "__main__":
    main()
