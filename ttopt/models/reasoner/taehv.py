"""The layers of TAEHV's decoders (github.com/madebyollin/taehv, MIT), under its parameter names.

Three public kinds: taehv; super, whose blocks are of ConvNeXt's style (taew2_2_super); and hunyuan, LightX2V's
decoder for HunyuanVideo 1.5 (lighttaehy1_5), which is taehv's with leaky rectifiers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["taehv", "super", "hunyuan"]
LAST_UPSCALE = 18  # index of the first layer of the last up-scaling; from there on no frame looks back at another


class SoftClamp(nn.Module):
    """Squash latents smoothly into (-3, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3.0) * 3.0


class MemoryBlock(nn.Module):
    """Residual block that sees each frame together with the frame before it (zeros before the first)."""

    def __init__(self, channels: int, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.conv = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 3, padding=1),
            activation,
            nn.Conv2d(channels, channels, 3, padding=1),
            activation,
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor, batch: int) -> Tensor:
        changed: Tensor = self.activation(self.conv(_with_past(x, batch)) + x)
        return changed


class SuperMemoryBlock(nn.Module):
    """The same in ConvNeXt's style: a 7x7 convolution of each channel, then two 1x1 ones through a wider layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * channels, 2 * channels, 7, padding=3, groups=2 * channels, bias=False),
            nn.Conv2d(2 * channels, 4 * channels, 1),
            nn.ReLU(),
            nn.Conv2d(4 * channels, channels, 1, bias=False),
        )

    def forward(self, x: Tensor, batch: int) -> Tensor:
        seen: Tensor = self.conv(_with_past(x, batch))
        return seen + x


def _with_past(x: Tensor, batch: int) -> Tensor:
    """(B*T, C, H, W) -> (B*T, 2C, H, W): each frame, then the one before it."""
    per_video = x.view(batch, -1, *x.shape[1:])
    past = torch.cat([torch.zeros_like(per_video[:, :1]), per_video[:, :-1]], dim=1).flatten(0, 1)
    return torch.cat([x, past], dim=1)


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
    ``space_upscale``, times ``patch_size``. ``kind``: which of the public architectures.
    """

    channels: tuple[int, int, int, int] = (256, 128, 64, 64)
    latent_channels: int = 48
    patch_size: int = 2
    time_upscale: tuple[bool, bool, bool] = (False, True, True)
    space_upscale: tuple[bool, bool, bool] = (True, True, True)
    kind: Kind = "taehv"

    @classmethod
    def public(cls, channels: int, name: str = "") -> LightDecoderConfig:
        """The public decoder for latents of so many channels: taew2_1 for Wan 2.1's VAE (16), else taew2_2, or
        taew2_2_super where the file's ``name`` says so."""
        if "_super" in name:
            return cls((512, 256, 128, 64), kind="super")
        return cls(latent_channels=16, patch_size=1) if channels == 16 else cls()


def decoder_layers(config: LightDecoderConfig) -> nn.Sequential:
    """The layers, numbered as in the public files."""
    return _super_layers(config) if config.kind == "super" else _taehv_layers(config)


def _taehv_layers(config: LightDecoderConfig) -> nn.Sequential:
    widths = config.channels
    activation = nn.LeakyReLU(0.2) if config.kind == "hunyuan" else nn.ReLU()
    layers: list[nn.Module] = [
        SoftClamp(),
        nn.Conv2d(config.latent_channels, widths[0], 3, padding=1),
        activation,
    ]
    for stage in range(3):
        width = widths[stage]
        layers += [MemoryBlock(width, activation) for _ in range(3)]
        layers += [
            nn.Upsample(scale_factor=2 if config.space_upscale[stage] else 1),
            TimeGrow(width, 2 if config.time_upscale[stage] else 1),
            nn.Conv2d(width, widths[stage + 1], 3, padding=1, bias=False),
        ]
    layers += [activation, nn.Conv2d(widths[3], 3 * config.patch_size**2, 3, padding=1)]
    return nn.Sequential(*layers)


def _super_layers(config: LightDecoderConfig) -> nn.Sequential:
    widths = config.channels
    layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, widths[0], 1, bias=False)]
    for stage in range(3):
        width, narrower = widths[stage], widths[stage + 1]
        # The weights always make four pixels of one; an up-scaling that is switched off takes their mean.
        pixels = nn.PixelShuffle(2)
        layers += [SuperMemoryBlock(width) for _ in range(3)]
        layers += [
            nn.Conv2d(width, 4 * narrower, 3, padding=1),
            nn.ReLU(),
            pixels if config.space_upscale[stage] else nn.Sequential(pixels, nn.AvgPool2d(2)),
            TimeGrow(narrower, 2 if config.time_upscale[stage] else 1),
        ]
    layers.append(nn.Conv2d(widths[3], 3 * config.patch_size**2, 3, padding=1))
    return nn.Sequential(*layers)
