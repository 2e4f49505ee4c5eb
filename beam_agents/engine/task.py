"""What a driver gives to a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from beam_agents.ledger.records import RunKey


@dataclass(frozen=True)
class Task:
    """One event for one key: what a driver gives to the worker."""

    run: RunKey
    key: Any
    """The Beam key."""
    event: str
    """The event as canonical JSON."""
    digest: str
    session_version: int = 0
    session: str | None = None
    """The key's session as Beam's state has it, to begin a head that does not exist yet."""
    ledger_identity: str | None = None
    """The ledger that Beam's state remembers."""
    event_time: int | None = None
    """Of the event, microseconds since 1970; `None` where time does not matter."""
    session_ttl: int | None = None
    """Microseconds of event time after which a key's session starts anew."""
    network_forbidden: bool = False
    """Whether models that use the network are refused."""
    pure_only: bool = False
    """Whether tools that are not `pure` are refused."""
    batch: bool = False
    """Whether the wall-clock budget counts only the time that a worker held the run."""
