"""Weights & Biases: one run per sample, never in the way.

Offline runs lie in the run folder; ``wandb sync runs/x/wandb/offline-*`` uploads them later.
"""

from __future__ import annotations

import dataclasses
import netrc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ttopt.config.settings import FitSettings, to_dict
from ttopt.errors import UserError, brief
from ttopt.record.result import Result

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

SECONDS_TO_CONNECT = 20.0
SECONDS_TO_FINISH = 120.0

_no_connection: list[bool] = []  # filled by the first failure, so that not every sample waits for another one


def wandb_mode(wanted: str) -> str:
    """ "auto" becomes what WANDB_MODE says, else "online" with a W&B key and "offline" without."""
    if wanted != "auto":
        return wanted
    if "WANDB_MODE" in os.environ:
        mode = os.environ["WANDB_MODE"]
        return mode if mode in {"online", "disabled"} else "offline"
    return "online" if _has_key() else "offline"


def _has_key() -> bool:
    """Whether wandb would find a key for the server that it would ask: W&B's own, or one of WANDB_BASE_URL."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    places = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]  # as wandb looks for it
    for place in (Path(name).expanduser() for name in places if name):
        try:
            if place.is_file() and host and netrc.netrc(place).hosts.get(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def start_early(settings: FitSettings) -> None:
    """Starts W&B's own process in the background: that takes a second or two, in which the models are loaded."""
    if wandb_mode(settings.logging.wandb) != "disabled":
        threading.Thread(target=_start_service, daemon=True).start()


def _start_service() -> None:
    with suppress(Exception):  # what is wrong is said when the first run starts
        import wandb

        wandb.setup()


@contextmanager
def wandb_run(
    settings: FitSettings, name: str, folder: Path, note: Callable[[str], None] = print
) -> Iterator[WandbLogger | None]:
    """A Lightning logger on a W&B run of its own, finished on leaving; None if W&B is disabled.

    Without a connection this run and all later ones go offline, which ``note`` is told; W&B never ends the work.
    """
    mode = wandb_mode(settings.logging.wandb)
    if mode == "online" and _no_connection:
        mode = "offline"
    if mode == "disabled":
        yield None
        return
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    group, job_type = _group(folder)

    def start(mode: Any) -> Any:
        return wandb.init(
            project=settings.logging.project,
            name=name,
            group=group,
            job_type=job_type,
            config=to_dict(settings),
            dir=folder,
            mode=mode,
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=SECONDS_TO_CONNECT,
                finish_timeout=SECONDS_TO_FINISH,
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
            ),
        )

    try:
        run = start(mode)
    except Exception as error:  # wandb raises many unrelated types, all of which mean: no connection
        if mode == "offline":
            raise UserError(f"W&B cannot write its run ({brief(error)}); give --logging.wandb disabled") from error
        note(f"W&B cannot be reached ({type(error).__name__}); runs stay in {folder / 'wandb'}, see wandb sync")
        _no_connection.append(True)
        run = start("offline")
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step")
    try:
        yield WandbLogger(experiment=run)
    finally:
        run.finish()


def _group(folder: Path) -> tuple[str, str | None]:
    """Group and type of job: a run's samples form one group; a comparison's too, with the method as type of job."""
    folder = folder.resolve()
    if folder.parent.name == "methods":
        return folder.parent.parent.name, folder.name
    return folder.name, None


def log_result(logger: WandbLogger | None, result: Result, folder: Path) -> None:
    """The videos, handed over as files, and the numbers of result.json as the run's summary."""
    if logger is None:
        return
    import wandb

    run = logger.experiment
    videos = {name: folder / f"{name}.mp4" for name in ("base", "video")}
    run.log({name: wandb.Video(str(path), format="mp4") for name, path in videos.items() if path.exists()})
    numbers = dataclasses.asdict(result)
    run.summary.update({key: numbers[key] for key in ("method", "accepted", "stop", "score", "cost")})
    if numbers["optimization"] is not None:
        run.summary.update(numbers["optimization"])
