"""A worker of a Ray cluster, as the process that starts it sees it. Nothing heavy is imported before it is set up."""

from __future__ import annotations

import os
from typing import Any


class Worker:
    """Ray makes one in each worker's process; see ttopt.run.node.Node."""

    def __init__(self) -> None:
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            del os.environ[name]  # else Lightning takes the nodes of a job for the ranks of one training
        from ttopt.run.node import Node  # only now: it imports Lightning

        self._node = Node()

    def begin(self, *job: Any) -> None:
        self._node.begin(*job)

    def solve(self, sample: Any) -> Any:
        return self._node.solve(sample)
