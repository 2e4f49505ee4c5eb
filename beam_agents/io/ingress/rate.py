"""How much a caller may send."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from beam_agents.io.ingress.problems import Problem


class Rate:
    """A token bucket for each caller: so many events a second in the long run.

    Args:
        per_second: Events a second; no limit if `None`.
        burst: Events that may come at once after a pause.
        clock: Seconds.
    """

    def __init__(self, per_second: float | None, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}
        """By caller: events that may come, and since when. Callers are the tokens, so these are few."""

    def take(self, caller: str, events: int) -> None:
        """Counts events.

        Raises:
            Problem: 429, with when to try again.
        """
        if self._per_second is None:
            return
        now = self._clock()
        left, since = self._left.get(caller, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._per_second)
        if left < events:
            self._left[caller] = left, now
            seconds = math.ceil((events - left) / self._per_second)
            raise Problem(
                429,
                f"at most {self._per_second:g} events a second, and {self._burst:g} at once",
                headers={"Retry-After": str(seconds)},
            )
        self._left[caller] = left - events, now
