"""Float frames to Qwen3-VL vision patches: the official processors' arithmetic, differentiable.

Shapes: B videos, K frames, T temporal patches, H x W pixels after resizing, grid (T, H/patch, W/patch).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen

from ttopt.errors import UserError

Grid = tuple[int, int, int]  # temporal, vertical and horizontal patches of one video


@dataclass(frozen=True)
class Vision:
    """Patch sizes and pixel budgets of a Qwen3-VL processor.

    Budgets are (fewest, most) pixels: of all frames of a video together, and of one image. The defaults are
    Qwen3-VL's for videos; without a processor file an image is only rounded to whole patches, never enlarged.
    """

    patch: int = 16
    temporal_patch: int = 2
    merge: int = 2
    video_pixels: tuple[int, int] = (4096, 25165824)
    image_pixels: tuple[int, int] = (1, 16777216)
    frame_tokens: int = 768  # most vision tokens a video frame may take (cap_pixels_per_frame)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @classmethod
    def of(cls, config: Any, **settings: Any) -> Vision:
        """Patch sizes from a Qwen3-VL config, the rest by default or as given."""
        sizes = config.vision_config
        return cls(sizes.patch_size, sizes.temporal_patch_size, sizes.spatial_merge_size, **settings)

    @classmethod
    def load(cls, folder: Path, config: Any) -> Vision:
        """Patch sizes from the model's config, budgets and statistics from its processor files if any.

        Raises UserError for unreadable files, and where images and videos are normalized differently.
        """
        settings: dict[str, Any] = {}
        files = {"video_pixels": "video_preprocessor_config.json", "image_pixels": "preprocessor_config.json"}
        for budget, name in files.items():
            path = folder / name
            if not path.is_file():
                continue
            try:
                given = json.loads(path.read_text(encoding="utf-8"))
                settings[budget] = cls._budget(given)
                for key, value in (("mean", given.get("image_mean")), ("std", given.get("image_std"))):
                    if value is not None and settings.setdefault(key, tuple(value)) != tuple(value):
                        raise UserError(f"{path}: image_{key} differs from the video processor's")
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise UserError(f"{path}: not a Qwen3-VL processor file ({error!r}); restore it") from error
        return cls.of(config, **settings)

    @staticmethod
    def _budget(given: dict[str, Any]) -> tuple[int, int]:
        """(fewest, most) pixels as a processor file says; older ones have min_pixels and max_pixels."""
        if "min_pixels" in given and "max_pixels" in given:
            return int(given["min_pixels"]), int(given["max_pixels"])
        return int(given["size"]["shortest_edge"]), int(given["size"]["longest_edge"])

    def frame_token_count(self, grid: Grid) -> int:
        """Vision tokens of one temporal patch."""
        return grid[1] * grid[2] // self.merge**2

    def video_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Height and width the official video processor resizes to, with cap_pixels_per_frame=True."""
        low, high = self.video_pixels
        per_frame = max(min(self.frame_tokens * self._factor**2, high // frames), int(low * 1.05))
        if min(height, width) < self._factor:
            scale = max(self._factor / height, self._factor / width)
            height, width = int(height * scale), int(width * scale)
        return self._fit(height, width, frames, low, per_frame * frames)

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width the official image processor resizes to."""
        return self._fit(height, width, 0, *self.image_pixels)

    def video_patches(self, frames: Tensor) -> tuple[Tensor, Grid]:
        """(B,K,3,H,W) floats in [0,1] -> rows (B, T*h*w, 3*temporal*patch*patch) and the grid (T,h,w).

        Equals Qwen3VLVideoProcessor on float frames; differentiable. Odd K: the last frame is repeated.
        """
        frames = self._resize(frames, self.video_size(frames.shape[1], *frames.shape[-2:]))
        fill = -frames.shape[1] % self.temporal_patch
        if fill:
            frames = torch.cat([frames, frames[:, -1:].expand(-1, fill, -1, -1, -1)], dim=1)
        return self._rows(frames)

    def image_patches(self, image: Tensor) -> tuple[Tensor, Grid]:
        """(3,H,W) float in [0,1] -> rows (h*w, 3*temporal*patch*patch) and the grid (1,h,w).

        Equals Qwen2VLImageProcessor, which resizes 8-bit levels, as first frames are: not differentiable.
        """
        levels = (image.detach() * 255).round().clamp(0, 255).to("cpu", torch.uint8)[None, None]
        levels = self._resize(levels, self.image_size(*image.shape[-2:])).to(image.device, torch.float32)
        rows, grid = self._rows((levels / 255).expand(-1, self.temporal_patch, -1, -1, -1))
        return rows[0], grid

    @property
    def _factor(self) -> int:
        return self.patch * self.merge

    def _fit(self, height: int, width: int, frames: int, low: int, high: int) -> tuple[int, int]:
        """Nearest size in whole merged patches within the budget: Qwen's smart_resize, Python's rounding.

        ``frames`` is 0 for an image.
        """
        factor = self._factor
        if max(height, width) > 200 * min(height, width):
            raise UserError(f"frames of {height}x{width} are more than 200 times as long as wide; crop them")
        h, w = round(height / factor) * factor, round(width / factor) * factor
        whole = max(1, round(frames / self.temporal_patch) * self.temporal_patch)
        frames = max(1, frames)
        if whole * h * w > high:
            beta = math.sqrt(frames * height * width / high)
            h = max(factor, math.floor(height / beta / factor) * factor)
            w = max(factor, math.floor(width / beta / factor) * factor)
        elif whole * h * w < low:
            beta = math.sqrt(low / (frames * height * width))
            h = math.ceil(height * beta / factor) * factor
            w = math.ceil(width * beta / factor) * factor
        return h, w

    def _resize(self, frames: Tensor, size: tuple[int, int]) -> Tensor:
        if tuple(frames.shape[-2:]) == size:
            return frames
        flat = F.interpolate(frames.flatten(0, 1), size, mode="bicubic", align_corners=False, antialias=True)
        return flat.unflatten(0, frames.shape[:2])

    def _rows(self, frames: Tensor) -> tuple[Tensor, Grid]:
        mean = frames.new_tensor(self.mean)[:, None, None]
        std = frames.new_tensor(self.std)[:, None, None]
        rows = rearrange(
            (frames - mean) / std,
            "b (t dt) c (h mh dh) (w mw dw) -> b (t h w mh mw) (c dt dh dw)",
            dt=self.temporal_patch,
            dh=self.patch,
            dw=self.patch,
            mh=self.merge,
            mw=self.merge,
        )
        grid = (
            frames.shape[1] // self.temporal_patch,
            frames.shape[3] // self.patch,
            frames.shape[4] // self.patch,
        )
        return rows, grid


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
VIDEO_TOKENS = 128000  # the context length that Qwen2.5-VL's processor assumes for its total budget


@dataclass(frozen=True)
class Qwen25Vision(Vision):
    """Qwen2.5-VL's processor: CLIP's statistics, a budget for each frame instead of the whole video."""

    patch: int = 14
    video_pixels: tuple[int, int] = (128 * 28 * 28, 768 * 28 * 28)
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def video_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """As Qwen2VLVideoProcessor with cap_pixels_per_frame=True."""
        low, high = self.video_pixels
        total = int(VIDEO_TOKENS * self._factor**2 * 0.9)
        cap = max(min(high, total * self.temporal_patch // frames), int(low * 1.05))
        return self._fit(height, width, 0, low, cap)


@dataclass(frozen=True)
class GlmVision(Vision):
    """GLM-4.6V's processor: CLIP's statistics, a budget for the whole video alone; an image counts as two frames."""

    patch: int = 14
    video_pixels: tuple[int, int] = (112 * 112, 28 * 28 * 2 * 30000)
    image_pixels: tuple[int, int] = (112 * 112, 28 * 28 * 15000)
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def video_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        if min(height, width) < self._factor:
            scale = max(self._factor / height, self._factor / width)
            height, width = int(height * scale), int(width * scale)
        return self._fit(height, width, frames, *self.video_pixels)

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        return self._fit(height, width, self.temporal_patch, *self.image_pixels)


@dataclass(frozen=True)
class SquareVision(Vision):
    """InternVL's processor: every frame becomes one square image.

    ``patch`` is a side of the patches, ``merge`` how many of them a token spans each way; ``side`` pixels.
    """

    side: int = 448
    temporal_patch: int = 1
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @classmethod
    def of(cls, config: Any, **settings: Any) -> SquareVision:
        side, patch = (x[0] if isinstance(x, (list, tuple)) else x for x in _sides(config.vision_config))
        return cls(patch=patch, merge=round(1 / config.downsample_ratio), side=side, **settings)

    @staticmethod
    def _budget(given: dict[str, Any]) -> tuple[int, int]:
        pixels = int(given["size"]["height"]) * int(given["size"]["width"])
        return pixels, pixels

    def video_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        return self.side, self.side

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        return self.side, self.side

    def _rows(self, frames: Tensor) -> tuple[Tensor, Grid]:
        """(B,K,3,side,side) normalized images, not cut into patches."""
        mean = frames.new_tensor(self.mean)[:, None, None]
        std = frames.new_tensor(self.std)[:, None, None]
        return (frames - mean) / std, (frames.shape[1], self.side // self.patch, self.side // self.patch)


def _sides(vision_config: Any) -> tuple[Any, Any]:
    return vision_config.image_size, vision_config.patch_size


class LinearPatchEmbed(qwen.Qwen3VLVisionPatchEmbed):
    """The patch embedding as one matrix product: the same sums as the Conv3d, which is very slow in bf16."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        weight = self.proj.weight.flatten(1)
        return F.linear(hidden_states.to(weight.dtype), weight, self.proj.bias)


class FrameAttention(qwen.Qwen3VLVisionAttention):
    """Attention within each frame, for all frames at once where they are equally large.

    The original loops over frames unless flash-attention is installed. ``frame_patches`` is the number of
    patches of each frame; without it (images during generation) the original runs.
    """

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        max_seqlen: int | None = None,
        frame_patches: int = 0,
        **kwargs: Any,
    ) -> Tensor:
        if not frame_patches:
            return super().forward(hidden_states, cu_seqlens, position_embeddings, max_seqlen, **kwargs)
        assert position_embeddings is not None
        qkv = self.qkv(hidden_states)
        q, k, v = rearrange(qkv, "s (three n d) -> three s n d", three=3, n=self.num_heads).unbind()
        q, k = qwen.apply_rotary_pos_emb_vision(q, k, *position_embeddings)
        q, k, v = (rearrange(x, "(f p) n d -> f n p d", p=frame_patches) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scaling)
        return self.proj(rearrange(out, "f n p d -> (f p) (n d)"))


def speed_up(visual: qwen.Qwen3VLVisionModel) -> None:
    """Swaps in the two modules above, in place; parameters and their names stay as they are."""
    visual.patch_embed.__class__ = LinearPatchEmbed
    for block in visual.blocks:
        block.attn.__class__ = FrameAttention
