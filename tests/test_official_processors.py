"""Our preprocessing against the official processors. They need torchvision: skipped where it is missing, or broken
beside this build of torch (a CPU build needs one with CUDA in an environment of its own)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_teacher import TEMPLATE, tiny_teacher_folder
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from ttopt.models.teacher import Prompts, Teacher, Vision
from ttopt.models.teacher.vision import CLIP_MEAN, CLIP_STD, Qwen25Vision, SquareVision

try:
    import torchvision.transforms.v2.functional  # noqa: F401
except Exception as error:
    pytest.skip(f"torchvision: {error}", allow_module_level=True)

from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

SHAPES = [(9, 48, 48), (5, 100, 60), (24, 480, 832), (4, 20, 40)]
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}
PLAIN = {"do_sample_frames": False, "do_rescale": False, "return_tensors": "pt"}


def video(frames: int, height: int, width: int) -> Tensor:
    """A smooth video (K,3,H,W) in [0,1]: as 8-bit levels, resized, it stays within them."""
    coarse = torch.rand(frames, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    return F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("budget", [(4096, 25165824), (65536, 262144)])
def test_qwen3_video(shape: tuple[int, int, int], budget: tuple[int, int]) -> None:
    processor = Qwen3VLVideoProcessor(size={"shortest_edge": budget[0], "longest_edge": budget[1]}, **HALF)
    clip = video(*shape)
    wanted = processor([clip], cap_pixels_per_frame=True, **PLAIN)
    rows, grid = Vision(video_pixels=budget).video_patches(clip[None])
    assert wanted["video_grid_thw"].tolist() == [list(grid)]
    torch.testing.assert_close(rows[0], wanted["pixel_values_videos"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_qwen3_video_of_8_bit_levels(shape: tuple[int, int, int]) -> None:
    """Levels are rounded after each of a resize's two passes, floats are not: up to one level and a half apart."""
    processor = Qwen3VLVideoProcessor(size={"shortest_edge": 65536, "longest_edge": 262144}, **HALF)
    levels = (video(*shape) * 255).round()
    options = PLAIN | {"do_rescale": True}
    wanted = processor([levels.to(torch.uint8)], cap_pixels_per_frame=True, **options)["pixel_values_videos"]
    rows, _ = Vision(video_pixels=(65536, 262144)).video_patches(levels[None] / 255)
    torch.testing.assert_close(rows[0], wanted, atol=1.5 / 255 / 0.5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(48, 48), (100, 60), (480, 832), (20, 40)])
def test_qwen3_image(height: int, width: int) -> None:
    processor = Qwen2VLImageProcessor(size={"shortest_edge": 65536, "longest_edge": 16777216}, patch_size=16, **HALF)
    levels = (torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)) * 255).round()
    wanted = processor(images=[levels.to(torch.uint8)], return_tensors="pt")
    rows, grid = Vision(image_pixels=(65536, 16777216)).image_patches(levels / 255)
    assert wanted["image_grid_thw"].tolist() == [list(grid)]
    torch.testing.assert_close(rows, wanted["pixel_values"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_qwen25_video(shape: tuple[int, int, int]) -> None:
    low, high = Qwen25Vision().video_pixels
    processor = Qwen2VLVideoProcessor(size={"shortest_edge": low, "longest_edge": high}, patch_size=14, **CLIP)
    clip = video(*shape)
    wanted = processor([clip], cap_pixels_per_frame=True, **PLAIN)
    rows, grid = Qwen25Vision().video_patches(clip[None])
    assert wanted["video_grid_thw"].tolist() == [list(grid)]
    torch.testing.assert_close(rows[0], wanted["pixel_values_videos"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_internvl_video(shape: tuple[int, int, int]) -> None:
    processor = InternVLVideoProcessor(size={"height": 448, "width": 448}, **CLIP)
    clip = video(*shape)
    wanted = processor([clip], **PLAIN)["pixel_values_videos"]
    images, _ = SquareVision(patch=14).video_patches(clip[None])
    torch.testing.assert_close(images, wanted, atol=1e-6, rtol=0)


def test_a_loss_is_that_of_the_model_on_the_processors_inputs(tmp_path: Path) -> None:
    folder = tiny_teacher_folder(tmp_path)
    teacher = Teacher.load(folder)
    teacher.prompts = Prompts("{question}", "{prompt}", timestamps=True)
    teacher.tokenizer.chat_template = TEMPLATE
    clip, fps, numbers = video(9, 64, 48), 8, list(range(0, 18, 2))
    question = "is the red cross on the green pad at the end?"
    (loss,) = teacher.yes_losses(clip[None], [[question]], fps, numbers)
    patches = {"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2}
    size = {"shortest_edge": 4096, "longest_edge": 25165824}
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(**patches, **HALF),
        teacher.tokenizer,
        Qwen3VLVideoProcessor(size=size, **patches, **HALF),
        chat_template=TEMPLATE,
    )
    content = [{"type": "video"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    # Since transformers 5.10 what the template writes around a video stays around its frames, which have it themselves.
    text = text.replace("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>")
    metadata = {"fps": fps, "frames_indices": numbers, "total_num_frames": 18, "duration": 18 / fps}
    inputs = processor(text=[text], videos=[clip], video_metadata=[metadata], cap_pixels_per_frame=True, **PLAIN)
    plain = Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()
    wanted = -plain(**inputs).logits[0, -1].log_softmax(-1)[teacher.answer_ids[0]]
    torch.testing.assert_close(loss[0], wanted, atol=1e-5, rtol=0)
