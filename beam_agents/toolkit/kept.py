"""Clients that tools share in a worker: opened when they are first used, closed when nobody uses them any more."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, TypeVar

T = TypeVar("T")

IDLE_SECONDS = 60.0
"""How long a client that is not used stays open."""


class Kept(Generic[T]):
    """One client for each event loop, which is what a worker has. It is pickled closed.

    Args:
        open: Makes the client: what it gives is used until its context is left. It can be pickled.
        idle_seconds: How long it stays open without use.
    """

    def __init__(
        self, open: Callable[[], AbstractAsyncContextManager[T]], *, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self._open = open
        self._idle_seconds = idle_seconds
        self._keepers: dict[asyncio.AbstractEventLoop, _Keeper[T]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _kept, (type(self), self._open, self._idle_seconds)

    @asynccontextmanager
    async def use(self) -> AsyncIterator[T]:
        """The client, which stays open meanwhile. One that failed to open is opened anew.

        Raises:
            Exception: Whatever opening it raised.
        """
        loop = asyncio.get_running_loop()
        keeper = self._keepers.get(loop)
        if keeper is None or keeper.ended:
            keeper = self._keepers[loop] = _Keeper(self._open, self._idle_seconds)
            keeper.task.add_done_callback(lambda _: self._forget(loop, keeper))
        with keeper.used():
            yield await asyncio.shield(keeper.opened)

    def drop(self, client: T) -> None:
        """Has a client that is broken closed when nobody uses it; the next use opens another one."""
        keeper = self._keepers.get(asyncio.get_running_loop())
        if keeper is not None and keeper.holds(client):
            keeper.end()

    def _forget(self, loop: asyncio.AbstractEventLoop, keeper: _Keeper[T]) -> None:
        if self._keepers.get(loop) is keeper:
            del self._keepers[loop]


class _Keeper(Generic[T]):
    """Opens a client, holds it and closes it, all in one task, as some clients want it.

    The worker cancels the task when it ends, which closes the client.
    """

    def __init__(self, open: Callable[[], AbstractAsyncContextManager[T]], idle_seconds: float) -> None:
        self.opened: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.ended = False
        self._users = 0
        self._used_at = time.monotonic()
        self._end, self._free = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._keep(open, idle_seconds))

    @contextlib.contextmanager
    def used(self) -> Any:
        self._users += 1
        self._free.clear()
        try:
            yield
        finally:
            self._users -= 1
            self._used_at = time.monotonic()
            if not self._users:
                self._free.set()

    def holds(self, client: T) -> bool:
        return self.opened.done() and not self.opened.exception() and self.opened.result() is client

    def end(self) -> None:
        self.ended = True
        self._end.set()

    async def _keep(self, open: Callable[[], AbstractAsyncContextManager[T]], idle_seconds: float) -> None:
        try:
            async with open() as client:
                self.opened.set_result(client)
                while (left := self._left(idle_seconds)) > 0:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._end.wait(), left)
                        break
                self.ended = True
                await self._free.wait()  # those who still use a broken client find out by themselves
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if not self.opened.done():
                self.opened.set_exception(error)
                self.opened.exception()  # those who wait have it; nobody may
        finally:
            self.ended = True
            if not self.opened.done():
                self.opened.set_exception(ConnectionError("it was closed before it was open"))
                self.opened.exception()

    def _left(self, idle_seconds: float) -> float:
        return idle_seconds if self._users else self._used_at + idle_seconds - time.monotonic()


def _kept(kind: type[Kept[T]], open: Callable[[], AbstractAsyncContextManager[T]], idle_seconds: float) -> Kept[T]:
    return kind(open, idle_seconds=idle_seconds)
