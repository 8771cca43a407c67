"""Every model type that can be a teacher, against transformers' own forward from a processor's inputs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_teacher import SPECIAL, tiny_config, tiny_tokenizer
from tokenizers import AddedToken
from torch import Tensor
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.models.reasoner.float8 import to_float8
from ttopt.models.teacher import Prompts, Teacher
from ttopt.models.teacher.vision import Qwen25Vision, SquareVision

FPS, FRAMES = 8, [0, 2, 4, 6, 8]
QUESTIONS = [
    ["is the red cross on the green pad at the end?", "does the blue square stay?", "is the red cross whole?"],
    ["is the end whole?", "does the red cross move to the blue square by the end?", "does the blue square stay?"],
]
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
}


def internvl_tokenizer() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(
        {"extra_special_tokens": SPECIAL[1:2] + SPECIAL[3:] + ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"]}
    )
    tokenizer.add_tokens([AddedToken("Frame", normalized=False)])
    return tokenizer


def qwen25(ids: dict[str, int]) -> Any:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 14,
        "out_hidden_size": 48,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
        "initializer_range": 0.2,
    }
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config={**TEXT, "vocab_size": len(ids), "rope_parameters": rope},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen35(ids: dict[str, int]) -> Any:
    base = tiny_config(tiny_tokenizer()).to_dict()["vision_config"]
    vision = {name: value for name, value in base.items() if name not in ("deepstack_visual_indexes", "model_type")}
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
        "partial_rotary_factor": 1.0,
    }
    text = {
        **TEXT,
        "num_hidden_layers": 4,
        "initializer_range": 0.05,  # larger ones make the recurrence ill-conditioned in float32
        "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
        "vocab_size": len(ids),
        "head_dim": 16,
        "rope_parameters": rope,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    config = Qwen3_5Config(
        vision_config=vision,
        text_config=text,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return Qwen3_5ForConditionalGeneration(config)


def internvl(ids: dict[str, int]) -> Any:
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": [48, 48],
        "patch_size": [8, 8],
        "initializer_range": 0.2,
        "layer_scale_init_value": 1.0,
    }
    config = InternVLConfig(
        vision_config=vision,
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(ids)},
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=9,
    )
    return InternVLForConditionalGeneration(config)


MAKERS = {
    "qwen2_5_vl": (qwen25, tiny_tokenizer),
    "qwen3_5": (qwen35, tiny_tokenizer),
    "internvl": (internvl, internvl_tokenizer),
}


@pytest.fixture(scope="module", params=MAKERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    make, tokenizer = MAKERS[request.param][0], MAKERS[request.param][1]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make(tokenizer.get_vocab()).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    if "qwen3_5" in folder.name:  # its tokenizer class cannot read a word-level vocabulary
        model = Qwen3_5ForConditionalGeneration.from_pretrained(folder).eval().requires_grad_(False)
        teacher = Teacher(model, tiny_tokenizer())
    else:
        teacher = Teacher.load(folder)
    teacher.prompts = Prompts("{question}", "{prompt}", timestamps=teacher.model.config.model_type == "qwen3_5")
    return teacher


@pytest.fixture(scope="module")
def plain(folder: Path, teacher: Teacher) -> Any:
    return type(teacher.model).from_pretrained(folder).eval()


def video(videos: int = 2) -> Tensor:
    return torch.rand(videos, len(FRAMES), 3, 48, 48, generator=torch.Generator().manual_seed(0))


def processed(plain: Any, teacher: Teacher, frames: Tensor) -> tuple[str, dict[str, Any]]:
    """The video's text and tensors, as each type's official processor writes them."""
    rows, (t, h, w) = teacher.vision.video_patches(frames[None])
    kind = plain.config.model_type
    if kind == "internvl":
        image = "<img>" + "<IMG_CONTEXT>" * 9 + "</img>"
        return "\n".join(f"Frame{i + 1}: {image}" for i in range(len(frames))), {"pixel_values": rows[0]}
    tensors = {"pixel_values_videos": rows[0], "video_grid_thw": torch.tensor([[t, h, w]])}
    if kind == "qwen2_5_vl":
        # K frames of a video of 9 frames at 8 a second: 40/9 frames a second
        tensors["second_per_grid_ts"] = torch.tensor([2 / (5 / 9 * 8)], dtype=torch.float64)
        return "<|vision_start|>" + "<|video_pad|>" * (t * h * w // 4) + "<|vision_end|>", tensors
    patch = "<|vision_start|>" + "<|video_pad|>" * (h * w // 4) + "<|vision_end|>"
    # frames 0 2 | 4 6 | 8 8 at 8 frames a second
    return "".join(f"<{seconds} seconds>{patch}" for seconds in ("0.1", "0.6", "1.0")), tensors


def plain_loss(plain: Any, teacher: Teacher, frames: Tensor, question: str) -> Tensor:
    shown, tensors = processed(plain, teacher, frames)
    chat = f"<|im_start|>user\n{shown}{question}<|im_end|>\n<|im_start|>assistant\n"
    ids = torch.tensor([teacher.tokenizer(chat, add_special_tokens=False)["input_ids"]])
    if plain.config.model_type != "internvl":
        tensors["mm_token_type_ids"] = (ids == plain.config.video_token_id).int() * 2
    logits = plain(input_ids=ids, attention_mask=torch.ones_like(ids), **tensors).logits[0, -1]
    return F.cross_entropy(logits, torch.tensor(teacher.answer_ids[0]))


def test_losses_and_gradients_equal_a_plain_forward(teacher: Teacher, plain: Any) -> None:
    clip = video().requires_grad_()
    losses = teacher.yes_losses(clip, QUESTIONS, FPS, FRAMES)
    wanted = torch.stack(
        [
            torch.stack([plain_loss(plain, teacher, clip[b], question) for question in row])
            for b, row in enumerate(QUESTIONS)
        ]
    )
    torch.testing.assert_close(losses, wanted, atol=1e-5, rtol=0)
    (gradient,), (expected,) = (torch.autograd.grad(x.sum(), clip) for x in (losses, wanted))
    assert gradient.abs().amax((2, 3, 4)).min() > 1e-6  # every frame matters
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


def test_together_equals_separately(teacher: Teacher) -> None:
    together = teacher.yes_losses(video(), QUESTIONS, FPS, FRAMES)
    torch.testing.assert_close(
        together, teacher.yes_losses_separate(video(), QUESTIONS, FPS, FRAMES), atol=1e-5, rtol=0
    )


def test_recomputing_changes_nothing(teacher: Teacher) -> None:
    results = []
    for on in (False, True):
        teacher.set_activation_checkpointing(on)
        clip = video().requires_grad_()
        losses = teacher.yes_losses(clip, QUESTIONS, FPS, FRAMES)
        results.append([losses.detach(), *torch.autograd.grad(losses.sum(), clip)])
    teacher.set_activation_checkpointing(False)
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-4)


def test_packing_is_refused_where_questions_would_leak(teacher: Teacher) -> None:
    if teacher.family.packs:
        assert teacher.forward_packed(video(), QUESTIONS, FPS, FRAMES).logits.shape[:2] == (2, 3)
        return
    with pytest.raises(UserError, match="would leak into each other"):
        teacher.forward_packed(video(), QUESTIONS, FPS, FRAMES)
    one = [[row[0]] for row in QUESTIONS]
    assert teacher.forward_packed(video(), one, FPS, FRAMES).logits.shape[:2] == (2, 1)


def test_float8_rounds_a_little(teacher: Teacher) -> None:
    frames = video().requires_grad_()
    wanted = teacher.yes_losses(frames, QUESTIONS, FPS, FRAMES)
    (expected,) = torch.autograd.grad(wanted.sum(), frames)
    rounded = copy.copy(teacher)
    rounded.model = copy.deepcopy(teacher.model)
    to_float8(rounded.model, "model.")
    losses = rounded.yes_losses(frames, QUESTIONS, FPS, FRAMES)
    (found,) = torch.autograd.grad(losses.sum(), frames)
    assert 0 < (losses - wanted).abs().max() < 0.5
    assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.8


def test_layers_that_compile_badly_are_not_compiled(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    if teacher.model.config.model_type in ("qwen2_5_vl", "qwen3_5"):
        with pytest.raises(UserError, match="do not compile well; leave it off"):
            teacher.compile()
        assert not compiled
    else:
        teacher.compile()
        teacher.compiled = False
        text, vision = teacher.model.config.text_config, teacher.model.config.vision_config
        assert len(compiled) == text.num_hidden_layers + vision.num_hidden_layers


def test_a_teacher_that_cannot_write_says_so(teacher: Teacher) -> None:
    if not teacher.family.writes:
        with pytest.raises(UserError, match="give --sample.queries.goal"):
            teacher.write_queries(Sample("one", "move the red cross", None, 9, FPS, 48, 48))


def test_sizes_equal_the_official_processors() -> None:
    processing = pytest.importorskip("transformers.models.qwen2_vl.video_processing_qwen2_vl")
    for frames, height, width in ((24, 704, 1280), (9, 48, 48), (89, 480, 832), (768, 704, 1280)):
        low, high = 128 * 28 * 28, 768 * 28 * 28
        cap = max(min(high, int(128000 * 28 * 28 * 0.9) * 2 // frames), int(low * 1.05))
        wanted = processing.smart_resize(height, width, 28, low, cap)
        assert Qwen25Vision().video_size(frames, height, width) == wanted
    assert SquareVision().video_size(9, 704, 1280) == (448, 448)
