"""Differentiable decoding: equal to the plain VAE, checkpointed or not; the light decoder is TAEHV's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny import tiny_reasoner_folder, tiny_vae_21
from torch import Tensor, nn

from ttopt.errors import UserError
from ttopt.models.reasoner import (
    LightDecoder,
    LightDecoderConfig,
    Reasoner,
    Schedule,
    StandardDecoder,
    straight_through_clamp,
)
from ttopt.models.reasoner.condition import latent_statistics

ALL = range(9)
SMALL = LightDecoderConfig(channels=(8, 6, 4, 4), latent_channels=16, patch_size=1)


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory: pytest.TempPathFactory) -> Reasoner:
    return Reasoner.load(tiny_reasoner_folder(tmp_path_factory.mktemp("tiny")), schedule=Schedule())


@pytest.fixture
def latents() -> Tensor:
    return torch.randn((2, 16, 3, 6, 6), generator=torch.Generator().manual_seed(0))


def small_decoder(config: LightDecoderConfig = SMALL) -> LightDecoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return LightDecoder(config).eval()


# --- straight-through clamp


def test_clamp_is_exact_forward_and_identity_backward() -> None:
    value = torch.tensor([-3.3, -1.0, 0.2, 1.0, 7.7], requires_grad=True)
    clamped = straight_through_clamp(value, -1.0, 1.0)
    assert torch.equal(clamped, value.detach().clamp(-1.0, 1.0))
    (gradient,) = torch.autograd.grad((clamped * torch.arange(5.0)).sum(), value)
    assert torch.equal(gradient, torch.arange(5.0))


# --- standard decoder


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("style", ["2.1", "2.2"])
def test_standard_decoder_equals_the_vae(reasoner: Reasoner, latents: Tensor, style: str, checkpoint: bool) -> None:
    """Values and gradient against diffusers' own decode, whose clamp lets no gradient through saturated pixels."""
    vae = reasoner.vae if style == "2.2" else tiny_vae_21()
    decoder = StandardDecoder(vae, checkpoint)
    mean, inverse_std = latent_statistics(vae, "cpu")
    ours, theirs = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    decoded = vae.decode(theirs / inverse_std + mean, return_dict=False)[0]  # (B, 3, T, H, W) in [-1, 1]
    video = (decoded * 0.5 + 0.5).transpose(1, 2)
    assert video.shape == (2, 9, 3, 48, 48)
    torch.testing.assert_close(decoder(latents, ALL), video.detach(), atol=1e-6, rtol=0)
    # Some frames, out of order, one twice; later latent frames are not even decoded.
    torch.testing.assert_close(decoder(latents, [3, 0, 3]), video.detach()[:, [3, 0, 3]], atol=1e-6, rtol=0)

    frames = [8, 0, 5]
    free = (video[:, frames] > 0) & (video[:, frames] < 1)
    weight = torch.randn(free.shape, generator=torch.Generator().manual_seed(2)) * free
    (wanted,) = torch.autograd.grad((video[:, frames] * weight).sum(), theirs)
    (found,) = torch.autograd.grad((decoder(ours, frames) * weight).sum(), ours)
    assert free.float().mean() > 0.5 and wanted.abs().min() > 0
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_checkpointing_stores_less(reasoner: Reasoner, latents: Tensor) -> None:
    def stored(checkpoint: bool) -> int:
        sizes: dict[int, int] = {}

        def pack(value: Tensor) -> Tensor:
            sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        leaf = latents.clone().requires_grad_(True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            frames = StandardDecoder(reasoner.vae, checkpoint)(leaf, ALL)
        frames.sum().backward()
        return sum(sizes.values())

    assert stored(True) < 0.5 * stored(False)


def test_saturated_pixels_keep_their_gradient(reasoner: Reasoner, latents: Tensor) -> None:
    leaf = (100.0 * latents).requires_grad_(True)
    frames = StandardDecoder(reasoner.vae)(leaf, [4])
    outside = (frames == 0) | (frames == 1)
    if not outside.any():
        pytest.skip("random weights saturate nothing")
    (gradient,) = torch.autograd.grad((frames * outside).sum(), leaf)
    assert gradient.abs().sum() > 0


def test_frames_outside_the_video_are_refused(reasoner: Reasoner, latents: Tensor) -> None:
    for frames in ([], [-1], [9]):
        with pytest.raises(ValueError, match="outside"):
            StandardDecoder(reasoner.vae)(latents, frames)
        with pytest.raises(ValueError, match="outside"):
            small_decoder()(latents, frames)


# --- light decoder


def reference_decode(decoder: LightDecoder, latents: Tensor) -> Tensor:
    """TAEHV's decoder written as a stream: one latent frame after another, a memory of one frame per block."""
    layers = list(decoder.decoder)
    memory: dict[int, Tensor] = {}
    output: list[Tensor] = []

    def push(x: Tensor, index: int) -> None:
        if index == len(layers):
            output.append(F.pixel_shuffle(x, decoder.config.patch_size))
            return
        layer = layers[index]
        kind = type(layer).__name__
        if kind == "MemoryBlock":
            past = memory.get(index, torch.zeros_like(x))
            memory[index] = x
            push(F.relu(layer.conv(torch.cat([x, past], 1)) + x), index + 1)  # type: ignore[operator]
        elif kind == "TimeGrow":
            for grown in layer.conv(x).split(x.shape[1], dim=1):  # type: ignore[operator]
                push(grown, index + 1)
        else:
            push(layer(x), index + 1)

    for frame in latents.unbind(2):
        push(frame, 0)
    return torch.stack(output[decoder.growth - 1 :], 1).clamp(0, 1)


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("time_upscale", [(False, True, True), (False, False, True), (True, False, False)])
def test_light_decoder_equals_a_streaming_reference(
    latents: Tensor, patch_size: int, time_upscale: tuple[bool, bool, bool]
) -> None:
    config = LightDecoderConfig((8, 6, 4, 4), 16, patch_size, time_upscale, (True, True, patch_size == 1))
    decoder = small_decoder(config)
    expected = reference_decode(decoder, latents)
    step = 4 // decoder.growth
    torch.testing.assert_close(decoder(latents, range(0, 9, step)), expected, atol=1e-6, rtol=0)
    assert expected.shape == (2, 8 // step + 1, 3, 48, 48)


def test_light_decoder_decodes_any_frames(latents: Tensor) -> None:
    decoder = small_decoder()
    video = decoder(latents, ALL)
    assert video.dtype == torch.float32
    assert video.min() >= 0 and video.max() <= 1
    for frames in ([8], [0], [5, 1, 1], [2, 3, 4]):
        torch.testing.assert_close(decoder(latents, frames), video[:, frames], atol=1e-6, rtol=0)
    # One video alone is the same as in a batch, and later latent frames change nothing.
    torch.testing.assert_close(decoder(latents[1:], ALL)[0], video[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(decoder(latents[:, :, :2], range(5)), video[:, :5], atol=1e-6, rtol=0)


def test_light_decoder_has_the_public_parameter_names() -> None:
    shapes = {name: tuple(value.shape) for name, value in LightDecoder().state_dict().items()}
    expected: dict[str, tuple[int, ...]] = {"decoder.1.weight": (256, 48, 3, 3), "decoder.1.bias": (256,)}
    widths, grown = [256, 128, 64, 64], [256, 256, 128]
    for stage in range(3):
        width, first = widths[stage], 3 + 6 * stage
        for block in range(first, first + 3):
            for layer, wide in ((0, 2 * width), (2, width), (4, width)):
                expected[f"decoder.{block}.conv.{layer}.weight"] = (width, wide, 3, 3)
                expected[f"decoder.{block}.conv.{layer}.bias"] = (width,)
        expected[f"decoder.{first + 4}.conv.weight"] = (grown[stage], width, 1, 1)
        expected[f"decoder.{first + 5}.weight"] = (widths[stage + 1], width, 3, 3)
    expected |= {"decoder.22.weight": (12, 64, 3, 3), "decoder.22.bias": (12,)}
    assert shapes == expected


def test_light_decoder_saves_and_loads(tmp_path: Path, latents: Tensor) -> None:
    decoder = small_decoder()
    decoder.save(tmp_path)
    loaded = LightDecoder.load(tmp_path)
    assert loaded.config == decoder.config
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded(latents, ALL), decoder(latents, ALL))


@pytest.mark.parametrize("name, save", [("taew.safetensors", save_file), ("taew.pth", torch.save)])
def test_light_decoder_reads_a_public_file(
    tmp_path: Path, latents: Tensor, name: str, save: Callable[[dict[str, Tensor], Path], None]
) -> None:
    """A public file has no config and holds the encoder as well; its sizes are read off the shapes."""
    decoder = small_decoder()
    file = tmp_path / name
    save({**decoder.state_dict(), "encoder.0.weight": torch.zeros(1)}, file)
    loaded = LightDecoder.load(file)
    assert loaded.config == decoder.config
    assert torch.equal(loaded(latents, ALL), decoder(latents, ALL))


def public_super(widths: tuple[int, ...], channels: int) -> dict[str, Tensor]:
    """Random weights under the names of taew2_2_super, whose up-scalings are convolutions to four pixels."""
    shapes: dict[str, tuple[int, ...]] = {"decoder.0.weight": (widths[0], channels, 1, 1)}
    for stage, (wide, narrow) in enumerate(pairwise(widths)):
        first = 1 + 7 * stage
        for block in range(first, first + 3):
            shapes[f"decoder.{block}.conv.0.weight"] = (2 * wide, 1, 7, 7)
            shapes[f"decoder.{block}.conv.1.weight"] = (4 * wide, 2 * wide, 1, 1)
            shapes[f"decoder.{block}.conv.1.bias"] = (4 * wide,)
            shapes[f"decoder.{block}.conv.3.weight"] = (wide, 4 * wide, 1, 1)
        shapes[f"decoder.{first + 3}.weight"] = (4 * narrow, wide, 3, 3)
        shapes[f"decoder.{first + 3}.bias"] = (4 * narrow,)
        shapes[f"decoder.{first + 6}.conv.weight"] = (narrow * (2 if stage else 1), narrow, 1, 1)
    shapes |= {"decoder.22.weight": (12, widths[3], 3, 3), "decoder.22.bias": (12,)}
    source = torch.Generator().manual_seed(3)
    return {name: 0.2 * torch.randn(shape, generator=source) for name, shape in shapes.items()}


def test_the_super_decoder_is_read_off_its_file(tmp_path: Path, latents: Tensor) -> None:
    state = public_super((8, 6, 4, 4), 16)
    save_file({**state, "encoder.0.weight": torch.zeros(1)}, tmp_path / "taew2_2_super.safetensors")
    decoder = LightDecoder.load(tmp_path / "taew2_2_super.safetensors")
    assert decoder.config == LightDecoderConfig((8, 6, 4, 4), 16, kind="super")

    def weight(index: str) -> Tensor:
        return state[f"decoder.{index}.weight"]

    x = F.conv2d(latents[:1, :, 0], weight("0"))[None]  # (T, 1, C, H, W), one latent frame
    for stage in range(3):
        first = 1 + 7 * stage
        for block in range(first, first + 3):
            past = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
            seen = torch.cat([x, past], 2).flatten(0, 1)
            seen = F.conv2d(seen, weight(f"{block}.conv.0"), padding=3, groups=seen.shape[1])
            seen = F.conv2d(seen, weight(f"{block}.conv.1"), state[f"decoder.{block}.conv.1.bias"]).relu()
            x = x + F.conv2d(seen, weight(f"{block}.conv.3"))[:, None]
        grown = F.conv2d(x.flatten(0, 1), weight(f"{first + 3}"), state[f"decoder.{first + 3}.bias"], padding=1)
        grown = F.conv2d(F.pixel_shuffle(grown.relu(), 2), weight(f"{first + 6}.conv"))
        x = torch.stack([half for frame in grown.split(1) for half in frame.chunk(2 if stage else 1, 1)])
    video = F.pixel_shuffle(F.conv2d(x.flatten(0, 1), weight("22"), state["decoder.22.bias"], padding=1), 2).clamp(0, 1)
    assert video.std() > 0.1 and len(video) == 4  # of which the last is the video's first
    torch.testing.assert_close(decoder(latents[:1, :, :1], [0])[0], video[3:], atol=1e-6, rtol=0)
    torch.testing.assert_close(decoder(latents, [5, 1]), decoder(latents, ALL)[:, [5, 1]], atol=1e-6, rtol=0)
    # Switched off, the last doubling takes the mean of the four pixels that it would have made.
    assert LightDecoder.load(tmp_path / "taew2_2_super.safetensors", shrink=1)(latents, [8]).shape[-2:] == (48, 48)
    decoder.save(tmp_path / "own")
    assert torch.equal(LightDecoder.load(tmp_path / "own")(latents, [3]), decoder(latents, [3]))


def test_the_decoder_for_hunyuan_video_leaks(tmp_path: Path, latents: Tensor) -> None:
    """lighttaehy1_5: the same layout with leaky rectifiers, videos from -1 to 1 and the VAE's own latents."""
    state = small_decoder().state_dict()
    save_file(state, tmp_path / "lighttaehy1_5.safetensors")
    save_file(state, tmp_path / "taew2_1.safetensors")
    leaky, plain = (LightDecoder.load(tmp_path / f"{name}.safetensors") for name in ("lighttaehy1_5", "taew2_1"))
    for module in plain.modules():
        if isinstance(module, nn.Sequential):
            for index, layer in enumerate(module):
                module[index] = nn.LeakyReLU(0.2) if isinstance(layer, nn.ReLU) else layer
        if hasattr(module, "activation"):
            module.activation = nn.LeakyReLU(0.2)
    video = plain.decoder[-1].register_forward_hook(lambda *got: got[2] / 2 + 0.5) and plain(latents / 1.03682, ALL)
    torch.testing.assert_close(leaky(latents, ALL), video, atol=1e-6, rtol=0)


def test_a_decoder_for_another_vae_is_refused(tmp_path: Path) -> None:
    save_file(public_super((8, 6, 4, 4), 16), tmp_path / "taew.safetensors")
    with pytest.raises(UserError, match=r"taew\.safetensors decodes latents of 16 channels, .* makes 48; give taew2_2"):
        LightDecoder.load(tmp_path / "taew.safetensors", statistics=([0.0] * 48, [1.0] * 48))


def test_lighttae_gets_the_latents_of_the_vae(tmp_path: Path, latents: Tensor) -> None:
    """LightX2V's own decoders: normalized latents, read by taew, are to be scaled back first."""
    decoder = small_decoder()
    for name in ("taew2_1", "lighttaew2_1"):
        save_file(decoder.state_dict(), tmp_path / f"{name}.safetensors")
    mean, std = [0.1 * n for n in range(16)], [1.0 + 0.05 * n for n in range(16)]
    plain = LightDecoder.load(tmp_path / "taew2_1.safetensors", statistics=(mean, std))
    scaled = LightDecoder.load(tmp_path / "lighttaew2_1.safetensors", statistics=(mean, std))
    raw = latents * torch.tensor(std).view(1, -1, 1, 1, 1) + torch.tensor(mean).view(1, -1, 1, 1, 1)
    assert torch.equal(plain(latents, ALL), decoder(latents, ALL))
    assert torch.equal(scaled(latents, ALL), decoder(raw, ALL))
    with pytest.raises(UserError, match=r"lighttaew2_1\.safetensors needs the VAE's latents_mean"):
        LightDecoder.load(tmp_path / "lighttaew2_1.safetensors")


def test_switching_time_upscaling_off_keeps_the_newest_frames(tmp_path: Path, latents: Tensor) -> None:
    decoder = small_decoder()
    decoder.save(tmp_path)
    half = LightDecoder.load(tmp_path, time_upscale=(False, True, False))
    even = [0, 2, 4, 6, 8]
    torch.testing.assert_close(half(latents, even), decoder(latents, even), atol=1e-6, rtol=0)
    assert torch.equal(half(latents, [1, 3]), half(latents, [2, 4]))  # nearest, ties upwards
    quarter = LightDecoder.load(tmp_path, time_upscale=(False, False, False), space_upscale=(True, True, False))
    assert quarter(latents, [0, 4, 8]).shape == (2, 3, 3, 24, 24)


def test_light_decoder_passes_gradients_through_saturation(latents: Tensor) -> None:
    decoder = small_decoder()
    assert isinstance(decoder.decoder[-1], nn.Conv2d) and decoder.decoder[-1].bias is not None
    nn.init.constant_(decoder.decoder[-1].bias, -10.0)
    leaf = latents.clone().requires_grad_(True)
    frames = decoder(leaf, [0, 8])
    assert torch.equal(frames, torch.zeros_like(frames))
    frames.sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().sum() > 0


def test_light_decoder_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        LightDecoder.load(tmp_path)
    decoder = small_decoder()
    decoder.save(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json is missing"):
        LightDecoder.load(tmp_path)
    LightDecoder(LightDecoderConfig((8, 6, 4, 2), 16, 1)).save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({name: value for name, value in state.items() if "22" not in name}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="does not fit"):
        LightDecoder.load(tmp_path)
    save_file({"decoder.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not hold a TAEHV decoder"):
        LightDecoder.load(tmp_path / "other.safetensors")
    torch.save(decoder, tmp_path / "whole.pth")  # a pickled module, which loading would have to run
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:99])
    (tmp_path / "empty.pth").touch()
    for name in ("whole", "cut", "empty"):
        with pytest.raises(UserError, match=rf"{name}\.pth does not hold a TAEHV decoder"):
            LightDecoder.load(tmp_path / f"{name}.pth")
    with pytest.raises(UserError, match="time_upscale"):
        LightDecoder(LightDecoderConfig(time_upscale=(True, True, True)))
