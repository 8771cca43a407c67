"""Differentiable decoding of latents to frames, inside the optimization loop.

The standard Wan VAE clamps its output, which kills the gradient of every saturated pixel, and keeps all
activations of all frames. Here the clamp passes gradients straight through, latent frames after the last one
asked for are never decoded (the VAE is causal), and each latent frame can be recomputed in the backward pass
instead of being stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from ttopt.models.reasoner.condition import latent_statistics

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

Decoder = Callable[[Tensor, Sequence[int]], Tensor]  # latents (1,C,T,h,w), K frame numbers -> frames (1,K,3,H,W)
TIME_SCALE = 4  # video frames per latent frame in every Wan VAE; the first latent frame stands for one video frame


class _StraightThroughClamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


def straight_through_clamp(value: Tensor, low: float, high: float) -> Tensor:
    """Clamp to [low, high] in the forward pass; the gradient passes unchanged, also where the clamp acts."""
    clamped: Tensor = _StraightThroughClamp.apply(value, low, high)  # type: ignore[no-untyped-call]
    return clamped


def check_frames(frames: Sequence[int], latent_frames: int) -> list[int]:
    """Frame numbers as a list; raises ValueError unless each is in 0 .. 4 * (latent_frames - 1)."""
    last = TIME_SCALE * (latent_frames - 1)
    if not frames or min(frames) < 0 or max(frames) > last:
        raise ValueError(f"frames {list(frames)} are outside the video's 0..{last}")
    return list(frames)


class StandardDecoder:
    """The reasoner's own VAE decoder, frame by frame, with gradients.

    ``activation_checkpointing`` stores only the convolution caches between latent frames and recomputes the rest in the
    backward pass: the same gradient in much less memory, for one more forward.
    """

    def __init__(self, vae: AutoencoderKLWan, activation_checkpointing: bool = False) -> None:
        self.vae = vae
        self.activation_checkpointing = activation_checkpointing

    def __call__(self, latents: Tensor, frames: Sequence[int]) -> Tensor:
        """Decode some frames of normalized latents.

        ``latents`` (B, C, T, h, w); ``frames`` K video frame numbers in 0 .. 4 * (T - 1), any order.
        Returns (B, K, 3, H, W) float32 in [0, 1].
        """
        wanted = check_frames(frames, latents.shape[2])
        vae = self.vae
        mean, inverse_std = latent_statistics(vae, latents.device)
        latents = latents[:, :, : -(-max(wanted) // TIME_SCALE) + 1]
        hidden = vae.post_quant_conv((latents.float() / inverse_std + mean).to(vae.dtype))

        # One cache slot per causal convolution: None, the string "Rep" or a tensor of the last two frames.
        cache: list[Any] = [None] * vae._cached_conv_counts["decoder"]
        pieces = []
        for index, hidden_frame in enumerate(hidden.split(1, dim=2)):
            if self.activation_checkpointing and torch.is_grad_enabled():
                piece, cache = recompute_in_backward(
                    self._decode_latent_frame, hidden_frame, cache, index == 0, use_reentrant=False
                )
            else:
                piece, cache = self._decode_latent_frame(hidden_frame, cache, index == 0)
            pieces.append(piece)
        video = torch.cat(pieces, dim=2)[:, :, wanted]
        patch = vae.config["patch_size"] or 1
        video = rearrange(video, "b (c pw ph) t h w -> b t c (h ph) (w pw)", pw=patch, ph=patch)
        return straight_through_clamp(video.float() * 0.5 + 0.5, 0.0, 1.0)

    def _decode_latent_frame(self, hidden: Tensor, cache: list[Any], first: bool) -> tuple[Tensor, list[Any]]:
        # The decoder writes into the cache list, so it gets a copy: the backward pass needs the old one.
        cache = list(cache)
        piece = self.vae.decoder(hidden, feat_cache=cache, feat_idx=[0], first_chunk=first)
        return piece, cache
