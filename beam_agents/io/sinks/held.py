"""What is costly to open, shared by all copies of a DoFn in a worker process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from apache_beam.utils.shared import Shared

LINGER_SECONDS = 600.0
"""How long it is kept when nobody uses it: runners set DoFns up and tear them down as they like."""


class Closing(Protocol):
    """Something that is closed in the end."""

    def close(self) -> None:
        """Lets go of connections."""


T = TypeVar("T", bound=Closing)


class Held(Generic[T]):
    """A handle that travels with a DoFn. In each process its copies share one `T`, made at first use.

    Args:
        make: Makes it.
        linger: Seconds for which it is kept when nobody uses it.
    """

    def __init__(self, make: Callable[[], T], linger: float = LINGER_SECONDS) -> None:
        self._make = make
        self._linger = linger
        self._shared = Shared()
        self._holder: _Holder[T] | None = None

    def enter(self) -> T:
        """The one of this process; `leave` it when done."""
        self._holder = self._shared.acquire(_Holder)  # held here, too: Beam has a weak reference only
        return self._holder.enter(self._make)

    def leave(self) -> None:
        """Gives it back."""
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.leave(self._linger)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_holder": None}


class _Holder(Generic[T]):
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._held: T | None = None
        self._timer: threading.Timer | None = None

    def enter(self, make: Callable[[], T]) -> T:
        with self._lock:
            self._users += 1
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._held is None:
                self._held = make()
            return self._held

    def leave(self, linger: float) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._timer is None:
                self._timer = threading.Timer(linger, self._let_go)
                self._timer.daemon = True
                self._timer.start()

    def _let_go(self) -> None:
        with self._lock:
            if self._users:
                return
            held, self._held, self._timer = self._held, None, None
        if held is not None:
            held.close()
