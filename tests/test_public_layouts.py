"""Public weights as they lie on the hub, rebuilt in small, and ttopt fit on them with the shipped configurations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bad_input import Capture
from conftest import GOAL, PROCESS
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import tiny_reasoner_folder, tiny_two_experts_folder
from tiny_teacher import tiny_teacher_folder
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from ttopt.__main__ import main
from ttopt.models.reasoner import LightDecoder, LightDecoderConfig
from ttopt.models.reasoner.wan_names import original_name

WEIGHTS = "diffusion_pytorch_model.safetensors"


def shards(folder: Path, stem: str) -> None:
    """A file of weights becomes two, with an index."""
    state = load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    names, places = sorted(state), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-{number:05d}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def byte_fallback(folder: Path) -> None:
    """UMT5's kind of tokenizer, which spells in bytes what it has no word for, and a text encoder for it."""
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁the", -1.0), ("▁red", -1.0), ("▁", -2.0)]
    words += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    backend = Tokenizer(tokenizer_models.Unigram(words, unk_id=2, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **special).save_pretrained(
        folder / "tokenizer"
    )
    config = UMT5Config(vocab_size=len(words), d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")


def older_config(folder: Path) -> None:
    """A teacher's config.json as transformers 4.57 wrote it."""
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    for part in (config, text, config["vision_config"]):
        part["torch_dtype"] = part.pop("dtype", "float32")
    config["transformers_version"] = "4.57.0"
    (folder / "config.json").write_text(json.dumps(config))


def lora(file: Path, transformer: Path) -> None:
    """In original names with alphas, as LightX2V and Kijai publish theirs."""
    state, halves = load_file(transformer / WEIGHTS), {}
    for name in (name for name in state if name.startswith("blocks.") and name.endswith("to_q.weight")):
        layer = f"diffusion_model.{original_name(name.removesuffix('.weight'))}"
        halves[f"{layer}.lora_down.weight"] = torch.full((2, state[name].shape[1]), 0.01)
        halves[f"{layer}.lora_up.weight"] = torch.full((state[name].shape[0], 2), 0.01)
        halves[f"{layer}.alpha"] = torch.tensor(1.0)
    save_file(halves, file)


def wan22_5b(folder: Path) -> list[str]:
    """Shards with indices, Turbo as one file in original names with a LoRA on top, TAEHV as .pth."""
    model = tiny_reasoner_folder(folder / "model")
    byte_fallback(model)
    state = load_file(model / "transformer" / WEIGHTS)
    save_file({original_name(name): value.half() for name, value in state.items()}, folder / "turbo.safetensors")
    lora(folder / "lora.safetensors", model / "transformer")
    shards(model / "transformer", "diffusion_pytorch_model")
    shards(model / "text_encoder", "model")
    index = {"_class_name": "WanPipeline", "transformer_2": [None, None], "expand_timesteps": True}
    (model / "model_index.json").write_text(json.dumps(index))
    torch.save(LightDecoder(LightDecoderConfig((8, 6, 4, 4), 16, 1)).state_dict(), folder / "taew2_2.pth")
    return ["--decoder.model", "taew2_2.pth", "--reasoner.transformer", "turbo.safetensors",
            "--reasoner.loras", "[{file: lora.safetensors, strength: 0.5}]", "--adapter.blocks", "all"]  # fmt: skip


def wan22_14b(folder: Path) -> list[str]:
    """Two experts of 36 channels, a LoRA for each, taew2_1."""
    model = tiny_two_experts_folder(folder / "model")
    for part, name in (("transformer", "high"), ("transformer_2", "low")):
        lora(folder / f"{name}.safetensors", model / part)
    light = LightDecoder(LightDecoderConfig((8, 6, 4, 4), 16, 1))
    save_file(light.state_dict(), folder / "taew2_1.safetensors")
    return ["--decoder.model", "taew2_1.safetensors", "--reasoner.loras", "[{file: high.safetensors}]",
            "--reasoner.low_noise_loras", "[{file: low.safetensors}]", "--adapter.blocks", "1-2"]  # fmt: skip


@pytest.mark.parametrize("layout", [wan22_5b, wan22_14b])
def test_fit_runs_on_public_layouts(
    layout: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    own = layout(tmp_path)  # type: ignore[operator]
    older_config(tiny_teacher_folder(tmp_path / "teacher"))
    Image.new("RGB", (48, 48), "red").save("first.png")
    prompt = "the red 球 moves" if layout is wan22_5b else "move the red square to the pad"
    assert main([
        *("fit", "--config", layout.__name__, "--run_dir", "run", "--sample.prompt", prompt, *own),  # type: ignore[attr-defined]
        *("--sample.image", "first.png", "--sample.frames", "9", "--sample.fps", "8", "--sample.height", "48"),
        *("--sample.width", "48", "--sample.queries.goal", GOAL, "--sample.queries.process", json.dumps(PROCESS)),
        *("--reasoner.model", "model", "--reasoner.device", "cpu", "--reasoner.activation_checkpointing", "none"),
        *("--reasoner.dtype", "float32", "--teacher.dtype", "float32", "--teacher.device", "cpu"),
        *("--teacher.model", "teacher", "--teacher.frames", "3", "--optimization.steps", "1", "--adapter.rank", "2"),
        *("--logging.wandb", "disabled"),
    ]) == 0, capsys.readouterr().err  # fmt: skip
    assert all((tmp_path / f"run/samples/sample/{name}").is_file() for name in ("base.mp4", "video.mp4", "result.json"))
    found = json.loads((tmp_path / "run/samples/sample/result.json").read_text())
    assert found["optimization"]["steps"] == 1 and found["stop"] == "all steps used"
