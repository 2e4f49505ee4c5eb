"""How long a bundle waits for the runs that it has started."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent import futures
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from beam_agents.engine.host import Handle

QUICK_SECONDS = 0.02
"""How long a bundle waits for the end of one more of its runs, if it has few."""

_QUICK_SECONDS_EACH = 0.003
"""What is added for each run: they go on in step, and so end together."""

_LOOK_SECONDS = 0.05
"""Between two looks at what the runs are doing: when all wait for others at two of them, none is going to end soon."""

LONGEST_SECONDS = 1.0
"""How long a bundle waits in all while runs end one after the other: a checkpoint waits for the bundle."""

_TRIES = 3
"""After so many bundles that waited in vain the next ones do not wait."""

_PROBE_SECONDS = 1.0
"""Then one bundle tries again after so long, and after twice as long each time that was in vain again."""

_LONGEST_PROBE_SECONDS = 64.0


class Patience:
    """Says how long bundles wait, from whether it was any use for the last ones: an emission within the bundle saves a
    callback, and waiting for runs that take long helps nobody."""

    def __init__(self) -> None:
        self._tries = _TRIES
        self._next_probe = 0.0
        self._probe = _PROBE_SECONDS

    def begin(self) -> Wait:
        """The wait of one bundle."""
        if not self._tries:
            now = time.monotonic()
            if now < self._next_probe:
                return Wait(self, 0.0)
            self._next_probe = now + self._probe
            self._probe = min(2 * self._probe, _LONGEST_PROBE_SECONDS)
        return Wait(self, QUICK_SECONDS)

    @property
    def willing(self) -> bool:
        """Whether the bundle is going to wait."""
        return self._tries > 0

    def was(self, *, useful: bool) -> None:
        """Notes what came of a wait."""
        self._tries = _TRIES if useful else max(0, self._tries - 1)
        if useful:
            self._probe = _PROBE_SECONDS


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
        seen, limit = ended, self._limit(len(handles))
        while True:
            going_on = self._wait(handles, limit)
            if not going_on:
                self._patience.was(useful=True)
                return time.monotonic() < self._over_at
            now_ended = len(handles) - going_on
            if now_ended == seen or limit >= self._over_at or self._quick <= 0:
                self._patience.was(useful=now_ended > ended)
                return now_ended > 0 and limit < self._over_at
            seen, limit = now_ended, self._limit(going_on)

    def _wait(self, handles: Sequence[Handle], limit: float) -> int:
        """Waits for all runs, until the limit or until nothing happens; returns how many go on."""
        pending = {handle.done: handle for handle in handles if not handle.done.done()}
        still = 0
        for _ in range(math.ceil((limit - time.monotonic()) / _LOOK_SECONDS)):
            # For all of them: woken by each, this thread would take the interpreter from the runs that go on.
            ended, _ = futures.wait(pending, max(0.0, min(_LOOK_SECONDS, limit - time.monotonic())))
            for done in ended:
                del pending[done]
            if not pending:
                break
            still = 0 if ended or any(handle.moves for handle in pending.values()) else still + 1
            if still > 1:
                self._quick = 0.0  # nor is there more to come
                break
        return len(pending)

    def _limit(self, runs: int) -> float:
        return min(time.monotonic() + self._quick + runs * _QUICK_SECONDS_EACH, self._over_at)
