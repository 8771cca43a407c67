"""What GPUs can do, for ``ttopt plan``: the makers' numbers, dense (without sparsity)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Peak rates in FLOP/s by precision, memory in GiB, bytes/s of the memory and to other GPUs (one way), watts."""

    name: str
    bf16: float
    tf32: float
    fp32: float
    memory: float
    bandwidth: float
    link: float
    watts: float
    source: str


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("H100", 989e12, 494e12, 67e12, 80, 3.35e12, 450e9, 700, "NVIDIA H100 data sheet, SXM"),
        # 141 GB in the data sheet, read as 10^9 bytes each: the careful reading.
        Gpu("H200", 989e12, 494e12, 67e12, 141 / 1.0737, 4.8e12, 450e9, 700, "NVIDIA H200 data sheet, SXM"),
        Gpu("A100", 312e12, 156e12, 19.5e12, 80, 2.039e12, 300e9, 400, "NVIDIA A100 80GB data sheet, SXM"),
        Gpu("L40S", 362e12, 183e12, 91.6e12, 48, 0.864e12, 32e9, 350, "NVIDIA L40S data sheet"),
        Gpu("4090", 165.2e12, 82.6e12, 82.6e12, 24, 1.008e12, 32e9, 450, "NVIDIA Ada white paper, RTX 4090"),
    )
}
