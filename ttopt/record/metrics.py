"""How far a video moved from another one."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ttopt.data.video import sample_frames

MAX_PSNR = 100.0  # two equal videos; infinity does not fit into JSON
EQUAL = {"ssim": 1.0, "psnr": MAX_PSNR}
MOST_FRAMES = 16  # SSIM is slow, and needs many copies of what it compares
LONGEST_SIDE = 512


def drift(video: Tensor, base: Tensor) -> dict[str, float]:
    """SSIM and PSNR (dB, at most 100) of ``video`` to ``base``, both (T,3,H,W) float in [0,1], over the frames that are
    ``compared``; for SSIM they are shrunk to 512 pixels where they are larger."""
    chosen = compared(len(video))
    few, others = video[chosen], base[chosen]
    psnr = peak_signal_noise_ratio(few, others, data_range=1.0)
    scale = min(1.0, LONGEST_SIDE / max(video.shape[-2:]))
    if scale < 1:
        size = [round(side * scale) for side in video.shape[-2:]]
        few, others = (interpolate(frames, size, mode="area") for frames in (few, others))
    return {"ssim": similarity(few, others), "psnr": min(float(psnr), MAX_PSNR)}


def compared(frames: int) -> list[int]:
    """The numbers of at most 16 evenly spaced frames of a video, first and last included."""
    return sample_frames(min(MOST_FRAMES, frames), frames)


def similarity(images: Tensor, others: Tensor) -> float:
    """Mean SSIM of two equally long rows of images, (N,3,H,W) float in [0,1]."""
    value = structural_similarity_index_measure(images, others, data_range=1.0)
    assert isinstance(value, Tensor)
    return float(value)
