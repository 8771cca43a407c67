"""ttopt fetch against a hub in memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from bad_input import Capture, refused

from ttopt.__main__ import main

WEIGHTS = "diffusion_pytorch_model.safetensors"
HUB = {  # repository: license, files with their sizes
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": (
        "apache-2.0",
        {"model_index.json": 1, f"transformer/{WEIGHTS}": 10e9, "transformer/config.json": 1, f"vae/{WEIGHTS}": 3e9,
         "vae/config.json": 1, "text_encoder/model.safetensors": 11e9, "tokenizer/tokenizer.json": 1, "a.mp4": 5e9},
    ),
    "yetter-ai/Wan2.2-TI2V-5B-Turbo-Diffusers": (
        "cc-by-nc-sa-4.0", {f"transformer/{WEIGHTS}": 10e9, "transformer/config.json": 1, f"vae/{WEIGHTS}": 3e9},
    ),
    "lightx2v/Autoencoders": ("apache-2.0", {"taew2_2.safetensors": 0.1e9, "other.safetensors": 1e9}),
    "Qwen/Qwen3-VL-4B-Instruct": ("apache-2.0", {"config.json": 1, "model.safetensors": 9e9}),
}  # fmt: skip


class GatedRepoError(Exception):
    pass


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    def model_info(_: Any, repository: str, files_metadata: bool = False) -> Any:
        if repository == "meta/gated":
            raise GatedRepoError("401")
        terms, files = HUB[repository]
        siblings = [SimpleNamespace(rfilename=name, size=int(size)) for name, size in files.items()]
        return SimpleNamespace(siblings=siblings, card_data={"license": terms})

    done: list[tuple[str, list[str]]] = []

    def snapshot_download(repository: str, allow_patterns: list[str]) -> str:
        done.append((repository, allow_patterns))
        return "/cache"

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return done


def test_what_a_configuration_needs_is_listed_and_downloaded(downloads: Any, capsys: Capture) -> None:
    assert main(["fetch", "--config", "wan22_5b", "--list"]) == 0 and downloads == []
    said = capsys.readouterr().out
    for line in (
        "reasoner.model                   Wan-AI/Wan2.2-TI2V-5B-Diffusers (6 files): 14.0 GB, license apache-2.0",
        "yetter-ai/Wan2.2-TI2V-5B-Turbo-Diffusers (2 files): 10.0 GB, license cc-by-nc-sa-4.0",
        "lightx2v/Autoencoders (taew2_2.safetensors): 0.1 GB",
        "Qwen/Qwen3-VL-4B-Instruct (2 files): 9.0 GB",
        "4 downloads, 33.1 GB",
    ):
        assert line in said, said
    assert main(["fetch", "--config", "wan22_5b"]) == 0
    assert [name for name, _ in downloads] == [*HUB] and downloads[2][1] == ["taew2_2.safetensors"]


def test_all_that_is_missing_is_said_at_once(downloads: Any, capsys: Capture, tmp_path: Path) -> None:
    wrong = ["--reasoner.model", "meta/gated", "--teacher.model", "nowhere", "--decoder.model", "Qwen/Nothing/a.pth"]
    expected = (
        "reasoner.model: meta/gated needs a token: accept its terms on https://huggingface.co/meta/gated and set "
        "HF_TOKEN; .. decoder.model: the hub does not give Qwen/Nothing .. teacher.model: nowhere is not here"
    )
    refused(["fetch", "--config", "wan22_5b", *wrong], expected, capsys)
    refused(["fetch", "--config", "wan22_5b", "--decoder.model", "lightx2v/Autoencoders/b.pth"], "has no b.pth", capsys)
    assert downloads == []


def test_embedded_models_need_nothing(downloads: Any, capsys: Capture) -> None:
    assert main(["fetch"]) == 0 and downloads == []
    assert capsys.readouterr().out.startswith("0 downloads, 0.0 GB")
