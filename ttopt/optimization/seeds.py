"""Seeds that depend on nothing but the run's seed, the sample and the purpose."""

from __future__ import annotations

import hashlib

from ttopt.data.sample import Sample


def seed_of(run_seed: int, sample_id: str, purpose: str) -> int:
    """A seed that depends on nothing else: the same on every machine and in every order of samples."""
    digest = hashlib.sha256(f"{run_seed}/{sample_id}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def noise_name(number: int) -> str:
    """The purpose of a sample's ``number``-th noise, for ``seed_of``; number 0 is every method's first."""
    return "noise" if number == 0 else f"noise {number}"


def noise_seed(run_seed: int, sample: Sample, number: int = 0) -> int:
    """The seed of a sample's ``number``-th noise; number 0 is the same noise in every method."""
    return seed_of(run_seed, sample.id, noise_name(number))
