"""The time of a server, learnt from the `Date` of its answers."""

from __future__ import annotations

import threading
from email.utils import parsedate_to_datetime

_DRIFT = 200e-6
"""How many seconds a second two clocks may drift apart."""


class ServerClock:
    """Tells a server's time: workers whose own clocks disagree must agree on when a lease ends.

    A `Date` has whole seconds, but each answer bounds the difference between the server's clock and this process's
    monotonic one from both sides, and the bounds of several answers have only a short stretch in common.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lowest = float("-inf")
        self._highest = float("inf")
        self._seen = 0.0

    def observe(self, date: str, sent: float, received: float) -> None:
        """Takes an answer's `Date` into account.

        Args:
            date: The header.
            sent: When the request was sent, by `time.monotonic`.
            received: When the answer had come, by `time.monotonic`.
        """
        try:
            second = parsedate_to_datetime(date).timestamp()
        except ValueError:
            return
        lowest, highest = second - received, second + 1.0 - sent
        with self._lock:
            drift = _DRIFT * max(0.0, received - self._seen)
            common = max(lowest, self._lowest - drift), min(highest, self._highest + drift)
            # Nothing in common: one of the clocks was set, or this machine was asleep.
            self._lowest, self._highest = common if common[0] <= common[1] else (lowest, highest)
            self._seen = received

    def at(self, moment: float) -> float:
        """The server's time, seconds since 1970, when `time.monotonic` says `moment`.

        Raises:
            RuntimeError: No answer was seen yet.
        """
        with self._lock:
            if self._highest == float("inf"):
                raise RuntimeError("the server's time is not known before its first answer")
            return moment + (self._lowest + self._highest) / 2
