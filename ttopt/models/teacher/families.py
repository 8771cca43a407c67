"""What differs between the model types that can be teachers: how they see a video and where its tokens stand.

Shapes: B videos, K frames, V vision tokens a video, D hidden size, P prefix tokens; grid (T, h, w) patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Glm46VForConditionalGeneration,
    InternVLForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeForConditionalGeneration,
)

from ttopt.models.teacher import prompts as words
from ttopt.models.teacher.packing import Prefix, make_prefix
from ttopt.models.teacher.vision import GlmVision, Grid, LinearPatchEmbed, Qwen25Vision, SquareVision, Vision, speed_up


@dataclass(frozen=True)
class Seen:
    """What the vision tower made of B videos."""

    features: Tensor  # (B, V, D)
    grid: Grid
    deepstack: list[Tensor] | None = None  # further features for the first layers, (B*V, D) each


class Qwen3VL:
    """Qwen3-VL: timestamped frames, three rotary axes, features also in the first layers."""

    model_class: Any = Qwen3VLForConditionalGeneration
    vision_class: type[Vision] = Vision
    packs = True  # several questions may share a forward, kept apart by the mask
    compiles = True
    slot = words.VIDEO_SLOT  # what the chat template writes for a video
    writes = True  # can write the questions itself

    def prepare(self, model: Any) -> None:
        """Makes the vision tower quicker, in place."""
        speed_up(model.model.visual)

    def look(self, model: Any, vision: Vision, frames: Tensor) -> Seen:
        """The vision tower's view of ``frames`` (B,K,3,H,W)."""
        visual = model.model.visual
        rows, grid = vision.video_patches(frames)
        seen = visual(
            rows.flatten(0, 1).to(visual.dtype),
            grid_thw=torch.tensor([grid] * len(frames), device=frames.device),
            frame_patches=grid[1] * grid[2],
            return_dict=True,
        )
        return self._seen(seen, len(frames), grid)

    def _seen(self, seen: Any, count: int, grid: Grid) -> Seen:
        features = seen.pooler_output.unflatten(0, (count, -1))
        return Seen(features, grid, getattr(seen, "deepstack_features", None))

    def seconds(self, fps: float, frame_indices: Sequence[int], temporal_patch: int) -> list[float]:
        """The time that is told of every temporal patch."""
        return words.timestamps(fps, frame_indices, temporal_patch)

    def video_text(self, vision: Vision, grid: Grid, seconds: Sequence[float] | None) -> str:
        """What stands in the prompt in place of ``slot``; ``seconds``: of every temporal patch, if they are told."""
        return words.video_text(seconds, grid[0], vision.frame_token_count(grid))

    def prefix(
        self, model: Any, ids: Sequence[int], vision: Vision, grid: Grid, fps: float, frame_indices: Sequence[int]
    ) -> Prefix:
        """Positions of the prompt up to the end of the video."""
        size = (grid[1] // vision.merge, grid[2] // vision.merge)
        return make_prefix(ids, model.config.video_token_id, size, grid[0])

    def position_ids(self, positions: Tensor) -> Tensor:
        """(3, B, S) positions as the language model takes them."""
        return positions

    def extras(self, seen: Seen, is_video: Tensor) -> dict[str, Any]:
        """Further arguments of the language model; ``is_video`` (B, S) marks the vision tokens."""
        return {"visual_pos_masks": is_video, "deepstack_visual_embeds": seen.deepstack}


class Qwen35(Qwen3VL):
    """Qwen3.5: as Qwen3-VL, but most layers are recurrent and would mix packed questions: a row a question."""

    model_class: Any = Qwen3_5ForConditionalGeneration
    packs = False
    compiles = False  # the recurrence is unrolled

    def extras(self, seen: Seen, is_video: Tensor) -> dict[str, Any]:
        return {}


class Qwen3VLMoe(Qwen3VL):
    """Qwen3-VL with a mixture of experts."""

    model_class: Any = Qwen3VLMoeForConditionalGeneration
    compiles = False  # which expert sees which token changes from call to call


class Qwen35Moe(Qwen35):
    """Qwen3.5 with a mixture of experts."""

    model_class: Any = Qwen3_5MoeForConditionalGeneration


class Qwen25VL(Qwen3VL):
    """Qwen2.5-VL: no timestamps but temporal positions in proportion to time; windowed vision attention."""

    model_class: Any = Qwen2_5_VLForConditionalGeneration
    vision_class: type[Vision] = Qwen25Vision
    compiles = False  # the vision tower attends window by window

    def prepare(self, model: Any) -> None:
        model.model.visual.patch_embed.__class__ = LinearPatchEmbed

    def look(self, model: Any, vision: Vision, frames: Tensor) -> Seen:
        visual = model.model.visual
        rows, grid = vision.video_patches(frames)
        grids = torch.tensor([grid] * len(frames), device=frames.device)
        seen = visual(rows.flatten(0, 1).to(visual.dtype), grid_thw=grids, return_dict=True)
        return self._seen(seen, len(frames), grid)

    def video_text(self, vision: Vision, grid: Grid, seconds: Sequence[float] | None) -> str:
        return words.VISION_START + words.VIDEO_PAD * (grid[0] * vision.frame_token_count(grid)) + words.VISION_END

    def prefix(
        self, model: Any, ids: Sequence[int], vision: Vision, grid: Grid, fps: float, frame_indices: Sequence[int]
    ) -> Prefix:
        # As the processor reckons: K frames of a video that ends with the last of them.
        sampled_fps = len(frame_indices) / (frame_indices[-1] + 1) * fps
        tokens = torch.tensor([[*ids, 0]])  # one text token more shows where the text goes on
        is_video = tokens == model.config.video_token_id
        positions, _ = model.model.get_rope_index(
            tokens,
            is_video.int() * 2,
            video_grid_thw=torch.tensor([grid]),
            second_per_grid_ts=[vision.temporal_patch / sampled_fps],
        )
        return Prefix(tokens[0, :-1], positions[:, 0, :-1], is_video[0].nonzero()[:, 0], int(positions[0, 0, -1]))

    def extras(self, seen: Seen, is_video: Tensor) -> dict[str, Any]:
        return {}


class Glm46V(Qwen3VL):
    """GLM-4.6V: every temporal patch is an image, followed by the time of its first frame."""

    model_class: Any = Glm46VForConditionalGeneration
    vision_class: type[Vision] = GlmVision
    compiles = False  # the vision tower attends frame by frame
    slot = "<|video|>"
    writes = False  # its image tokens are not known to Teacher.reply

    def prepare(self, model: Any) -> None:
        pass

    def look(self, model: Any, vision: Vision, frames: Tensor) -> Seen:
        visual = model.model.visual
        rows, grid = vision.video_patches(frames)
        grids = torch.tensor([(1, *grid[1:])] * (len(frames) * grid[0]), device=frames.device)
        seen = visual(rows.flatten(0, 1).to(visual.dtype), grid_thw=grids, return_dict=True)
        return self._seen(seen, len(frames), grid)

    def seconds(self, fps: float, frame_indices: Sequence[int], temporal_patch: int) -> list[float]:
        return [number / fps for number in frame_indices[::temporal_patch]]

    def video_text(self, vision: Vision, grid: Grid, seconds: Sequence[float] | None) -> str:
        image = f"<|begin_of_image|>{'<|image|>' * vision.frame_token_count(grid)}<|end_of_image|>"
        return "".join(image + (f"{seconds[patch]:.1f} seconds" if seconds else "") for patch in range(grid[0]))

    def prefix(
        self, model: Any, ids: Sequence[int], vision: Vision, grid: Grid, fps: float, frame_indices: Sequence[int]
    ) -> Prefix:
        size = (grid[1] // vision.merge, grid[2] // vision.merge)
        return make_prefix(ids, model.config.image_token_id, size, grid[0])

    def extras(self, seen: Seen, is_video: Tensor) -> dict[str, Any]:
        return {}


class InternVL:
    """InternVL3 and 3.5 in transformers' own format: every frame is an image of its own, one rotary axis."""

    model_class: Any = InternVLForConditionalGeneration
    vision_class: type[Vision] = SquareVision
    packs = True
    compiles = True
    slot = "<video>"
    writes = False  # its image tokens are not known to Teacher.reply

    def prepare(self, model: Any) -> None:
        pass

    def look(self, model: Any, vision: Vision, frames: Tensor) -> Seen:
        images, grid = vision.video_patches(frames)
        seen = model.model.get_image_features(images.flatten(0, 1).to(model.dtype), return_dict=True)
        features = seen.pooler_output.unflatten(0, (len(frames), -1)).flatten(1, 2)
        return Seen(features, grid)

    def seconds(self, fps: float, frame_indices: Sequence[int], temporal_patch: int) -> list[float]:
        return words.timestamps(fps, frame_indices, temporal_patch)

    def video_text(self, vision: Vision, grid: Grid, seconds: Sequence[float] | None) -> str:
        image = f"<img>{'<IMG_CONTEXT>' * vision.frame_token_count(grid)}</img>"
        return "\n".join(f"Frame{number + 1}: {image}" for number in range(grid[0]))

    def prefix(
        self, model: Any, ids: Sequence[int], vision: Vision, grid: Grid, fps: float, frame_indices: Sequence[int]
    ) -> Prefix:
        tokens = torch.tensor(ids)
        video = (tokens == model.config.image_token_id).nonzero()[:, 0]
        return Prefix(tokens, torch.arange(len(ids)).expand(3, -1), video, len(ids))

    def position_ids(self, positions: Tensor) -> Tensor:
        return positions[0]

    def extras(self, seen: Seen, is_video: Tensor) -> dict[str, Any]:
        return {}


Family = Qwen3VL | InternVL
FAMILIES: dict[str, Family] = {
    "qwen3_vl": Qwen3VL(),
    "qwen3_vl_moe": Qwen3VLMoe(),
    "qwen2_5_vl": Qwen25VL(),
    "qwen3_5": Qwen35(),
    "qwen3_5_moe": Qwen35Moe(),
    "glm46v": Glm46V(),
    "internvl": InternVL(),
}
