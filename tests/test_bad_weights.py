"""Weights and models that are wrong, one line a case."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_input import Capture, contents, one_sentence, refused
from conftest import GOAL, PROCESS
from safetensors.torch import load as tensors
from safetensors.torch import save_file
from tiny import tiny_transformer

from ttopt.errors import UserError
from ttopt.models.reasoner import LightDecoder
from ttopt.models.reasoner.folders import lora_file
from ttopt.models.reasoner.loading import load_networks
from ttopt.models.reasoner.lora import LoraFile
from ttopt.models.teacher import Teacher


def gone(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def noise(file: Path) -> None:
    file.write_bytes(b"\x80\x02" + bytes(range(256)) * 8)


def pickled(file: Path) -> None:
    """What older downloads hold instead of safetensors."""
    torch.save(tensors(file.read_bytes()), file.with_name("pytorch_model.bin"))
    torch.save(tensors(file.read_bytes()), file.with_name("diffusion_pytorch_model.bin"))
    file.unlink()


def disguised(file: Path) -> None:
    """A pickle that is called safetensors."""
    torch.save(tensors(file.read_bytes()), file)


def lacking(file: Path) -> None:
    save_file(dict(list(tensors(file.read_bytes()).items())[1:]), file, {"format": "pt"})


def reshaped(file: Path) -> None:
    save_file(
        {name: value[..., :1].contiguous() for name, value in tensors(file.read_bytes()).items()},
        file,
        {"format": "pt"},
    )


def foreign(file: Path) -> None:
    save_file({"weight": torch.zeros(2)}, file, {"format": "pt"})


def wider(file: Path) -> None:
    """A LoRA for a model of more blocks."""
    state = tensors(file.read_bytes())
    save_file(state | {name.replace("blocks.0", "blocks.7"): value.clone() for name, value in state.items()}, file)


def not_a_number(file: Path) -> None:
    state = tensors(file.read_bytes())
    name = max(state, key=lambda name: state[name].numel())
    state[name].view(-1)[-1] = float("nan")
    save_file(state, file, {"format": "pt"})


def infinite(file: Path) -> None:
    state = tensors(file.read_bytes())
    state[min(state)].view(-1)[0] = float("inf")
    save_file(state, file, {"format": "pt"})


def half_the_shards(file: Path) -> None:
    stem = file.name.removesuffix(".safetensors")
    parts = [f"{stem}-0000{number}-of-00002.safetensors" for number in (1, 2)]
    state = tensors(file.read_bytes())
    (file.parent / f"{file.name}.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {name: parts[i % 2] for i, name in enumerate(state)}})
    )
    save_file(dict(list(state.items())[::2]), file.with_name(parts[0]), {"format": "pt"})
    file.unlink()


def no_json(file: Path) -> None:
    file.write_text("{")


def a_list(file: Path) -> None:
    file.write_text("[]")


def key(name: str, value: Any) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))

    change.__name__ = f"{name}={value}"
    return change


TRANSFORMER, VAE = (f"{part}/diffusion_pytorch_model.safetensors" for part in ("transformer", "vae"))
TEXT, LIGHT = "text_encoder/model.safetensors", "model.safetensors"
WEIGHTS: list[tuple[str, str, Callable[[Path], None], str]] = [  # which model, which file, what is wrong with it
    ("reasoner", TRANSFORMER, gone, "transformer/diffusion_pytorch_model.safetensors is missing; is the download"),
    ("reasoner", TRANSFORMER, empty, "reasoner: .. transformer cannot be loaded .. fetch it again"),
    ("reasoner", TRANSFORMER, cut, "reasoner: .. transformer cannot be loaded .. fetch it again"),
    ("reasoner", TRANSFORMER, noise, "reasoner: .. transformer cannot be loaded .. fetch it again"),
    ("reasoner", TRANSFORMER, pickled, "transformer/diffusion_pytorch_model.safetensors is missing"),
    ("reasoner", TRANSFORMER, disguised, "reasoner: .. transformer cannot be loaded .. fetch it again"),
    ("reasoner", TRANSFORMER, lacking, "reasoner: .. transformer .. is missing from the weights; fetch them again"),
    ("reasoner", TRANSFORMER, reshaped, "reasoner: .. transformer cannot be loaded .. fetch it again"),
    ("reasoner", TRANSFORMER, foreign, "reasoner: .. transformer .. is missing from the weights; fetch them again"),
    ("reasoner", TRANSFORMER, not_a_number, "transformer/diffusion_pytorch_model.safetensors: .. holds NaN or Inf"),
    ("reasoner", TRANSFORMER, half_the_shards, "diffusion_pytorch_model-00002-of-00002.safetensors is missing; is the"),
    ("reasoner", "transformer/config.json", gone, "transformer/config.json is missing; give a folder in the diffusers"),
    ("reasoner", "transformer/config.json", empty, "reasoner: .. transformer cannot be loaded .. fetch it again"),
    ("reasoner", "transformer/config.json", no_json, "reasoner: .. transformer cannot be loaded .. fetch it again"),
    ("reasoner", "transformer/config.json", a_list, "reasoner: .. transformer cannot be loaded .. fetch it again"),
    ("reasoner", "transformer/config.json", key("num_layers", 99), "is missing from the weights; fetch them again"),
    ("reasoner", "transformer/config.json", key("num_layers", "x"), "transformer cannot be loaded .. fetch it again"),
    ("reasoner", "transformer/config.json", key("in_channels", 7), "takes 7 channels and gives 16 but the VAE"),
    ("reasoner", "transformer/config.json", key("_class_name", "UNet2DModel"), "is a UNet2DModel, not a WanTransf"),
    ("reasoner", "transformer/config.json", key("image_dim", 1280), "sees the image through CLIP too, as Wan2.1-I2V"),
    ("reasoner", VAE, gone, "vae/diffusion_pytorch_model.safetensors is missing; is the download complete?"),
    ("reasoner", VAE, cut, "reasoner: .. vae cannot be loaded .. fetch it again"),
    ("reasoner", VAE, pickled, "vae/diffusion_pytorch_model.safetensors is missing"),
    ("reasoner", VAE, lacking, "reasoner: .. vae .. is missing from the weights; fetch them again"),
    ("reasoner", VAE, reshaped, "reasoner: .. vae cannot be loaded .. fetch it again"),
    ("reasoner", VAE, infinite, "vae/diffusion_pytorch_model.safetensors: .. holds NaN or Inf; fetch it again"),
    ("reasoner", "vae/config.json", no_json, "reasoner: .. vae cannot be loaded .. fetch it again"),
    ("reasoner", "vae/config.json", key("z_dim", 15), "config.json: latents_mean has 16 numbers, not 15; fetch"),
    ("reasoner", "vae/config.json", key("latents_mean", [0.0]), "vae/config.json: latents_mean has 1 numbers .. fetch"),
    ("reasoner", "vae/config.json", key("_class_name", "AutoencoderKL"), "is a AutoencoderKL, not a AutoencoderKLWan"),
    ("reasoner", TEXT, gone, "text_encoder/model.safetensors is missing; is the download complete?"),
    ("reasoner", TEXT, cut, "reasoner: .. text_encoder cannot be loaded .. fetch it again"),
    ("reasoner", TEXT, pickled, "text_encoder/model.safetensors is missing"),
    ("reasoner", TEXT, lacking, "reasoner: .. text_encoder .. is missing from the weights; fetch them again"),
    ("reasoner", TEXT, reshaped, "reasoner: .. text_encoder cannot be loaded .. fetch it again"),
    ("reasoner", TEXT, not_a_number, "text_encoder/model.safetensors: .. holds NaN or Inf; fetch it again"),
    ("reasoner", "text_encoder/config.json", no_json, "reasoner: .. text_encoder cannot be loaded .. fetch it again"),
    ("reasoner", "text_encoder/config.json", key("model_type", "bert"), "is a bert, not a UMT5EncoderModel; give"),
    ("reasoner", "tokenizer/tokenizer.json", gone, "tokenizer/tokenizer.json is missing; is the download complete?"),
    ("reasoner", "tokenizer/tokenizer.json", no_json, "reasoner: .. tokenizer cannot be loaded .. fetch it again"),
    ("reasoner", "tokenizer/tokenizer.json", a_list, "reasoner: .. tokenizer cannot be loaded .. fetch it again"),
    ("reasoner", "tokenizer/tokenizer_config.json", no_json, "reasoner: .. tokenizer cannot be loaded .. fetch it"),
    ("light", LIGHT, gone, "model.safetensors is missing; give a folder made by LightDecoder.save or a taew file"),
    ("light", LIGHT, empty, "model.safetensors does not hold a TAEHV decoder"),
    ("light", LIGHT, cut, "model.safetensors does not hold a TAEHV decoder"),
    ("light", LIGHT, noise, "model.safetensors does not hold a TAEHV decoder"),
    ("light", LIGHT, pickled, "model.safetensors is missing"),
    ("light", LIGHT, disguised, "model.safetensors does not hold a TAEHV decoder"),
    ("light", LIGHT, lacking, "model.safetensors does not fit its sizes"),
    ("light", LIGHT, reshaped, "model.safetensors does not fit its sizes"),
    ("light", LIGHT, not_a_number, "model.safetensors: .. holds NaN or Inf; fetch it again"),
    ("light", LIGHT, foreign, "model.safetensors does not fit its sizes"),
    ("light", "config.json", gone, "config.json is missing; it holds the sizes of the weights beside it"),
    ("light", "config.json", no_json, "does not hold a TAEHV decoder"),
    ("light", "config.json", a_list, "does not hold a TAEHV decoder"),
    ("light", "config.json", key("chanels", 3), "config.json does not hold the sizes of a TAEHV decoder; fetch it"),
    ("light", "config.json", key("channels", [8, 8]), "config.json does not hold the sizes of a TAEHV decoder"),
    ("light", "config.json", key("patch_size", -1), "config.json does not hold the sizes of a TAEHV decoder"),
    ("light", "config.json", key("time_upscale", "no"), "config.json does not hold the sizes of a TAEHV decoder"),
    ("teacher", LIGHT, gone, "teacher .. model.safetensors .. fetch it again"),
    ("teacher", LIGHT, empty, "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", LIGHT, cut, "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", LIGHT, pickled, "teacher .. model.safetensors .. fetch it again"),
    ("teacher", LIGHT, disguised, "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", LIGHT, lacking, "is missing from the weights; fetch them again"),
    ("teacher", LIGHT, reshaped, "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", LIGHT, foreign, "is missing from the weights; fetch them again"),
    ("teacher", LIGHT, infinite, "model.safetensors: .. holds NaN or Inf; fetch it again"),
    ("teacher", "config.json", gone, "config.json is missing; give a Qwen3-VL model in transformers' layout"),
    ("teacher", "config.json", no_json, "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", "config.json", a_list, "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", "config.json", key("model_type", None), "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", "config.json", key("model_type", "bert"), "is a 'bert' model, which cannot be a teacher here; use one"),
    ("teacher", "config.json", key("model_type", "none"), "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", "config.json", key("vision_config", 5), "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", "tokenizer.json", gone, "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", "tokenizer.json", no_json, "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", "ttopt_prompts.json", no_json, "ttopt_prompts.json: .. it must be a JSON object with any of: question"),
    ("teacher", "ttopt_prompts.json", key("queries", "write"), "ttopt_prompts.json: {prompt} is missing; it must be"),
    ("lora", "lora.safetensors", gone, "no LoRA .. lora.safetensors; give a safetensors file, or owner/name/file"),
    ("lora", "lora.safetensors", empty, "lora.safetensors does not fit the model"),
    ("lora", "lora.safetensors", cut, "lora.safetensors does not fit the model"),
    ("lora", "lora.safetensors", disguised, "lora.safetensors does not fit the model"),
    ("lora", "lora.safetensors", foreign, "lora.safetensors does not fit the model"),
    ("lora", "lora.safetensors", wider, "does not fit the model (the model has no layer for .. blocks.7.attn1.to_q"),
    ("lora", "lora.safetensors", reshaped, "lora.safetensors does not fit the model"),
    ("lora", "lora.safetensors", infinite, "(transformer.blocks.0.attn1.to_q.lora_A.weight holds NaN or Inf); give"),
]  # fmt: skip


def load_part(part: str, folder: Path) -> None:
    if part == "reasoner":
        load_networks(folder, None, "float32", "float32", "cpu")
    elif part == "light":
        LightDecoder.load(folder)
    elif part == "teacher":
        Teacher.load(folder)
    else:
        shapes = {name: tuple(weight.shape) for name, weight in tiny_transformer().named_parameters()}
        LoraFile(lora_file(str(folder / "lora.safetensors")), 1.0, shapes)


@pytest.mark.parametrize(
    "part, file, damage, expected",
    WEIGHTS,
    ids=[f"{part} {file} {damage.__name__}" for part, file, damage, _ in WEIGHTS],
)
def test_weights(
    part: str, file: str, damage: Callable[[Path], None], expected: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    if part == "lora":
        folder.mkdir()
        name = "transformer.blocks.0.attn1.to_q.lora_{}.weight"
        save_file({name.format("A"): torch.zeros(2, 24), name.format("B"): torch.zeros(24, 2)}, folder / file)
    else:
        shutil.copytree(folders[part], folder)
    damage(folder / file)
    with pytest.raises(UserError) as error:
        load_part(part, folder)
    one_sentence(" ".join(str(error.value).split()), expected)


WRONG_MODELS = [  # what is typed after "ttopt fit", with tiny models
    ("--reasoner.model nowhere", "reasoner: no folder nowhere; give a folder in the diffusers layout or a hub id"),
    ("--reasoner.model empty", "empty/transformer/config.json is missing; give a folder in the diffusers layout"),
    ("--reasoner.transformer nowhere", "reasoner: no folder nowhere; give a folder"),
    ("--reasoner.transformer weights/4step", "reasoner: no folder weights/4step; give a folder"),
    ("--reasoner.model owner/none --teacher.model run/none", "no teacher at run/none: not a local folder; give one"),
    ("--reasoner.model owner/none --decoder.model nowhere", "light decoder: nowhere is missing; give a folder made by"),
    ("--reasoner.model owner/none --reasoner.loras '[{file: no.safetensors}]'", "reasoner: no LoRA no.safetensors; g"),
    ("--reasoner.model owner/none --reasoner.transformer empty", "empty/transformer/config.json is missing; give a"),
    ("--reasoner.loras '[{file: no.safetensors}]'", "reasoner: no LoRA no.safetensors; give a safetensors file"),
    ("--reasoner.low_noise_loras '[{file: no.safetensors}]'", "has no second expert for the LoRA no.safetensors; leav"),
    ("--reasoner.low_noise_transformer empty", "empty/transformer/config.json is missing; give a folder in the diffu"),
    ("--reasoner.loras '[{file: empty, strength: .inf}]'", "reasoner.loras.0.strength is inf; give a finite number"),
    ("--reasoner.lora x.safetensors", "--reasoner.lora: there is no such setting; the nearest is --reasoner.loras"),
    ("--reasoner.device toaster", "reasoner.device is 'toaster', which is no device here; give auto, cpu"),
    ("--reasoner.device cuda:99", "reasoner.device is cuda:99, but torch finds .. GPUs; give cpu or auto"),
    ("--teacher.device mps", "teacher.device is 'mps', which is no device here; give auto, cpu"),
    ("--reasoner.device meta", "reasoner.device is 'meta', which is no device here; give auto, cpu"),
    ("--teacher.device cpu:x", "teacher.device is 'cpu:x', which is no device here; give auto"),
    ("--reasoner.activation_checkpointing half",
     "reasoner.activation_checkpointing is 'half'; give all, none, or a range within 0-2 such as '0-1'"),
    ("--reasoner.attention best", "reasoner.attention best .. give native"),
    ("--reasoner.attention flash_hub", "reasoner.attention flash_hub would run code from the hub; give native"),
    ("--adapter.blocks 2-1", "adapter blocks '2-1' must be 'all' or a range within 0-2, such as '0-1'"),
    ("--decoder.kind light --decoder.model nowhere", "light decoder: nowhere is missing; give a folder made by"),
    ("--decoder.kind light --decoder.shrink 3", "decoder.shrink is 3, but this decoder doubles only 2 times; give tha"),
    ("--teacher.model empty", "empty: config.json is missing; give a Qwen3-VL model in transformers' layout"),
    ("--teacher.answers '[zebra]'", "the teacher's vocabulary lacks a word of 'zebra'; use words it knows"),
]  # fmt: skip


@pytest.fixture
def tiny(folders: dict[str, Path]) -> list[str]:
    return [
        *("--reasoner.model", str(folders["reasoner"]), "--teacher.model", str(folders["teacher"]), "--limit", "1"),
        *("--decoder.kind", "light", "--decoder.model", str(folders["light"]), "--run-dir", "run"),
        *("--sample.queries.goal", GOAL, "--sample.queries.process", json.dumps(PROCESS)),
    ]


@pytest.mark.parametrize("typed, expected", WRONG_MODELS, ids=[typed for typed, _ in WRONG_MODELS])
def test_models(
    typed: str, expected: str, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    refused(["fit", *tiny, *shlex.split(typed)], expected, capsys)
    assert contents(tmp_path) <= {"empty", "run", "run/config.yaml", "run/samples", "run/.lock"}
