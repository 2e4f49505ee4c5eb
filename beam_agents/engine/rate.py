"""A quota for each minute, spread evenly over it."""

from __future__ import annotations

_NEARLY = 1e-6


class Rate:
    """A bucket that fills at the quota's pace, and holds a second's worth, or what the next use needs.

    Args:
        per_minute: The quota.
    """

    def __init__(self, per_minute: int) -> None:
        self._most = float(per_minute)
        self._burst = max(1.0, per_minute // 60)
        # So that a burst and all that follows it within a minute stay within the quota.
        self._pace = (per_minute - self._burst + 1) / 60
        self._level = self._burst
        self._at: float | None = None

    def wait(self, amount: float, now: float) -> float:
        """Seconds until that much may be used.

        Args:
            amount: How much; what is more than a whole quota counts as that.
            now: Seconds on any clock that does not go back.
        """
        amount = min(amount, self._most)
        passed = now - self._at if self._at is not None else 0.0
        self._at = now
        self._level = max(self._level, min(max(self._burst, amount), self._level + passed * self._pace))
        missing = amount - self._level
        return missing / self._pace if missing > _NEARLY * amount else 0.0

    def use(self, amount: float) -> None:
        """Takes that much out, or puts it back if it is negative; what is used without asking is owed."""
        self._level -= min(amount, self._most)
