"""Every model type that can be a teacher, against transformers' own forward from a processor's inputs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_teacher import SPECIAL, TEMPLATE, tiny_config, tiny_teacher_folder, tiny_tokenizer
from tokenizers import AddedToken
from torch import Tensor
from transformers import (
    Glm46VConfig,
    Glm46VForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.models.reasoner.float8 import to_float8
from ttopt.models.teacher import Prompts, Teacher
from ttopt.models.teacher.vision import GlmVision, Qwen25Vision, SquareVision

TOLD = ("qwen3_5", "qwen3_5_moe", "qwen3_vl_moe", "glm46v")  # the time of every temporal patch
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


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GLM = ["<|begin_of_image|>", "<|image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|video|>", "<|end_of_video|>"]


def qwen3_moe(ids: dict[str, int]) -> Any:
    base = tiny_config(tiny_tokenizer()).to_dict()
    text = {name: value for name, value in base["text_config"].items() if name != "model_type"}
    vision = {name: value for name, value in base["vision_config"].items() if name != "model_type"}
    tokens = {name: base[name] for name in base if name.endswith("token_id")}
    config = Qwen3VLMoeConfig(text_config={**text, **EXPERTS, "decoder_sparse_step": 1}, vision_config=vision, **tokens)
    return Qwen3VLMoeForConditionalGeneration(config)


def glm(ids: dict[str, int]) -> Any:
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 8, "image_size": 48,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 48, "initializer_range": 0.2,
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1], "partial_rotary_factor": 0.5}
    config = Glm46VConfig(
        vision_config=vision,
        text_config={**TEXT, "initializer_range": 0.1, "vocab_size": len(ids), "rope_parameters": rope},
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        video_start_token_id=ids["<|begin_of_video|>"],
        video_end_token_id=ids["<|end_of_video|>"],
    )
    return Glm46VForConditionalGeneration(config)


def glm_tokenizer() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": SPECIAL[1:2] + SPECIAL[3:] + GLM})
    slot = "<|begin_of_{{ c.type }}|><|{{ c.type }}|><|end_of_{{ c.type }}|>"
    tokenizer.chat_template = TEMPLATE.replace("<|vision_start|><|{{ c.type }}_pad|><|vision_end|>", slot)
    return tokenizer


def qwen35_moe(ids: dict[str, int]) -> Any:
    return qwen35(ids, Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration, EXPERTS)


def qwen35(
    ids: dict[str, int],
    configuration: Any = Qwen3_5Config,
    kind: Any = Qwen3_5ForConditionalGeneration,
    experts: dict[str, int] | None = None,
) -> Any:
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
    config = configuration(
        vision_config=vision,
        text_config={**text, **(experts or {})},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return kind(config)


def internvl35(ids: dict[str, int]) -> Any:
    return internvl(ids, {"model_type": "qwen3", "head_dim": 16})


def internvl(ids: dict[str, int], language: dict[str, Any] | None = None) -> Any:
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
        text_config={**TEXT, "vocab_size": len(ids), **(language or {"model_type": "qwen2"})},
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=9,
    )
    return InternVLForConditionalGeneration(config)


MAKERS = {
    "qwen2_5_vl": (qwen25, tiny_tokenizer),
    "qwen3_5": (qwen35, tiny_tokenizer),
    "internvl": (internvl, internvl_tokenizer),
    "internvl35": (internvl35, internvl_tokenizer),
    "qwen3_vl_moe": (qwen3_moe, tiny_tokenizer),
    "qwen3_5_moe": (qwen35_moe, tiny_tokenizer),
    "glm46v": (glm, glm_tokenizer),
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
        kind = Qwen3_5MoeForConditionalGeneration if "moe" in folder.name else Qwen3_5ForConditionalGeneration
        model = kind.from_pretrained(folder).eval().requires_grad_(False)
        teacher = Teacher(model, tiny_tokenizer())
    else:
        teacher = Teacher.load(folder)
    teacher.prompts = Prompts("{question}", "{prompt}", timestamps=teacher.model.config.model_type in TOLD)
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
    if kind == "glm46v":  # frames 0, 4 and 8 are the first ones
        image = "<|begin_of_image|>" + "<|image|>" * (h * w // 4) + "<|end_of_image|>"
        images = "".join(f"{image}{seconds} seconds" for seconds in ("0.0", "0.5", "1.0"))
        return f"<|begin_of_video|>{images}<|end_of_video|>", tensors
    patch = "<|vision_start|>" + "<|video_pad|>" * (h * w // 4) + "<|vision_end|>"
    # frames 0 2 | 4 6 | 8 8 at 8 frames a second
    return "".join(f"<{seconds} seconds>{patch}" for seconds in ("0.1", "0.6", "1.0")), tensors


def plain_loss(plain: Any, teacher: Teacher, frames: Tensor, question: str) -> Tensor:
    shown, tensors = processed(plain, teacher, frames)
    chat = f"<|im_start|>user\n{shown}{question}<|im_end|>\n<|im_start|>assistant\n"
    ids = torch.tensor([teacher.tokenizer(chat, add_special_tokens=False)["input_ids"]])
    if plain.config.model_type != "internvl":
        shown_id = plain.config.image_token_id if "glm" in plain.config.model_type else plain.config.video_token_id
        tensors["mm_token_type_ids"] = (ids == shown_id).int() * 2
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
    if teacher.model.config.model_type != "internvl":
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
    glm = pytest.importorskip("transformers.models.glm46v.video_processing_glm46v")
    for frames, height, width in ((24, 704, 1280), (9, 48, 48), (89, 480, 832), (768, 704, 1280), (4, 20, 20)):
        wanted = glm.smart_resize(frames, height, width, 2, 28, *GlmVision().video_pixels)
        assert GlmVision().video_size(frames, height, width) == wanted


def test_several_teachers_grade_together(tmp_path: Path) -> None:
    one, two = (Teacher.load(tiny_teacher_folder(tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    one.prompts = two.prompts = Prompts("{question}", "{prompt}", timestamps=False)
    alone = torch.stack([each.yes_losses(video(), QUESTIONS, FPS, FRAMES) for each in (one, two)])
    assert (alone[0] - alone[1]).abs().min() > 1e-3
    one.others = [two]
    clip = video().requires_grad_()
    for combine, wanted in (("mean", alone.mean(0)), ("worst", alone.amax(0))):
        one.combine = combine  # type: ignore[assignment]
        losses = one.yes_losses(clip, QUESTIONS, FPS, FRAMES)
        torch.testing.assert_close(losses, wanted, atol=1e-6, rtol=0)
    assert torch.autograd.grad(losses.sum(), clip)[0].abs().sum() > 0
