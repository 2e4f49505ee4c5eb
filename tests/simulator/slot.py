"""A place for a worker process."""

from __future__ import annotations

from beam_agents.transforms.streaming import StreamingDoFn
from tests.simulator.worker import Road, SimWorker


class Slot:
    """A place for a worker process, which may die and be started again."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.road = Road()
        self.worker: SimWorker | None = None
        self.dofn: StreamingDoFn | None = None
        self.apart = False
        """Cut off from the runner."""
        self.state_at: float | None = None
        """Of what age, in seconds since 1970, the state is that the job goes on from, until the worker is told."""
        self.told: list[float] = []
        """What workers here were told of that."""

    def can_work(self) -> bool:
        return self.dofn is not None and self.worker is not None and not self.worker.loop.frozen and not self.apart
