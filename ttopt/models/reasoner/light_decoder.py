"""A small decoder from Wan latents to frames, cheap enough for the optimization loop.

The architecture is that of TAEHV (github.com/madebyollin/taehv, MIT), whose published Wan weights this class
reads; the parameter names are the same. It stands in for the standard VAE in VLM-as-Teacher
(arXiv 2606.02564), Algorithm 1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ttopt.errors import UserError, brief
from ttopt.models.checkpoint import check_finite
from ttopt.models.hub import fetched, hub_file
from ttopt.models.reasoner.decoder import TIME_SCALE, check_frames, straight_through_clamp

LAST_UPSCALE = 18  # index of the last up-scaling; behind it no frame looks back at another


class SoftClamp(nn.Module):
    """Squash latents smoothly into (-3, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3.0) * 3.0


class MemoryBlock(nn.Module):
    """Residual block that sees each frame together with the frame before it (zeros before the first)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor, batch: int) -> Tensor:
        per_video = x.view(batch, -1, *x.shape[1:])  # (B, T, C, H, W)
        past = torch.cat([torch.zeros_like(per_video[:, :1]), per_video[:, :-1]], dim=1).flatten(0, 1)
        return F.relu(self.conv(torch.cat([x, past], dim=1)) + x)


class TimeGrow(nn.Module):
    """Each frame becomes ``stride`` frames through a 1x1 convolution."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        grown: Tensor = self.conv(x)
        return grown.reshape(-1, *x.shape[1:])


@dataclass(frozen=True)
class LightDecoderConfig:
    """Sizes of a LightDecoder. The defaults are those of taew2_2, the decoder for Wan2.2-TI2V-5B.

    ``channels``: width of the four stages. ``time_upscale``, ``space_upscale``: whether each of the three
    up-scalings doubles; two in time give the full 4 frames per latent frame. Spatial factor: 2 for each true
    ``space_upscale``, times ``patch_size``.
    """

    channels: tuple[int, int, int, int] = (256, 128, 64, 64)
    latent_channels: int = 48
    patch_size: int = 2
    time_upscale: tuple[bool, bool, bool] = (False, True, True)
    space_upscale: tuple[bool, bool, bool] = (True, True, True)

    @classmethod
    def public(cls, channels: int) -> LightDecoderConfig:
        """The public decoder for latents of so many channels: taew2_1 for Wan 2.1's VAE (16), else taew2_2."""
        return cls(latent_channels=16, patch_size=1) if channels == 16 else cls()


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
        mean, std = statistics or ([0.0], [1.0])
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1, 1), persistent=False)
        self.is_scaled = statistics is not None
        config = config or LightDecoderConfig()
        self.config = config
        self.growth = 2 ** sum(config.time_upscale)  # decoded frames per latent frame
        if self.growth > TIME_SCALE:
            raise UserError("light decoder: at most two of the three time_upscale switches may be true")
        widths = config.channels
        layers: list[nn.Module] = [
            SoftClamp(),
            nn.Conv2d(config.latent_channels, widths[0], 3, padding=1),
            nn.ReLU(),
        ]
        for stage in range(3):
            width = widths[stage]
            layers += [MemoryBlock(width) for _ in range(3)]
            layers += [
                nn.Upsample(scale_factor=2 if config.space_upscale[stage] else 1),
                TimeGrow(width, 2 if config.time_upscale[stage] else 1),
                nn.Conv2d(width, widths[stage + 1], 3, padding=1, bias=False),
            ]
        layers += [nn.ReLU(), nn.Conv2d(widths[3], 3 * config.patch_size**2, 3, padding=1)]
        self.decoder = nn.Sequential(*layers)

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
            x = layer(x, batch) if isinstance(layer, MemoryBlock) else layer(x)

        # The last up-scaling and the output convolutions are the dearest: only for the wanted frames.
        last = 2 if self.config.time_upscale[2] else 1
        sources = sorted({frame // last for frame in decoded})
        x = x.view(batch, -1, *x.shape[1:])[:, sources].flatten(0, 1)
        for layer in layers[LAST_UPSCALE : LAST_UPSCALE + 2]:  # up in space, then in time
            x = layer(x)
        x = x.view(batch, -1, *x.shape[1:])  # (B, len(sources) * last, C, H, W)
        x = x[:, [sources.index(frame // last) * last + frame % last for frame in decoded]].flatten(0, 1)
        for layer in layers[LAST_UPSCALE + 2 :]:
            x = layer(x)
        x = F.pixel_shuffle(x, self.config.patch_size)
        return straight_through_clamp(x.view(batch, -1, *x.shape[1:]).float(), 0.0, 1.0)

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

        A file whose name begins with lighttae takes the VAE's own latents, whose ``statistics`` it then needs.

        Switching up-scalings off makes frames smaller and fewer, for a grader that would shrink them anyway;
        ``shrink`` switches off the last that many in space.
        Raises UserError naming the file that is missing or does not fit.
        """
        path = Path(path)
        weights = weights_file(path)
        try:
            state = {name: value for name, value in _read(weights).items() if name.startswith("decoder.")}
            config = read_config(path / "config.json") if path.is_dir() else _infer_config(state)
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
        scaled = weights.name.startswith("lighttae")
        if scaled and statistics is None:
            raise UserError(
                f"light decoder: {weights} needs the VAE's latents_mean and latents_std; load it with a model"
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
        fine = fine and all(type(size) is int and size >= 1 for size in sizes)
    except TypeError:
        fine = False
    if not fine:
        raise UserError(f"light decoder: {file} does not hold the sizes of a TAEHV decoder; fetch it again")
    return config


def _infer_config(state: dict[str, Tensor]) -> LightDecoderConfig:
    """Sizes of a public TAEHV file, which has no config, read off the weights' shapes."""
    widths = [state[f"decoder.{index}.weight"].shape[0] for index in (1, 8, 14, 20)]
    grows = [state[f"decoder.{7 + 6 * i}.conv.weight"].shape[0] == 2 * widths[i] for i in range(3)]
    return LightDecoderConfig(
        channels=(widths[0], widths[1], widths[2], widths[3]),
        latent_channels=state["decoder.1.weight"].shape[1],
        patch_size=round((state["decoder.22.weight"].shape[0] / 3) ** 0.5),
        time_upscale=(grows[0], grows[1], grows[2]),
    )
