"""Workers in virtual time: the real hosts and runs, on simulated loops and ledger writers."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beam_agents.engine.host import Host
from beam_agents.engine.limits import WorkerLimits
from beam_agents.engine.worker import Worker
from beam_agents.ledger.base import LEASE_SECONDS, LedgerUnavailable
from beam_agents.ledger.commands import Answer, Command, Renew
from beam_agents.ledger.writer import LedgerWriter
from tests.simulator.loop import Scheduler, SimLoop

if TYPE_CHECKING:
    from tests.simulator.watch import WatchedLedger


@dataclass
class Road:
    """The way from one worker to the ledger."""

    slow: float = 0.02
    """Seconds of one way, at most, when all is well."""
    fails: float = 0.0
    """Probability that a group is not taken, and as much that its answer is lost after it was."""
    down: bool = False


class SimWriter(LedgerWriter):
    """Groups, repeats and answers as the real writer does, without a thread."""

    def __init__(self, ledger: WatchedLedger, loop: SimLoop, rng: random.Random, road: Road) -> None:
        self.ledger = self._watched = ledger
        self.down_since = None
        self.groups = self.commands = 0
        self._is_open = False
        self.road = road
        self._loop = loop
        self._rng = rng
        self._waiting: deque[tuple[Command | None, asyncio.Future[Any]]] = deque()
        self._busy = False
        self._pause = 0.05

    async def _ask(self, command: Command | None) -> Any:
        if self._loop.dying:
            raise LedgerUnavailable("the worker is dead")
        future = self._loop.create_future()
        self._put_command(command, future)
        reply = await future
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def renew(self, owner: str) -> None:
        self._put_command(Renew(owner), self._loop.create_future())

    def _put_command(self, command: Command | None, future: asyncio.Future[Any]) -> None:
        self._waiting.append((command, future))
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._take)

    def _way(self) -> float:
        return self._rng.random() * self.road.slow

    def _take(self) -> None:
        if not self._waiting:
            self._busy = False
            return
        group = list(self._waiting)
        self._waiting.clear()
        self._pause = 0.05
        self._loop.call_later(self._way(), self._carry, group)

    def _carry(self, group: list[tuple[Command | None, asyncio.Future[Any]]]) -> None:
        road, rng = self.road, self._rng
        if road.down or (road.fails and rng.random() < road.fails):
            self._again(group)
            return
        replies: list[Any] = []
        for command, _ in group:
            if command is None:
                replies.append(self.ledger.identity)
                continue
            try:
                answer: Answer | Exception = self._watched.carry_out(self._loop, command)
            except Exception as error:
                answer = error
            replies.append(answer)
        if road.fails and rng.random() < road.fails:
            self._again(group)
            return
        self._loop.call_later(self._way(), self._reply, group, replies)

    def _again(self, group: list[tuple[Command | None, asyncio.Future[Any]]]) -> None:
        self._loop.call_later(self._pause, self._carry, group)
        self._pause = min(2 * self._pause, 2.0)

    def _reply(self, group: list[tuple[Command | None, asyncio.Future[Any]]], replies: list[Any]) -> None:
        for (command, future), reply in zip(group, replies, strict=True):
            if command is not None:
                self._watched.answered(self._loop, command, reply)
            if not future.done():
                future.set_result(reply)
        self._take()


class SimWorker(Worker):
    """A worker process in virtual time."""

    def __init__(
        self, scheduler: Scheduler, ledger: WatchedLedger, rng: random.Random, road: Road, *, name: str, slots: int,
        skew: float,
    ) -> None:  # fmt: skip
        self.lock = threading.RLock()
        self.loop: SimLoop = SimLoop(scheduler, name, skew=skew)
        self.limits = WorkerLimits(model_calls=slots, tool_calls=slots, tool_threads=slots)
        self.letting_go = False
        self.name = name
        self.writer = SimWriter(ledger, self.loop, rng, road)
        self._hosts = {}
        self._joining = {}
        self._pid = os.getpid()
        self._writers = {ledger.url: self.writer}
        self._stop = threading.Event()
        self._thread = threading.main_thread()
        self._phase = rng.random() * LEASE_SECONDS / 3
        self.loop.call_later(self._phase, self._keep_lease)

    def _keep_lease(self) -> None:
        for host in self._hosts.values():
            if not host.idle():
                self.writer.renew(host.owner)
        self.loop.call_later(LEASE_SECONDS / 3, self._keep_lease)

    def hosts(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def die(self) -> None:
        """The process is gone at once."""
        self.loop.kill()
