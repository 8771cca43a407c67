"""Tiny random models on disk, and settings that use them."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest
import torch

from ttopt.config.settings import (
    ChatSettings,
    DecoderSettings,
    FitSettings,
    QuerySettings,
    ReasonerSettings,
    TeacherSettings,
)

GOAL = "is the red cross on the green pad ?"
PROCESS = ["is the blue square whole ?"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a tiny random reasoner, light decoder and teacher."""
    from tiny import tiny_reasoner_folder
    from tiny_teacher import tiny_teacher_folder

    from ttopt.models.reasoner import LightDecoder, LightDecoderConfig

    torch.set_num_threads(1)
    parent = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = LightDecoderConfig((8, 8, 8, 8), latent_channels=16, patch_size=2, space_upscale=(True, True, False))
    LightDecoder(config).save(parent / "light")
    return {
        "reasoner": tiny_reasoner_folder(parent / "reasoner"),
        "teacher": tiny_teacher_folder(parent / "teacher"),
        "light": parent / "light",
    }


@pytest.fixture(scope="session")
def models(folders: dict[str, Path]) -> Any:
    """The tiny models, loaded; every test resets the adapter."""
    from ttopt.models.load import load_models

    return load_models(
        FitSettings(
            reasoner=ReasonerSettings(model=str(folders["reasoner"]), sigmas=[1.0, 0.5]),
            decoder=DecoderSettings(model=str(folders["light"])),
            teacher=TeacherSettings(model=str(folders["teacher"])),
        )
    )


@pytest.fixture
def settings(folders: dict[str, Path]) -> Callable[..., FitSettings]:
    """``settings(optimization={"steps": 2}, ...)``: settings of a run on the tiny models with given queries."""

    def make(**groups: Any) -> FitSettings:
        base = FitSettings()
        wanted: dict[str, dict[str, Any]] = {
            "sample": {"frames": 9, "fps": 8, "height": 48, "width": 48, "queries": QuerySettings(GOAL, PROCESS)},
            "reasoner": {"model": str(folders["reasoner"])},
            "decoder": {"model": str(folders["light"])},
            "teacher": {"model": str(folders["teacher"]), "frames": 9},
            "optimization": {"steps": 3, "lr": 1e-3, "tau": 0.0},
            "logging": {"wandb": "disabled"},
        }
        plain = {}
        for name, value in groups.items():
            if isinstance(value, dict):
                wanted[name] = wanted.get(name, {}) | value
            else:
                plain[name] = value
        made = {name: dataclasses.replace(getattr(base, name), **values) for name, values in wanted.items()}
        return dataclasses.replace(base, **made, **plain)

    return make


@pytest.fixture
def server() -> Iterator[Any]:
    """A chat server that answers as it is told."""
    from fake_server import Server

    made = Server()
    yield made
    made.stop()


@pytest.fixture
def chat(server: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``chat(max_retries=2, ...)``: the model behind that server, whatever proxies the environment has."""
    from fake_server import KEY

    from ttopt.models.chat import OpenAIChat

    monkeypatch.setenv("MY_KEY", KEY)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def make(**settings: Any) -> OpenAIChat:
        given = {"model": "m", "base_url": server.url, "key_env": "MY_KEY", "timeout": 5.0, "max_retries": 0}
        return OpenAIChat(ChatSettings("openai", **(given | settings)))

    return make


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, where no model can be loaded: what is tested must be noticed before."""

    from ttopt.run import run as engine

    def load(settings: FitSettings) -> Any:
        raise AssertionError("not noticed before the models were loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(engine, "load_models", load)
    return tmp_path
