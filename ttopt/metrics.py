"""How far a video moved from another one."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

MAX_PSNR = 100.0  # two equal videos; infinity does not fit into JSON


def drift(video: Tensor, base: Tensor) -> dict[str, float]:
    """SSIM and PSNR (dB, at most 100) of ``video`` to ``base``, both (T,3,H,W) float in [0,1]."""
    psnr = peak_signal_noise_ratio(video, base, data_range=1.0)
    return {"ssim": similarity(video, base), "psnr": min(float(psnr), MAX_PSNR)}


def similarity(images: Tensor, others: Tensor) -> float:
    """Mean SSIM of two equally long rows of images, (N,3,H,W) float in [0,1]."""
    value = structural_similarity_index_measure(images, others, data_range=1.0)
    assert isinstance(value, Tensor)
    return float(value)
