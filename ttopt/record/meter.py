"""What a method costs on one sample, counted while it runs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ttopt.models.reasoner import Reasoner
from ttopt.record.result import Cost
from ttopt.record.timing import PartTimer


class _Pausing:
    _paused = False
    _not_counted = 0.0  # seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is only made for the record and no part of the method: forwards and seconds do not count."""
        begin, self._paused = time.perf_counter(), True
        try:
            yield
        finally:
            self._paused = False
            self._not_counted += time.perf_counter() - begin


class Meter(_Pausing):
    """``with Meter(reasoner) as meter: ...`` counts the transformer's forward and backward passes by itself.

    Whoever samples a video adds its length to ``generated_seconds``; whoever asks a vision-language model adds to
    ``vlm_calls``. ``timer`` takes the seconds and the memory of each part. It may be entered again, and counts on.
    """

    def __init__(self, reasoner: Reasoner) -> None:
        self.timer = PartTimer(reasoner.device)
        self.generated_seconds = 0.0
        self.vlm_calls = 0
        self.forwards = 0
        self._elapsed = 0.0  # before the current entry
        self._begin: float | None = None
        self._entries = 0
        self._reasoner = reasoner

    def __enter__(self) -> Meter:
        if self._entries == 0:
            self._begin = time.perf_counter()
            self._reasoner.observers.append(self._count)
        self._entries += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._entries -= 1
        if self._entries == 0:
            self._elapsed, self._begin = self.total_seconds, None
            self._reasoner.observers.remove(self._count)

    def computing(self, rows: Sequence[int]) -> None:
        """Which samples the next forwards are for: the one there is."""

    def state(self, number: int = 0) -> dict[str, Any]:
        """All counts so far, in JSON's types, for ``resume``."""
        return {
            "generated_seconds": self.generated_seconds,
            "vlm_calls": self.vlm_calls,
            "forwards": self.forwards,
            "total": self.total_seconds,
            "not_counted": self._not_counted,
            "seconds": self.timer.seconds(),
            "peak_mb": self.timer.peak_mb(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Counts on from an earlier process's ``state``; what this one has counted so far was a repetition."""
        self.generated_seconds, self.vlm_calls = state["generated_seconds"], state["vlm_calls"]
        self.forwards, self._not_counted, self._elapsed = state["forwards"], state["not_counted"], state["total"]
        self._begin = None if self._begin is None else time.perf_counter()
        self.timer.resume(state["seconds"], state["peak_mb"])

    @property
    def total_seconds(self) -> float:
        """Since the beginning, pauses included."""
        return self._elapsed + (0.0 if self._begin is None else time.perf_counter() - self._begin)

    def cost(self) -> Cost:
        """So far."""
        seconds = self.total_seconds - self._not_counted
        return Cost(round(self.generated_seconds, 4), self.forwards, round(seconds, 3), self.vlm_calls)

    def add(self, seconds: float, not_counted: float, parts: Mapping[str, float], peak_mb: Mapping[str, float]) -> None:
        """This sample's share of work that was done for several."""
        self._elapsed += seconds
        self._not_counted += not_counted
        self.timer.add(parts, peak_mb)

    def _count(self, velocity: Tensor) -> None:
        if self._paused:
            return
        videos = len(velocity)
        self.forwards += videos
        if velocity.requires_grad:
            velocity.register_hook(lambda gradient: self._count_backward(videos))

    def _count_backward(self, videos: int) -> None:
        self.forwards += 2 * videos


class RowTimer(PartTimer):
    """Keeps apart for which rows of a batch the parts' seconds were."""

    def __init__(self, device: torch.device, rows: Sequence[int]) -> None:
        super().__init__(device)
        self.rows = tuple(rows)
        self._named: dict[str, tuple[str, tuple[int, ...]]] = {}  # part and rows, by what the timer calls them

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        name = f"{part} {self.rows}"
        self._named[name] = part, self.rows
        with super().__call__(name):
            yield

    def share(self, row: int) -> tuple[dict[str, float], dict[str, float]]:
        """A row's seconds of each part, shared equally with those it was computed with, and the peaks, MiB."""
        seconds: dict[str, float] = defaultdict(float)
        peaks: dict[str, float] = defaultdict(float)
        spent, highest = self.seconds(), self.peak_mb()
        for name, (part, rows) in self._named.items():
            if row in rows and name in spent:
                seconds[part] += spent[name] / len(rows)
                peaks[part] = max(peaks[part], highest[name])
        return dict(seconds), dict(peaks)


class SharedMeter(_Pausing):
    """Measures work on a batch of samples, and gives each sample's own meter, which stands still meanwhile, its share:
    the forwards that were for it, and of the seconds an equal part of those that it and others were computed in. A
    sample that has stopped does not pay for the steps of the others."""

    def __init__(self, reasoner: Reasoner, meters: Sequence[Meter]) -> None:
        self._reasoner, self._meters = reasoner, list(meters)
        self._rows = list(range(len(meters)))
        self._spent = [0.0] * len(meters)
        self.timer = RowTimer(reasoner.device, self._rows)

    def __enter__(self) -> SharedMeter:
        self._since = time.perf_counter()
        self._reasoner.observers.append(self._count)
        return self

    def __exit__(self, *error: object) -> None:
        self._reasoner.observers.remove(self._count)
        for number, meter in enumerate(self._meters):
            meter.add(*self._share(number))

    def computing(self, rows: Sequence[int]) -> None:
        """Which samples, by their places in the batch, the next forward and backward passes are for."""
        self._settle()
        self._rows = list(rows)
        self.timer.rows = tuple(rows)

    def state(self, number: int) -> dict[str, Any]:
        """That of a sample's meter, with its share so far."""
        state = self._meters[number].state()
        seconds, not_counted, parts, peak_mb = self._share(number)
        own = defaultdict(float, state["seconds"])
        for part, value in parts.items():
            own[part] += value
        peaks = {part: max(value, state["peak_mb"].get(part, 0.0)) for part, value in peak_mb.items()}
        return state | {
            "total": state["total"] + seconds,
            "not_counted": state["not_counted"] + not_counted,
            "seconds": dict(own),
            "peak_mb": state["peak_mb"] | peaks,
        }

    def resume(self, *states: Mapping[str, Any]) -> None:
        """As Meter.resume, with the state of each sample."""
        for meter, state in zip(self._meters, states, strict=True):
            meter.resume(state)
        self._spent, self._not_counted = [0.0] * len(self._meters), 0.0
        self._since = time.perf_counter()
        self.timer.resume({}, {})

    def _settle(self) -> None:
        """Gives the seconds since the last time to the rows that they were for."""
        now = time.perf_counter()
        for row in self._rows:
            self._spent[row] += (now - self._since) / len(self._rows)
        self._since = now

    def _share(self, number: int) -> tuple[float, float, dict[str, float], dict[str, float]]:
        self._settle()
        return self._spent[number], self._not_counted / len(self._meters), *self.timer.share(number)

    def _count(self, velocity: Tensor) -> None:
        if self._paused:
            return
        self._count_each(1)
        if velocity.requires_grad:
            velocity.register_hook(lambda gradient: self._count_each(2))

    def _count_each(self, passes: int) -> None:
        for row in self._rows:
            self._meters[row].forwards += passes


@contextmanager
def together(reasoner: Reasoner, meters: Sequence[Meter]) -> Iterator[Meter | SharedMeter]:
    """What measures the work on these samples: the meter of a single one, or one that shares the work out."""
    with meters[0] if len(meters) == 1 else SharedMeter(reasoner, meters) as meter:
        yield meter
