"""Several workers on one ledger, in one process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from beam_agents.codec import digest, key_text
from beam_agents.engine.end import Ended, Refused
from beam_agents.engine.host import Handle, Host
from beam_agents.engine.task import Task
from beam_agents.engine.worker import Worker
from beam_agents.ledger import SqliteLedger
from beam_agents.ledger.records import RunKey


class Clock:
    """The ledger's clock: real time and what a test has added."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead

    def advance(self, seconds: float) -> None:
        self.ahead += seconds


class Cluster:
    """Workers on one ledger, as in several processes: each with a connection and a lease of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self._workers: list[Worker] = []

    def ledger(self) -> SqliteLedger:
        return SqliteLedger(self.path, clock=self.clock)

    def worker(self, agent: Any) -> Hosted:
        worker = Worker()
        self._workers.append(worker)
        return Hosted(worker, worker.join(agent, "agent", self.ledger(), "scope"))

    def kill(self, hosted: Hosted) -> None:
        """The worker is gone at once, and its lease has run out."""
        hosted.worker.close()
        self._workers.remove(hosted.worker)
        self.clock.advance(10)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


class Hosted:
    """An agent on one worker."""

    def __init__(self, worker: Worker, host: Host) -> None:
        self.worker = worker
        self.host = host

    def start(self, event: Any, key: str = "k", **task: Any) -> Handle:
        agent = self.host.agent
        text = agent.event_json(agent.read_event(event))
        run = RunKey("scope", agent.name, agent.revision, key_text(key), event.id)
        return self.host.start(Task(run, key, text, digest(text), **task))

    def run(self, event: Any, key: str = "k", **task: Any) -> Ended:
        outcome = self.outcome(event, key, **task)
        assert isinstance(outcome, Ended)
        return outcome

    def outcome(self, event: Any, key: str = "k", **task: Any) -> Ended | Refused:
        handle = self.start(event, key, **task)
        outcome = handle.done.result(timeout=30)
        self.host.forget(handle.run)
        return outcome
