"""What ``ttopt app`` can be told besides settings. Nothing heavy is imported, so that mistakes answer at once."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass

from ttopt.config.parsing import parse_fit
from ttopt.config.settings import FitSettings
from ttopt.errors import Arguments, UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PASSWORD = "TTOPT_APP_PASSWORD"  # in the environment; the user is called ttopt
SHORTEST = 8  # characters of a password


@dataclass(frozen=True)
class AppSettings:
    """Where the app listens, and what its form starts with."""

    settings: FitSettings
    host: str
    port: int
    folder: str
    waiting: int
    upload_mb: int
    password: str | None = None  # None: none is asked for


def app_parser() -> Arguments:
    """What the app can be told besides settings."""
    parser = Arguments(
        "app",
        "A page on which samples are optimized and looked at.",
        "All settings of ttopt fit may follow, e.g. --config wan22_5b: what the form starts with.",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help=f"where it listens; beyond this machine only with a password in ${PASSWORD}"
    )
    parser.add_argument("--port", type=int, default=7860, help="0: any that is free")
    parser.add_argument("--folder", default="runs", help="folder of the runs that can be opened, and of new ones")
    parser.add_argument("--waiting", type=int, default=20, help="most people who wait for the device")
    parser.add_argument("--upload-mb", type=int, default=20, help="largest image that can be uploaded, in MB")
    return parser


def parse_app(args: Sequence[str]) -> AppSettings:
    """The app's own arguments, and the settings its form starts with. Raises UserError."""
    own, rest = app_parser().parse_known_args(list(args))
    settings = parse_fit(rest)
    _check(own, settings)
    password = os.environ.get(PASSWORD) or None
    if own.host not in LOOPBACK and password is None:
        raise UserError(
            f"--host {own.host} lets others in, but there is no password; set {PASSWORD} in the environment, or leave "
            "--host out"
        )
    if password is not None and len(password) < SHORTEST:
        raise UserError(f"the password in {PASSWORD} is too short; give {SHORTEST} characters or more")
    return AppSettings(settings, own.host, own.port, own.folder, own.waiting, own.upload_mb, password)


def _check(own: argparse.Namespace, settings: FitSettings) -> None:
    for name, value, most in (("waiting", own.waiting, 1000), ("upload-mb", own.upload_mb, 1000)):
        if not 1 <= value <= most:
            raise UserError(f"--{name} is {value}; give 1 to {most}")
    if not 0 <= own.port <= 65535:
        raise UserError(f"--port is {own.port}; give 0 to 65535")
    for given, name in (
        (settings.run_dir is not None, "--run-dir"), (settings.engine != "in_process", "--engine"),
        (settings.reasoner.shard, "--reasoner.shard"),
    ):  # fmt: skip
        if given:
            raise UserError(
                f"{name} is nothing for the app, which makes a folder for every run in this process; leave it out"
            )
