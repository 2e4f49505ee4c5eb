"""How long a bundle waits for the runs that it has started."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from beam_agents.engine.host import Handle

QUICK_SECONDS = 0.02
"""How long a bundle waits for the end of one more of its runs."""

LONGEST_SECONDS = 0.25
"""How long a bundle waits in all while runs end one after the other: a checkpoint waits for the bundle."""

_TRIES = 3
"""After so many bundles that waited in vain the next ones do not wait."""

_PROBE_SECONDS = 1.0
"""Then one bundle tries again after so long."""


class Patience:
    """Says how long bundles wait, from whether it was any use for the last ones: an emission within the bundle saves a
    callback, and waiting for runs that take long helps nobody."""

    def __init__(self) -> None:
        self._tries = _TRIES
        self._next_probe = 0.0

    def begin(self) -> Wait:
        """The wait of one bundle."""
        if not self._tries:
            now = time.monotonic()
            if now < self._next_probe:
                return Wait(self, 0.0)
            self._next_probe = now + _PROBE_SECONDS
        return Wait(self, QUICK_SECONDS)

    @property
    def willing(self) -> bool:
        """Whether the bundle is going to wait."""
        return self._tries > 0

    def was(self, *, useful: bool) -> None:
        """Notes what came of a wait."""
        self._tries = _TRIES if useful else max(0, self._tries - 1)


class Wait:
    """The wait of one bundle.

    Args:
        patience: Is told what came of it.
        quick: Seconds without the end of a run after which it is over.
    """

    def __init__(self, patience: Patience, quick: float) -> None:
        self._patience = patience
        self._quick = quick
        self._over_at = time.monotonic() + LONGEST_SECONDS

    def for_some(self, handles: Sequence[Handle]) -> bool:
        """Waits for runs.

        Returns:
            Whether any has ended, and there is time to wait for others.
        """
        ended = sum(handle.done.done() for handle in handles)
        if ended == len(handles) or self._quick <= 0:
            return ended > 0 and time.monotonic() < self._over_at
        seen, limit = ended, self._limit()
        for handle in handles:
            while not handle.done.done():
                left = limit - time.monotonic()
                if left > 0:
                    with suppress(FutureTimeout, Exception):  # what it raised is seen when it is taken
                        handle.done.result(left)
                    continue
                now_ended = sum(handle.done.done() for handle in handles)
                if now_ended == seen or limit >= self._over_at:
                    self._patience.was(useful=now_ended > ended)
                    return now_ended > 0 and limit < self._over_at
                seen, limit = now_ended, self._limit()
        self._patience.was(useful=True)
        return time.monotonic() < self._over_at

    def _limit(self) -> float:
        return min(time.monotonic() + self._quick, self._over_at)
