"""What one process knows of a model's health, for all its runs: whether to ask, and how many at a time."""

from __future__ import annotations

import random as random_numbers
from collections.abc import Callable
from math import inf

from beam_agents.errors import ModelError

FAILURES_IN_A_ROW = 5
"""So many without an answer in between, and the model counts as down."""

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""Seconds between two requests that find out whether a model is still down; doubled from the first to the longest."""

_TOO_MANY = 429


class Gate:
    """Lets everybody in while a model answers. When it is down, or asks for a pause, the gate closes for all; then one
    request finds out, and each answer lets one more in beside those that are under way.

    Not Beam's `AdaptiveThrottler`: that one draws lots for each request, so those that wait would have to ask it again
    and again, in no order.

    Args:
        random: Gives numbers from 0 to 1.

    Attributes:
        closed_since: When it closed, and has not been quite open since; `None` while it is open.
        error: Why it closed last.
        generation: How often it has closed.
    """

    def __init__(self, random: Callable[[], float] = random_numbers.random) -> None:
        self.closed_since: float | None = None
        self.error: ModelError | None = None
        self._random = random
        self.generation = 0
        self._inside = 0
        self._window: int | None = None
        self._enough = 0
        self._opens_at = 0.0
        self._was_told = False
        self._failures = 0
        self._pause = FIRST_PAUSE

    def wait(self, now: float) -> float:
        """Seconds until one more may be let in; infinite while it depends on those that are inside."""
        if self._window is None:
            return 0.0
        if now < self._opens_at:
            return self._opens_at - now
        return 0.0 if self._inside < self._window else inf

    def enter(self) -> int:
        """Lets one in, and says what `leave` wants to know."""
        self._inside += 1
        return self.generation

    def leave(self, generation: int) -> None:
        """One that was let in is done."""
        if generation == self.generation:
            self._inside -= 1

    def answered(self, generation: int, now: float) -> None:
        """The model is alive."""
        if generation == self.generation:
            self._failures = 0
            self._pause = FIRST_PAUSE
            if self._window is not None:
                self._window += 1
        elif not self._was_told:
            self._opens_at = min(self._opens_at, now)

    def failed(self, generation: int, error: ModelError, now: float) -> bool:
        """The model did not answer, for a reason that may pass.

        Returns:
            Whether that closed the gate, perhaps once more.
        """
        if generation != self.generation:  # sent before it closed: it tells nothing new but a longer pause
            if error.retry_after is not None and self._window is not None:
                self._opens_at = max(self._opens_at, now + error.retry_after)
            return False
        self._failures += 1
        told = error.retry_after is not None or error.status == _TOO_MANY
        probe = self._window == 1
        if self._window is not None:
            self._window = max(1, self._window // 2)
        if not (told or probe or self._failures >= FAILURES_IN_A_ROW):
            return False
        if error.retry_after is not None:
            # Later, never earlier; and other processes were told the same.
            pause = error.retry_after + self._random() * max(FIRST_PAUSE, 0.1 * error.retry_after)
        else:
            pause = self._pause * (0.5 + 0.5 * self._random())
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        if self.closed_since is None:
            self.closed_since, self._enough = now, max(2, self._inside)  # two: not without an answer
        self.error, self._was_told = error, told
        self._opens_at = now + pause
        self._window, self._inside = 1, 0
        self.generation += 1
        self._failures = 0
        return True

    def open_if(self, nobody_waits: bool) -> bool:
        """Opens for all, once as many are let in as were before, and nobody waits. Says whether it did."""
        if self._window is None or not nobody_waits or self._window < self._enough:
            return False
        self._window = self.closed_since = self.error = None
        return True
