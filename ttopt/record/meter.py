"""What a method costs on one sample, counted while it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ttopt.record.result import Cost
from ttopt.record.timing import PartTimer

if TYPE_CHECKING:
    from ttopt.models.reasoner import Reasoner


class Meter:
    """``with Meter(reasoner) as meter: ...`` counts the transformer's forward and backward passes by itself.

    Whoever samples a video adds its length to ``generated_seconds``; whoever asks a vision-language model adds to
    ``vlm_calls``. ``timer`` takes the seconds and the memory of each part.
    """

    def __init__(self, reasoner: Reasoner) -> None:
        self.timer = PartTimer(reasoner.device)
        self.generated_seconds = 0.0
        self.vlm_calls = 0
        self._forwards = 0
        self._paused = False
        self._not_counted = 0.0
        self._reasoner = reasoner

    def __enter__(self) -> Meter:
        self._begin = time.perf_counter()
        self._reasoner.observers.append(self._count)
        return self

    def __exit__(self, *error: object) -> None:
        self._reasoner.observers.remove(self._count)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is only made for the record and no part of the method: forwards and seconds do not count."""
        begin, self._paused = time.perf_counter(), True
        try:
            yield
        finally:
            self._paused = False
            self._not_counted += time.perf_counter() - begin

    def add(self, forwards: int, seconds: float) -> None:
        """Work that was done for this sample before, together with others."""
        self._forwards += forwards
        self._not_counted -= seconds

    def state(self) -> dict[str, Any]:
        """All counts so far, in JSON's types, for ``resume``."""
        return {
            "generated_seconds": self.generated_seconds,
            "vlm_calls": self.vlm_calls,
            "forwards": self._forwards,
            "total": self.total_seconds,
            "not_counted": self._not_counted,
            "seconds": self.timer.seconds(),
            "peak_mb": self.timer.peak_mb(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Counts on from an earlier process's ``state``; what this one has counted so far was a repetition."""
        self.generated_seconds, self.vlm_calls = state["generated_seconds"], state["vlm_calls"]
        self._forwards, self._not_counted = state["forwards"], state["not_counted"]
        self._begin = time.perf_counter() - state["total"]
        self.timer.resume(state["seconds"], state["peak_mb"])

    @property
    def total_seconds(self) -> float:
        """Since the beginning, pauses included."""
        return time.perf_counter() - self._begin

    def cost(self) -> Cost:
        """So far."""
        seconds = self.total_seconds - self._not_counted
        return Cost(round(self.generated_seconds, 4), self._forwards, round(seconds, 3), self.vlm_calls)

    def _count(self, velocity: Tensor) -> None:
        if self._paused:
            return
        videos = len(velocity)
        self._forwards += videos
        if velocity.requires_grad:
            velocity.register_hook(lambda gradient: self._count_backward(videos))

    def _count_backward(self, videos: int) -> None:
        self._forwards += 2 * videos
