"""The ledger writer: one thread that carries out the commands of all runs of a worker, in groups."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeAlias, TypeVar

from beam_agents.ledger.base import Ledger, LedgerUnavailable
from beam_agents.ledger.commands import Answer, Command

T = TypeVar("T")

_LOGGER = logging.getLogger(__name__)

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0
_LONGEST_PAUSE_OPENING = 1.0

_Reply: TypeAlias = Answer | str | BaseException
"""What an asker gets: an answer, the ledger's identity, or an error to raise."""


class _Asked(NamedTuple):
    command: Command | None
    """`None` asks for the ledger's identity."""
    loop: asyncio.AbstractEventLoop | None
    """The asker's loop; `None` for one that waits in a thread."""
    future: asyncio.Future[_Reply] | concurrent.futures.Future[Any]


class LedgerWriter:
    """Owns a ledger: opens it, and gives it all commands that are queued at a moment as one group.

    What the tasks of a loop ask in one turn of it is queued together: a thread that was woken by the first of them
    would take the interpreter from the others, for a group of one.

    A ledger that is unavailable is asked again without limit, with growing pauses, and its askers wait. A command
    that the ledger refuses, or that breaks a backend, fails for its own asker only.

    Args:
        ledger: Not open; nobody else may use it from now on.
        max_group: The most commands of one group.

    Attributes:
        down_since: Seconds since 1970 since when the ledger takes nothing; `None` while it does.
        groups: Groups carried out so far.
        commands: Commands carried out so far.
    """

    def __init__(self, ledger: Ledger, *, max_group: int = 512) -> None:
        self.ledger = ledger
        self.down_since: float | None = None
        self.groups = 0
        self.commands = 0
        self._max_group = max_group
        self._queue: SimpleQueue[Sequence[_Asked] | None] = SimpleQueue()
        self._in_this_turn: dict[asyncio.AbstractEventLoop, list[_Asked]] = {}
        self._lock = threading.Lock()
        self._left: list[_Asked] = []
        self._closing = False
        self._give_up_at = float("inf")
        self._hurry = threading.Event()
        self._is_open = False
        self._thread = threading.Thread(target=self._work, name="beam-agents-ledger", daemon=True)
        self._thread.start()

    async def ask(self, command: Command) -> Answer:
        """Has a command carried out, durably before this returns. A caller that is cancelled does not take it back.

        Raises:
            LedgerError: The ledger can never carry it out.
            LedgerUnavailable: The writer was closed before it could be carried out.
            LookupError: The outcome has no intent.
        """
        answer: Answer = await self._ask(command)
        return answer

    async def ready(self) -> str:
        """The ledger's identity, once it is open.

        Raises:
            LedgerError: It cannot be used; the next call tries to open it again.
            LedgerUnavailable: The writer was closed before it could be opened.
        """
        if self._is_open:
            return self.ledger.identity
        identity: str = await self._ask(None)
        return identity

    def ask_blocking(self, command: Command, timeout: float | None = None) -> Answer:
        """`ask` for other threads than a loop's.

        Args:
            command: What to carry out.
            timeout: Seconds to wait.

        Raises:
            TimeoutError: It took longer; the command may still be carried out.
            LedgerError: The ledger can never carry it out.
            LedgerUnavailable: The writer was closed before it could be carried out.
            LookupError: The outcome has no intent.
        """
        return self.submit(command).result(timeout)

    def submit(self, command: Command) -> concurrent.futures.Future[Answer]:
        """`ask_blocking` for those who want to wait later.

        Raises:
            LedgerUnavailable: The writer is closed.
        """
        future: concurrent.futures.Future[Answer] = concurrent.futures.Future()
        with self._lock:
            self._check_open()
            self._queue.put([_Asked(command, None, future)])
        return future

    def close(self, timeout: float = 10.0) -> None:
        """Carries out what is queued and disconnects. May be called again.

        Args:
            timeout: Seconds to go on trying while the ledger is unavailable; what is left then fails.
        """
        with self._lock:
            if not self._closing:
                self._closing = True
                self._give_up_at = time.monotonic() + timeout
                self._hurry.set()
                self._queue.put(None)
        self._thread.join()

    async def _ask(self, command: Command | None) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Reply] = loop.create_future()
        asked = _Asked(command, loop, future)
        together = self._in_this_turn.get(loop)
        if together is not None:
            together.append(asked)
        else:
            self._check_open()
            self._in_this_turn[loop] = [asked]
            loop.call_soon(self._put_turn, loop)
        return _result(await future)

    def _put_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        asked = self._in_this_turn.pop(loop)
        with self._lock:
            try:
                self._check_open()
            except LedgerUnavailable as error:
                _settle([(one, error) for one in asked])
            else:
                self._queue.put(asked)

    def _check_open(self) -> None:
        if self._closing:
            raise LedgerUnavailable(f"the writer of {self.ledger.url!r} is closed")

    # ---- on the writer's thread ----

    def _work(self) -> None:
        while True:
            group, more = self._take_group()
            if group:
                _reply(group, self._carry_out(group))
            if not more:
                break
        if self._is_open:
            self.ledger.close()

    def _take_group(self) -> tuple[list[_Asked], bool]:
        """What is queued now, waiting for the first; and whether there will be more."""
        group, more = self._left, True
        with contextlib.suppress(Empty):
            while more and len(group) < self._max_group:
                asked = self._queue.get(block=not group)
                more = asked is not None
                group += asked or ()
        self._left = group[self._max_group :]
        if self._left and not more:
            self._queue.put(None)
        return group[: self._max_group], more or bool(self._left)

    def _carry_out(self, group: Sequence[_Asked]) -> list[_Reply]:
        try:
            if not self._is_open:
                self._patiently(self.ledger.open, _LONGEST_PAUSE_OPENING)
                self._is_open = True
            answers = iter(self._apply([asked.command for asked in group if asked.command is not None]))
            return [self.ledger.identity if asked.command is None else next(answers) for asked in group]
        except Exception as error:
            return [error] * len(group)

    def _apply(self, commands: Sequence[Command]) -> Sequence[_Reply]:
        if not commands:
            return []
        try:
            answers = self._patiently(lambda: self.ledger.apply(commands), _LONGEST_PAUSE)
        except Exception as error:
            if len(commands) == 1 or isinstance(error, LedgerUnavailable):
                return [error] * len(commands)
            return [reply for command in commands for reply in self._apply([command])]
        self.groups += 1
        self.commands += len(commands)
        return answers

    def _patiently(self, action: Callable[[], T], longest_pause: float) -> T:
        pause = _FIRST_PAUSE
        while True:
            try:
                result = action()
            except LedgerUnavailable as error:
                if self.down_since is None:
                    self.down_since = time.time()
                    _LOGGER.warning("the ledger %s is unavailable, runs wait for it: %s", self.ledger.url, error)
                if time.monotonic() >= self._give_up_at:
                    raise
            else:
                if self.down_since is not None:
                    _LOGGER.warning(
                        "the ledger %s is back after %.1f s", self.ledger.url, time.time() - self.down_since
                    )
                    self.down_since = None
                return result
            self._hurry.wait(pause)
            self._hurry.clear()
            pause = min(2 * pause, longest_pause)


def _reply(group: Sequence[_Asked], replies: Sequence[_Reply]) -> None:
    """Hands out the replies, waking each loop once."""
    by_loop: defaultdict[asyncio.AbstractEventLoop | None, list[tuple[_Asked, _Reply]]] = defaultdict(list)
    for asked, reply in zip(group, replies, strict=True):
        by_loop[asked.loop].append((asked, reply))
    for loop, settled in by_loop.items():
        if loop is None:
            _settle(settled)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and its askers with it
                loop.call_soon_threadsafe(_settle, settled)


def _settle(settled: Sequence[tuple[_Asked, _Reply]]) -> None:
    for asked, reply in settled:
        if asked.future.done():
            continue
        if asked.loop is None and isinstance(reply, BaseException):
            asked.future.set_exception(reply)
        else:  # an asyncio future that nobody waits for any more would complain of an exception
            asked.future.set_result(reply)


def _result(reply: _Reply) -> Any:
    if isinstance(reply, BaseException):
        raise reply
    return reply
