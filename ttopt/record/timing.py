"""Seconds and peak memory of each part of the work, without waiting for the GPU in the optimization loop."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

MB = 2**20


class PartTimer:
    """``with timer("decode"): ...`` adds to that part's seconds and raises its peak memory.

    On CUDA, time is taken by events on the device and read once at the end; memory is what tensors hold there. On a
    CPU, memory is the process's resident set.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds: dict[str, float] = defaultdict(float)
        self._peak_mb: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        if self.device.type == "cuda":
            stream = torch.cuda.current_stream(self.device)
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.reset_peak_memory_stats(self.device)
            start.record(stream)
            try:
                yield
            finally:
                end.record(stream)
                self._events.append((part, start, end))
                self._note(part, torch.cuda.max_memory_allocated(self.device) / MB)
        else:
            _reset_peak()
            begin = time.perf_counter()
            try:
                yield
            finally:
                self._seconds[part] += time.perf_counter() - begin
                self._note(part, _peak_mb())

    def _note(self, part: str, peak_mb: float) -> None:
        self._peak_mb[part] = max(self._peak_mb[part], peak_mb)

    def seconds(self) -> dict[str, float]:
        """Seconds of each part so far. Waits for the GPU."""
        for part, start, end in self._events:
            end.synchronize()
            self._seconds[part] += start.elapsed_time(end) / 1000
        self._events.clear()
        return {part: round(value, 4) for part, value in self._seconds.items()}

    def resume(self, seconds: Mapping[str, float], peak_mb: Mapping[str, float]) -> None:
        """Goes on from what another timer has noted."""
        self._events.clear()
        self._seconds, self._peak_mb = defaultdict(float, seconds), defaultdict(float, peak_mb)

    def add(self, seconds: Mapping[str, float], peak_mb: Mapping[str, float]) -> None:
        """Takes in what another timer has noted, beside its own."""
        for part, value in seconds.items():
            self._seconds[part] += value
        for part, value in peak_mb.items():
            self._note(part, value)

    def peak_mb(self) -> dict[str, float]:
        """Highest memory during each part, MiB."""
        return {part: round(value, 1) for part, value in self._peak_mb.items()}


def _reset_peak() -> None:
    """Linux forgets the process's highest memory so far; elsewhere the peak stays the whole run's."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MB if sys.platform == "darwin" else peak / 1024
