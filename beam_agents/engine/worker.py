"""The worker process: one event loop, one writer for each ledger, limits, and the agents it hosts."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from beam_agents.engine.host import Host, WorkerStatus
from beam_agents.engine.interpreter import prepare_interpreter
from beam_agents.engine.limits import WorkerLimits
from beam_agents.ledger.base import LEASE_SECONDS, Ledger
from beam_agents.ledger.commands import Renew
from beam_agents.ledger.writer import LedgerWriter

if TYPE_CHECKING:
    from beam_agents.agent_base import AgentBase

_LOGGER = logging.getLogger(__name__)

_LINGER_SECONDS = 2.0
"""How long a host that nobody uses is kept: some runners set a DoFn up and tear it down for each bundle."""

_STUCK_SECONDS = 60.0
"""How long code may block the loop before the lease is no longer renewed, and other workers take the runs over."""


_Name = tuple[str, str, str]
"""Of a host: the agent's identity, the ledger's URL, the scope."""


class Worker:
    """Hosts agents in this process. Tests make their own; everybody else uses `this_worker()`.

    Attributes:
        loop: The event loop on which all runs live, in a thread of its own.
        limits: What bounds the calls of all its agents.
        letting_go: Whether runs are let go as soon as they are opened, because the process is about to end.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.loop = asyncio.new_event_loop()
        self.limits = WorkerLimits()
        self.letting_go = False
        self._closing: list[Host] = []
        self._hosts: dict[_Name, Host] = {}
        self._joining: dict[_Name, Future[Host]] = {}
        self._pid = os.getpid()
        self._beat = time.monotonic()
        self._writers: dict[str, LedgerWriter] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beam-agents-loop", daemon=True)
        self._thread.start()
        # A thread of its own: a blocked loop must not look like a dead worker while its calls are in flight.
        self._renewer = threading.Thread(target=self._renew, name="beam-agents-lease", daemon=True)
        self._renewer.start()

    def join(self, agent: AgentBase[Any, Any, Any, Any], identity: str, ledger: Ledger, scope: str) -> Host:
        """The host of one use of an agent; `leave` it when done.

        Args:
            agent: The agent.
            identity: The same for all copies of the agent in this process.
            ledger: Its ledger, not open.
            scope: The use.

        Raises:
            Exception: Whatever the agent's `deps` raised.
        """
        name = (identity, ledger.url, scope)
        while True:
            with self.lock:
                host = self._hosts.get(name)
                if host is not None:
                    host.users += 1
                    return host
                joining = self._joining.get(name)
                first = joining is None
                if joining is None:
                    joining = self._joining[name] = Future()
            if first:
                self._make(name, joining, agent, ledger)
            joining.result()

    def _make(self, name: _Name, joining: Future[Host], agent: AgentBase[Any, Any, Any, Any], ledger: Ledger) -> None:
        """Makes a host. Opening dependencies may take long and may itself run agents, so others are not locked out."""
        try:
            deps = agent.hold_deps()
            prepare_interpreter()
            with self.lock:
                writer = self._writers.get(ledger.url)
                if writer is None:
                    writer = self._writers[ledger.url] = LedgerWriter(ledger)
                host = self._hosts[name] = Host(self, agent, deps, writer, name[2])
        except BaseException as error:
            with self.lock:
                del self._joining[name]
            joining.set_exception(error)
            raise
        with self.lock:
            del self._joining[name]
        joining.set_result(host)

    def find(self, identity: str, ledger: Ledger, scope: str) -> Host | None:
        """The host that `join` gives, if anybody has joined it."""
        with self.lock:
            return self._hosts.get((identity, ledger.url, scope))

    def leave(self, host: Host) -> None:
        """Gives a host back; the last one to do so lets its runs go."""
        with self.lock:
            host.users -= 1
            if host.users == 0 and not self._stop.is_set() and self._thread.is_alive():
                asyncio.run_coroutine_threadsafe(self._retire(host), self.loop)

    def status(self) -> list[WorkerStatus]:
        """What each hosted agent has done so far."""
        with self.lock:
            for host in self._hosts.values():
                host.status.ledger_down_since = host.ledger.down_since
            return [host.status for host in self._hosts.values()]

    def let_go(self, seconds: float) -> None:
        """Lets all runs go, also those that are given to it from now on, and waits until what is in flight is recorded:
        for the planned end of a process. Any worker may open the runs again.

        Args:
            seconds: How long it waits at most.
        """
        self.letting_go = True
        with contextlib.suppress(TimeoutError, RuntimeError):  # RuntimeError: the loop is closed
            asyncio.run_coroutine_threadsafe(self._let_go(), self.loop).result(seconds)

    async def _let_go(self) -> None:
        with self.lock:
            hosts = list(self._hosts.values())
        for host in hosts:
            host.park()
        while not all(host.idle() for host in hosts):  # noqa: ASYNC110 - runs end one by one
            await asyncio.sleep(0.02)

    def close(self) -> None:
        """Ends at once and leaves open runs to others, as a dying process would; closes clients and dependencies."""
        if os.getpid() != self._pid:  # a forked child, at its end: all of it is its parent's
            return
        with self.lock:
            hosts, writers = list(self._hosts.values()), list(self._writers.values())
            self._closing = hosts
            self._hosts.clear()
            self._writers.clear()
            self._stop.set()
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(timeout=5)
        for host in hosts:
            host.deps.close()
        for writer in writers:
            writer.close()

    async def _retire(self, host: Host) -> None:
        with self.lock:
            if host.users:
                return
            host.park()
        await asyncio.sleep(_LINGER_SECONDS)
        while not host.idle():  # noqa: ASYNC110 - runs end one by one, and new users may bring new ones
            await asyncio.sleep(0.02)
        with self.lock:
            if host.users or not host.idle() or host not in self._hosts.values():
                return
            self._hosts = {name: other for name, other in self._hosts.items() if other is not host}
            used = [other.ledger for other in self._hosts.values()]
            unused = host.ledger not in used and not host.ledger.ledger.keep_open
            if unused:
                self._writers = {url: writer for url, writer in self._writers.items() if writer is not host.ledger}
        await host.close()
        await asyncio.to_thread(host.deps.close)
        if unused:
            await asyncio.to_thread(host.ledger.close)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(self._wind_up())
        self.loop.close()

    async def _wind_up(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1)
        # After the runs, so that none of them takes the end of its client for an answer.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                for host in self._closing:
                    await host.close()

    def _renew(self) -> None:
        while not self._stop.wait(LEASE_SECONDS / 3):
            with self.lock:
                busy = [host for host in self._hosts.values() if not host.idle()]
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self._show_life)
            blocked = time.monotonic() - self._beat
            if blocked > _STUCK_SECONDS:
                _LOGGER.error(
                    "something has blocked the event loop for %.0f s, so other workers take its runs over: blocking "
                    "calls belong into tools that are plain functions, not async ones",
                    blocked,
                )
                continue
            # All at once: a ledger that is down must not keep the lease in another from being renewed.
            until = time.monotonic() + LEASE_SECONDS / 3
            try:
                renewals = [host.ledger.submit(Renew(host.owner)) for host in busy]
                for renewal in renewals:
                    renewal.result(max(0.0, until - time.monotonic()))
            except Exception as error:
                _LOGGER.warning("a lease of this worker could not be renewed: %r", error)

    def _show_life(self) -> None:
        self._beat = time.monotonic()


class _ThisProcess:
    """Holds the worker of this process; the only global of the package."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: Worker | None = None
        self._pid = 0

    def worker(self) -> Worker:
        with self._lock:
            if self._worker is None or self._pid != os.getpid():  # a forked child has no loop thread
                self._worker, self._pid = Worker(), os.getpid()
                atexit.register(self._worker.close)
            return self._worker


_THIS_PROCESS = _ThisProcess()


def this_worker() -> Worker:
    """The worker of this process, made on first use."""
    return _THIS_PROCESS.worker()


def worker_status() -> list[WorkerStatus]:
    """What each agent has done in this process so far: for progress while a batch runs."""
    return this_worker().status()
