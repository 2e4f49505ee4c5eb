"""Where accepted events are kept until a job has read them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from beam_agents.io.ingress.body import Accepted


class StoreDown(Exception):
    """Events may not have been stored: the client sends them again, with the same ids."""


class TooLarge(Exception):
    """An event is larger than what the store can keep, so that it is no use to send it again."""


class Store(ABC):
    """Keeps events."""

    place: str
    """What it is called in errors and logs, without secrets."""

    @abstractmethod
    async def open(self) -> None:
        """Gets ready.

        Raises:
            ConfigurationError: It cannot work as it was set up.
        """

    @abstractmethod
    async def append(self, events: Sequence[Accepted]) -> None:
        """Keeps events: when it returns, they are where no death of a process or machine loses them.

        Raises:
            StoreDown: They may not be.
            TooLarge: One is too large to be kept.
        """

    @abstractmethod
    async def ready(self) -> bool:
        """Whether it takes events now, as far as one can say."""

    @abstractmethod
    async def close(self) -> None:
        """Ends, after what is under way."""
