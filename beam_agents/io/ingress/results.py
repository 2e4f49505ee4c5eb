"""What became of events, for those who wait for it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple


class Result(NamedTuple):
    """What an event came to."""

    status: Literal["decided", "failed"]
    value: Any
    """As JSON: what the job wrote."""


class Results(ABC):
    """Knows what events came to. The id that a result is found by is the event's."""

    @abstractmethod
    async def open(self) -> None:
        """Gets ready.

        Raises:
            ConfigurationError: It cannot work as it was set up.
        """

    @abstractmethod
    async def find(self, id: str) -> Result | None:
        """The result of an event, if there is one by now."""

    @abstractmethod
    async def wait(self, id: str) -> Result:
        """The result of an event, when it comes; the caller sets the limit."""

    @abstractmethod
    async def close(self) -> None:
        """Ends."""

    async def within(self, id: str, seconds: float) -> Result | None:
        """The result of an event, if it comes in time."""
        try:
            async with asyncio.timeout(seconds):
                return await self.wait(id)
        except TimeoutError:
            return None
