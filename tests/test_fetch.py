"""ttopt fetch and plan against a hub of tiny models, asked by the real client."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from bad_input import Capture, refused
from hub import Hub, serving
from safetensors.torch import load_file, save_file
from tiny import tiny_reasoner_folder
from tiny_teacher import tiny_teacher_folder

from ttopt.__main__ import main
from ttopt.config.parsing import parse_fit
from ttopt.models.reasoner import LightDecoder, LightDecoderConfig
from ttopt.planning.plan import files as plan_files

WEIGHTS = "diffusion_pytorch_model.safetensors"
ARGUMENTS = [
    *("--reasoner.model", "wan/tiny", "--reasoner.transformer", "turbo/tiny", "--teacher.model", "qwen/tiny"),
    *("--reasoner.loras", "[{file: loras/tiny/some/lora.safetensors}]", "--decoder.kind", "light"),
    *("--decoder.model", "tae/tiny/taew.safetensors"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    tiny_reasoner_folder(root / "wan/tiny")
    shutil.copytree(root / "wan/tiny/transformer", root / "turbo/tiny/transformer")
    tiny_teacher_folder(root / "qwen/tiny")
    for folder in ("loras/tiny/some", "tae/tiny"):
        (root / folder).mkdir(parents=True)
    name = "blocks.0.attn1.to_q"
    halves = {f"{name}.lora_A.weight": torch.ones(2, 24), f"{name}.lora_B.weight": torch.ones(24, 2)}
    save_file(halves, root / "loras/tiny/some/lora.safetensors")
    save_file(LightDecoder(LightDecoderConfig((8, 6, 4, 4), 16, 1)).state_dict(), root / "tae/tiny/taew.safetensors")
    return root


@pytest.fixture
def hub(models: Path, tmp_path: Path) -> Hub:
    """A copy that a test may damage."""
    shutil.copytree(models, tmp_path / "hub")
    return Hub(tmp_path / "hub", gated="meta/gated")


def large(hub: Hub) -> set[str]:
    """The weights that were sent as a whole."""
    return {
        file for file, size in hub.sent.items() if file.endswith(KINDS) and size >= (hub.root / file).stat().st_size
    }


KINDS = (".safetensors", ".pth")


def test_files_are_listed_then_checked_then_loaded_once(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (hub.root / "wan/tiny/a.mp4").write_bytes(bytes(999))  # not needed
    cache = tmp_path / "cache"
    with serving(hub, cache, monkeypatch):
        assert main(["fetch", *ARGUMENTS, "--list"]) == 0
        said = capsys.readouterr().out
        for line in (
            "reasoner.model                   wan/tiny (",
            "turbo/tiny (2 files): 0.0 GB, license apache-2.0",
            "loras/tiny (some/lora.safetensors): 0.0 GB",
            "5 downloads, 0.0 GB",
        ):
            assert line in said, said
        assert not list(cache.rglob("diffusion*.safetensors")) and not list(cache.rglob("model.safetensors"))
        settings = parse_fit(ARGUMENTS)
        expected = "not here yet: reasoner.model wan/tiny, reasoner.transformer turbo/tiny, reasoner.loras loras/tiny/"
        assert expected in plan_files(settings)
        assert main(["fetch", *ARGUMENTS]) == 0
        names = [file.relative_to(hub.root).as_posix() for file in hub.root.rglob("*") if file.suffix in KINDS]
        assert {name for name in names if name != f"wan/tiny/transformer/{WEIGHTS}"} <= set(hub.sent)
        assert f"wan/tiny/transformer/{WEIGHTS}" not in hub.sent and "wan/tiny/a.mp4" not in hub.sent
        capsys.readouterr()
        hub.sent.clear()
        assert main(["fetch", *ARGUMENTS]) == 0 and not large(hub)
        assert "0 downloads" in capsys.readouterr().out
    assert main(["fetch", *ARGUMENTS]) == 0  # the hub is gone: its cache is enough
    assert "turbo/tiny (2 files): 0.0 GB, in the cache" in capsys.readouterr().out
    assert plan_files(settings) == "files    all here"
    shutil.rmtree(cache / "models--turbo--tiny")
    refused(["fetch", *ARGUMENTS], "the hub does not give turbo/tiny, nor is all of it in its cache", capsys)


def test_all_that_is_missing_is_said_at_once(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    wrong = [*ARGUMENTS, "--reasoner.model", "meta/gated", "--teacher.model", "nowhere"]
    wrong += ["--decoder.model", "tae/tiny/b.pth", "--reasoner.transformer", "Qwen/Nothing"]
    (hub.root / "meta/gated").mkdir(parents=True)
    with serving(hub, tmp_path / "cache", monkeypatch):
        expected = (
            "reasoner.model: meta/gated needs a token: accept its terms on https://huggingface.co/meta/gated and set "
            "HF_TOKEN; reasoner.transformer: the hub does not give Qwen/Nothing .. decoder.model: tae/tiny has no b.pth"
            " .. teacher.model: nowhere is not here"
        )
        refused(["fetch", *wrong], expected, capsys)
        fit = ["fit", "--run_dir", str(tmp_path / "run"), "--teacher.model", "meta/gated"]
        refused(fit, "teacher: there is no folder meta/gated, and meta/gated needs a token: accept its", capsys)
    assert not large(hub)


def of_config(file: str, **values: object) -> object:
    def change(root: Path) -> None:
        found = json.loads((root / file).read_text())
        (root / file).write_text(json.dumps({**found, **values}))

    return change


def shape(file: str, name: str) -> object:
    def change(root: Path) -> None:
        weights = load_file(root / file)
        weights[name] = torch.zeros(5, 5)
        save_file(weights, root / file)

    return change


def half_a_set(root: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (root / "wan/tiny/text_encoder/model.safetensors.index.json").write_text(json.dumps(index))
    (root / "wan/tiny/text_encoder/model.safetensors").rename(
        root / "wan/tiny/text_encoder/model-00001-of-00002.safetensors"
    )


UNFIT = {
    "teacher": (of_config("qwen/tiny/config.json", model_type="llava"), "qwen/tiny is a 'llava' model, which cannot"),
    "clip": (of_config("turbo/tiny/transformer/config.json", image_dim=8), "sees the image through CLIP too"),
    "other class": (
        of_config("wan/tiny/vae/config.json", _class_name="AutoencoderKL"),
        "is a AutoencoderKL, not a AutoencoderKLWan",
    ),
    "other sizes": (
        shape(f"turbo/tiny/transformer/{WEIGHTS}", "proj_out.weight"),
        "reasoner.transformer: turbo/tiny: proj_out.weight is (5, 5) in the weights, but (64, 24) by config.json",
    ),
    "lora": (
        shape("loras/tiny/some/lora.safetensors", "blocks.0.attn1.to_q.lora_A.weight"),
        "reasoner: the LoRA loras/tiny/some/lora.safetensors does not fit the model",
    ),
    "decoder": (
        lambda root: save_file(LightDecoder().state_dict(), root / "tae/tiny/taew.safetensors"),
        "tae/tiny/taew.safetensors decodes latents of 48 channels, but the model's VAE makes 16",
    ),
    "shards": (half_a_set, "wan/tiny lacks text_encoder/model-00002-of-00002.safetensors, which text_encoder/model"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_what_does_not_fit_is_refused_before_weights_are_loaded(
    kind: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    damage, expected = UNFIT[kind]
    damage(hub.root)  # type: ignore[operator]
    with serving(hub, tmp_path / "cache", monkeypatch):
        refused(["fetch", *ARGUMENTS], expected, capsys)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_embedded_models_need_nothing(capsys: Capture) -> None:
    assert main(["fetch"]) == 0
    assert capsys.readouterr().out.startswith("0 downloads, 0.0 GB")
