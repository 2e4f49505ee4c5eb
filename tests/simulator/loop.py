"""Virtual time: event loops that a scheduler runs one batch of callbacks at a time, and the clock that modules see."""

from __future__ import annotations

import asyncio
import concurrent.futures
import heapq
import logging
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from types import SimpleNamespace
from typing import Any
from unittest import mock

from beam_agents.engine import attempts, host, live
from beam_agents.transforms import patience, streaming

EPOCH = 1_000_000_000.0
"""Seconds since 1970 at which each schedule begins."""

EMITTED_WITHIN = 2.0
"""The engine's, which has minutes for what takes seconds here."""


_Base: Any = asyncio.AbstractEventLoop


class SimLoop(_Base):  # type: ignore[misc]
    """An event loop that runs only when its scheduler says so.

    Attributes:
        skew: What its process's wall clock is ahead of the true time, in seconds.
        frozen: Whether its process stands still.
        dying: Whether its process is being ended; what its tasks still do must reach nobody.
        dead: Whether its process is gone; nothing is run any more.
    """

    def __init__(self, scheduler: Scheduler, name: str, *, skew: float = 0.0) -> None:
        self.scheduler = scheduler
        self.name = name
        self.skew = skew
        self.frozen = False
        self.dying = False
        self.dead = False
        self.owner: Any = None
        self.ready: deque[asyncio.Handle] = deque()
        self.tasks: list[asyncio.Task[Any]] = []
        scheduler.loops.append(self)

    def time(self) -> float:
        return self.scheduler.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self.dead:
            self.ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.scheduler.now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if not self.dead:
            self.scheduler.add_timer(when, handle, self)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self, name=name or "task", context=context)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.tasks.append(task)
        if len(self.tasks) > 256:
            self.tasks = [task for task in self.tasks if not task.done()]
        return task

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        """At once: what the engine gives to threads here only closes things."""
        future = self.create_future()
        future.set_result(func(*args))
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.dying:
            self.scheduler.errors.append(f"{self.name}: {context.get('message')}: {context.get('exception')!r}")

    def kill(self) -> None:
        """The process is gone: its tasks end here and now, and nothing that they do reaches anybody."""
        self.dying = True
        outer = self.scheduler._running
        self.scheduler.enter(self)
        try:
            for _ in range(20):
                live = [task for task in self.tasks if not task.done()]
                if not live and not self.ready:
                    break
                for task in live:
                    task.cancel()
                for _ in range(len(self.ready)):
                    self.ready.popleft()._run()
        finally:
            self.scheduler.enter(outer if outer is not self else None)
            self.dead = True
            self.ready.clear()
            self.tasks.clear()
            self.scheduler.loops.remove(self)


class Scheduler:
    """Runs loops in virtual time; which of those that have something to do comes next is random.

    Args:
        rng: Where randomness comes from.
        shuffle: Whether callbacks that are ready in one loop at one moment run in any order, as if what they answer
            had come over a network in that order.
    """

    def __init__(self, rng: random.Random, *, shuffle: bool = False) -> None:
        self.now = 0.0
        self.rng = rng
        self.shuffle = shuffle
        self.loops: list[SimLoop] = []
        self.errors: list[str] = []
        self.skew = 0.0
        self.steps = 0
        self._timers: list[tuple[float, int, asyncio.TimerHandle, SimLoop]] = []
        self._count = 0
        self._running: SimLoop | None = None

    def add_timer(self, when: float, handle: asyncio.TimerHandle, loop: SimLoop) -> None:
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle, loop))

    def step(self, limit: float, spared: SimLoop | None = None) -> bool:
        """Runs one batch of one loop, or moves on to the next timer that is due before `limit`."""
        ready = [loop for loop in self.loops if loop.ready and not loop.frozen and loop is not spared]
        if ready:
            self._run(ready[0] if len(ready) == 1 else ready[int(self.rng.random() * len(ready))])
            return True
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if not timers or timers[0][0] > limit:
            self.now = max(self.now, limit)
            return False
        self.now = max(self.now, timers[0][0])
        while timers and timers[0][0] <= self.now:
            _, _, handle, loop = heapq.heappop(timers)
            if not handle.cancelled() and not loop.dead:
                loop.ready.append(handle)
        return True

    def _run(self, loop: SimLoop) -> None:
        self.steps += 1
        batch = list(loop.ready)
        loop.ready.clear()
        if self.shuffle and len(batch) > 1:
            self.rng.shuffle(batch)
        before, self.skew = self.skew, loop.skew
        self.enter(loop)
        for handle in batch:
            if not handle._cancelled:
                handle._run()
        self.skew = before

    def run_until(self, done: Callable[[], bool], limit: float, spared: SimLoop | None = None) -> bool:
        """Runs until `done`, at most until the time `limit`; says whether it is done."""
        outer = self._running
        try:
            while not done():
                if not self.step(limit, spared):
                    return done()
            return True
        finally:
            self.enter(outer)

    def enter(self, loop: SimLoop | None) -> None:
        """Makes a loop the running one."""
        if self._running is not loop:  # each change asks the system for the process's id
            self._running = loop
            asyncio._set_running_loop(loop)


class SimFuture(concurrent.futures.Future[Any]):
    """A future for which a driver's thread waits in virtual time."""

    scheduler: Scheduler
    runner: SimLoop

    def result(self, timeout: float | None = None) -> Any:
        if not self.done() and (timeout is None or timeout > 0):
            limit = self.scheduler.now + (1e9 if timeout is None else timeout)
            self.scheduler.run_until(self.done, limit, spared=self.runner)
        return super().result(timeout=-1)


@contextmanager
def virtual_time(scheduler: Scheduler, runner: SimLoop, seed: int) -> Iterator[None]:
    """The engine's modules see the scheduler's clock, and random numbers and ids that depend on the seed alone."""
    clock = SimpleNamespace(time=lambda: EPOCH + scheduler.now + scheduler.skew, monotonic=lambda: scheduler.now)
    counter = iter(range(1, 1_000_000_000))
    ids = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=f"id{next(counter)}"))
    future = type("Future", (SimFuture,), {"scheduler": scheduler, "runner": runner})

    class Handle(host.Handle):
        """With a future that waits in virtual time."""

        def __init__(self, run: Any, key: Any, digest: str) -> None:
            super().__init__(run, key, digest, done=future())

    logger = logging.getLogger("beam_agents")
    level, state = logger.level, random.getstate()
    logger.setLevel(logging.CRITICAL + 1)
    random.seed(seed)
    try:
        with (
            mock.patch.object(host, "time", clock),
            mock.patch.object(live, "time", clock),
            mock.patch.object(attempts, "time", clock),
            mock.patch.object(streaming, "time", clock),
            mock.patch.object(patience, "time", clock),
            mock.patch.object(host, "uuid", ids),
            mock.patch.object(host, "Handle", Handle),
            mock.patch.object(host, "_EMITTED_WITHIN", EMITTED_WITHIN),
        ):
            yield
    finally:
        random.setstate(state)
        logger.setLevel(level)
