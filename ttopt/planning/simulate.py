"""How long many samples take on many GPUs: a queue of samples and its workers, simulated (``ttopt plan --gpus``).

A worker is one GPU, or the group of them that a sample needs. It loads the models once and then takes the next sample
whenever it is free. Some workers are slower, and any may die: a new one loads the models, and the sample goes back to
the front of the queue, to go on from its last saved state. Not covered: workers that wait for each other at a disk or
a network, and the wait for the cluster itself.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from ttopt.errors import UserError

NO_SAMPLE = -1


@dataclass(frozen=True)
class Workload:
    """What samples take on a worker of normal speed: arrays of one number a sample."""

    once: np.ndarray  # seconds besides the optimization steps
    step: np.ndarray  # seconds of a step
    steps: np.ndarray  # how many

    @property
    def seconds(self) -> np.ndarray:
        return self.once + self.steps * self.step


@dataclass(frozen=True)
class SimulatedWorkers:
    """The workers, and what goes wrong with them."""

    count: int
    start: float = 0.0  # seconds to load the models, at the beginning and after a failure
    slow_share: float = 0.0  # of the workers; each independently
    slow_factor: float = 1.0  # how many times longer they take
    failure_hours: float = float("inf")  # mean time between failures of one worker, exponentially distributed


@dataclass(frozen=True)
class Outcome:
    """What a simulation found."""

    makespan: float  # seconds from the start of the workers to the end of the last sample
    busy: float  # seconds of all workers together for work that was not lost
    failures: float


def simulate(work: Workload, workers: SimulatedWorkers, state_every: int = 0, seed: int = 0) -> Outcome:
    """One run over samples in their order; the same seed, the same outcome.

    A sample whose worker dies keeps its steps up to a multiple of ``state_every`` (0: none) and nothing else. Raises
    UserError if workers die too fast for any sample to end.
    """
    longest = float(work.seconds.max()) * workers.slow_factor / 3600
    if workers.failure_hours < longest:
        raise UserError(
            f"--failure-hours is {workers.failure_hours:g}, but a sample can take {longest:.3g} hours and would hardly "
            "ever end; give more"
        )
    rng = np.random.default_rng(seed)
    slower = np.where(rng.random(workers.count) < workers.slow_share, workers.slow_factor, 1.0).tolist()
    once, step, steps = work.once.tolist(), work.step.tolist(), work.steps.tolist()
    queue, idle = deque(range(len(once))), list[int]()
    events = [(workers.start, worker, NO_SAMPLE) for worker in range(workers.count)]  # equal times: a heap already
    end, busy, failures = 0.0, 0.0, 0
    while events:
        now, worker, lost = heappop(events)
        if lost == NO_SAMPLE:
            idle.append(worker)
        else:
            failures += 1
            queue.appendleft(lost)
            heappush(events, (now + workers.start, worker, NO_SAMPLE))
        while queue and idle:
            worker, sample = idle.pop(), queue.popleft()
            seconds = (once[sample] + steps[sample] * step[sample]) * slower[worker]
            life = rng.exponential(workers.failure_hours * 3600)
            if life >= seconds:
                end, busy = max(end, now + seconds), busy + seconds
                heappush(events, (now + seconds, worker, NO_SAMPLE))
                continue
            worked = life / slower[worker] - once[sample]
            kept = int(worked / step[sample]) // state_every * state_every if state_every and worked > 0 else 0
            steps[sample] -= kept
            busy += kept * step[sample] * slower[worker]
            heappush(events, (now + life, worker, sample))
    return Outcome(end, busy, failures)


def bound(work: Workload, workers: SimulatedWorkers) -> str:
    """What keeps the makespan from being shorter: the largest of its lower bounds."""
    if workers.count > len(work.once):
        return "fewer samples than workers"
    bounds = {
        "the work": float(work.seconds.sum()) / workers.count,
        "the longest sample": float(work.seconds.max()),
        "loading the models": workers.start,
    }
    return max(bounds, key=bounds.__getitem__)
