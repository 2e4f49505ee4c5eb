"""What the tests of the HTTP door share: an event, a store in memory, and what stands in a folder."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from beam_agents.io.ingress.body import Accepted
from beam_agents.io.ingress.store import Store


class Order(BaseModel):
    """What the doors of tests take."""

    customer: str
    amount: float = 0


class MemoryStore(Store):
    """Keeps what it gets in a list.

    Args:
        error: What `append` raises.
    """

    place = "memory"

    def __init__(self, error: Exception | None = None) -> None:
        self.events: list[Accepted] = []
        self.error = error

    async def open(self) -> None:
        """Needs nothing."""

    async def append(self, events: Sequence[Accepted]) -> None:
        """Keeps events."""
        if self.error is not None:
            raise self.error
        self.events += events

    async def ready(self) -> bool:
        """Whether `append` works."""
        return self.error is None

    async def close(self) -> None:
        """Keeps what it has, to be looked at."""


def stored(folder: Path) -> list[Accepted]:
    """The events in the whole lines of a folder, in their order."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("events-*.jsonl"))]
    return [Accepted(**json.loads(line)) for text in texts for line in text.split("\n")[:-1]]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
