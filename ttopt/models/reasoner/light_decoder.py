"""A small decoder from Wan latents to frames, cheap enough for the optimization loop.

The architecture is that of TAEHV (taehv.py), whose published weights this class reads, and LightX2V's. It stands in
for the standard VAE in VLM-as-Teacher (arXiv 2606.02564), Algorithm 1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ttopt.errors import UserError, brief
from ttopt.models.checkpoint import check_finite
from ttopt.models.hub import fetched, hub_file
from ttopt.models.reasoner.decoder import TIME_SCALE, check_frames, straight_through_clamp
from ttopt.models.reasoner.taehv import (
    LAST_UPSCALE,
    Kind,
    LightDecoderConfig,
    MemoryBlock,
    SuperMemoryBlock,
    TimeGrow,
    decoder_layers,
)

HUNYUAN_SCALE = 1.03682  # HunyuanVideo 1.5's scaling_factor of latents


class LightDecoder(nn.Module):
    """TAEHV decoder: normalized latents to frames.

    The latents are the transformer's own: no latent mean and std are applied, as for the public taew weights.
    ``statistics`` are the VAE's mean and std of each channel, for weights that take the VAE's own latents
    (LightX2V's lighttaew).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: LightDecoderConfig | None = None,
        statistics: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        config = config or LightDecoderConfig()
        if config.kind == "hunyuan":  # its VAE has no other statistics
            statistics = [0.0], [1 / HUNYUAN_SCALE]
        mean, std = statistics or ([0.0], [1.0])
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1, 1), persistent=False)
        self.is_scaled = statistics is not None
        self.config = config
        self.growth = 2 ** sum(config.time_upscale)  # decoded frames per latent frame
        if self.growth > TIME_SCALE:
            raise UserError("light decoder: at most two of the three time_upscale switches may be true")
        self.decoder = decoder_layers(config)

    def forward(self, latents: Tensor, frames: Sequence[int]) -> Tensor:
        """Decode some frames.

        ``latents`` (B, C, T, h, w) normalized; ``frames`` K video frame numbers in 0 .. 4 * (T - 1), in any
        order. With time up-scalings switched off there are fewer decoded frames; the nearest one stands in.
        Returns (B, K, 3, H, W) float32 in [0, 1]; the final clamp passes gradients straight through.
        """
        batch = latents.shape[0]
        wanted = check_frames(frames, latents.shape[2])
        # Decoded frame d is video frame d * (4 / growth). The first growth - 1 decoded frames belong to the
        # time before the video and are dropped: latent frame 0 stands for exactly one video frame.
        step = TIME_SCALE // self.growth
        decoded = [(2 * frame + step) // (2 * step) + self.growth - 1 for frame in wanted]
        latents = latents[:, :, : max(decoded) // self.growth + 1]  # causal: the later ones change nothing

        if self.is_scaled:
            latents = latents * self.std + self.mean
        dtype = next(self.parameters()).dtype
        layers = list(self.decoder)
        x = latents.to(dtype).transpose(1, 2).flatten(0, 1)  # (B*T, C, h, w)
        for layer in layers[:LAST_UPSCALE]:
            x = layer(x, batch) if isinstance(layer, MemoryBlock | SuperMemoryBlock) else layer(x)

        # The last up-scaling and the output convolutions are the dearest: only for the wanted frames.
        last = 2 if self.config.time_upscale[2] else 1
        sources = sorted({frame // last for frame in decoded})
        x = x.view(batch, -1, *x.shape[1:])[:, sources].flatten(0, 1)
        for layer in layers[LAST_UPSCALE:]:
            x = layer(x)
            if isinstance(layer, TimeGrow):
                x = x.view(batch, -1, *x.shape[1:])  # (B, len(sources) * last, C, H, W)
                x = x[:, [sources.index(frame // last) * last + frame % last for frame in decoded]].flatten(0, 1)
        x = F.pixel_shuffle(x, self.config.patch_size)
        x = x.view(batch, -1, *x.shape[1:]).float()
        return straight_through_clamp((x + 1) / 2 if self.config.kind == "hunyuan" else x, 0.0, 1.0)

    def save(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(asdict(self.config), indent=2) + "\n")
        save_file(
            {name: value.contiguous() for name, value in self.state_dict().items()},
            folder / "model.safetensors",
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        time_upscale: tuple[bool, bool, bool] | None = None,
        space_upscale: tuple[bool, bool, bool] | None = None,
        shrink: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        statistics: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> LightDecoder:
        """Read a folder written by ``save``, or a public TAEHV file (.safetensors or .pth), frozen, in evaluation mode.

        A file whose name begins with lighttae takes the VAE's own latents, whose ``statistics`` it then needs; that for
        HunyuanVideo 1.5 (lighttaehy), which Wan models cannot use, knows its own.

        Switching up-scalings off makes frames smaller and fewer, for a grader that would shrink them anyway;
        ``shrink`` switches off the last that many in space.
        Raises UserError naming the file that is missing or does not fit.
        """
        path = Path(path)
        weights = weights_file(path)
        try:
            state = {name: value for name, value in _read(weights).items() if name.startswith("decoder.")}
            config = read_config(path / "config.json") if path.is_dir() else _infer_config(state, weights.name)
        except UserError:
            raise
        except (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"light decoder: {weights} does not hold a TAEHV decoder ({brief(error)}); fetch it again"
            ) from error
        config = replace(
            config,
            time_upscale=time_upscale or config.time_upscale,
            space_upscale=shrunk(space_upscale or config.space_upscale, shrink),
        )
        scaled = weights.name.startswith("lighttaew")
        if scaled and statistics is None:
            raise UserError(
                f"light decoder: {weights} needs the VAE's latents_mean and latents_std; load it with a model"
            )
        if statistics is not None and len(statistics[0]) != config.latent_channels:
            raise UserError(
                f"light decoder: {weights} decodes latents of {config.latent_channels} channels, but the model's VAE "
                f"makes {len(statistics[0])}; give taew2_2 for 48, taew2_1 for 16"
            )
        model = cls(config, statistics if scaled else None)
        for index, layer in enumerate(model.decoder):
            name = f"decoder.{index}.conv.weight"
            if isinstance(layer, TimeGrow) and name in state:
                # An up-scaling switched off in time keeps the newest of its frames: the last channels.
                state[name] = state[name][-layer.conv.out_channels :]
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(
                f"light decoder: {weights} does not fit its sizes {asdict(config)} ({brief(error)}); fetch it again"
            ) from error
        model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        check_finite(model, "light decoder", weights.parent, weights.stem)
        return model


def weights_file(path: Path) -> Path:
    """The file of a light decoder's folder, the file itself, or one of the hub, fetched; UserError if it is missing."""
    on_hub = None if path.exists() else hub_file(path.as_posix(), (".safetensors", ".pth"))
    if on_hub is not None:
        return fetched(*on_hub, "light decoder")
    weights = path / "model.safetensors" if path.is_dir() else path
    if not weights.is_file():
        raise UserError(f"light decoder: {weights} is missing; give a folder made by LightDecoder.save or a taew file")
    return weights


def _read(weights: Path) -> dict[str, Tensor]:
    """The tensors of a file; of a pickle (.pth) only tensors are taken, and nothing in it is run."""
    if weights.suffix != ".pth":
        return load_file(weights)
    try:
        state: dict[str, Tensor] = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, and advises to run what is in it
        raise ValueError("it is no file of tensors") from error
    return state


def shrunk(space_upscale: tuple[bool, bool, bool], shrink: int) -> tuple[bool, bool, bool]:
    """The switches with the last ``shrink`` true ones off; UserError if there are not so many."""
    doubling = [stage for stage in range(3) if space_upscale[stage]]
    if shrink > len(doubling):
        raise UserError(f"decoder.shrink is {shrink}, but this decoder doubles only {len(doubling)} times; give that")
    off = doubling[len(doubling) - shrink :]
    first, second, third = (space_upscale[stage] and stage not in off for stage in range(3))
    return first, second, third


def read_config(file: Path) -> LightDecoderConfig:
    """The sizes in a folder's config.json; UserError if it is missing."""
    if not file.is_file():
        raise UserError(f"light decoder: {file} is missing; it holds the sizes of the weights beside it")
    values: dict[str, Any] = json.loads(file.read_text())
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        config = LightDecoderConfig(**values)
        switches = (*config.time_upscale, *config.space_upscale)
        sizes = (*config.channels, config.latent_channels, config.patch_size)
        fine = (len(config.channels), len(switches)) == (4, 6) and all(type(switch) is bool for switch in switches)
        fine = fine and all(type(size) is int and size >= 1 for size in sizes) and config.kind in get_args(Kind)
    except TypeError:
        fine = False
    if not fine:
        raise UserError(f"light decoder: {file} does not hold the sizes of a TAEHV decoder; fetch it again")
    return config


def _infer_config(state: dict[str, Tensor], name: str) -> LightDecoderConfig:
    """Sizes of a public TAEHV file, which has no config, read off the weights' shapes.

    That the rectifiers of LightX2V's decoder for HunyuanVideo leak is only to be seen from the file's ``name``.
    """
    is_super = "decoder.0.weight" in state
    first, ends = (0, (4, 11, 18)) if is_super else (1, (8, 14, 20))
    widths = [state[f"decoder.{first}.weight"].shape[0]]
    widths += [state[f"decoder.{end}.weight"].shape[0] // (4 if is_super else 1) for end in ends]
    grows = [state[f"decoder.{end + (3 if is_super else -1)}.conv.weight"] for end in ends]
    twice = [weight.shape[0] == 2 * weight.shape[1] for weight in grows]
    return LightDecoderConfig(
        channels=(widths[0], widths[1], widths[2], widths[3]),
        latent_channels=state[f"decoder.{first}.weight"].shape[1],
        patch_size=round((state["decoder.22.weight"].shape[0] / 3) ** 0.5),
        time_upscale=(twice[0], twice[1], twice[2]),
        kind="super" if is_super else "hunyuan" if name.startswith("lighttaehy") else "taehv",
    )
