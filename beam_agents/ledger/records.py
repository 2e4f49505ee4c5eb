"""What a ledger keeps: heads, runs, effects, leases.

Times are seconds since 1970 and durations are seconds; a store keeps both to the microsecond.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias


class HeadKey(NamedTuple):
    """One key of one use of an agent."""

    scope: str
    agent: str
    revision: int
    key: str
    """The Beam key as canonical JSON (`codec.key_text`)."""


class RunKey(NamedTuple):
    """One run; its first four fields are its head's."""

    scope: str
    agent: str
    revision: int
    key: str
    run_id: str

    @property
    def head(self) -> HeadKey:
        return HeadKey(self.scope, self.agent, self.revision, self.key)


@dataclass(frozen=True, slots=True)
class Head:
    """What a key has come to: the newest session, and the run that is open."""

    key: HeadKey
    session_version: int = 0
    session: str | None = None
    """The session as JSON, as the last close left it."""
    open_run: str | None = None
    forgotten_to: int | None = None
    """Event time of the newest run whose tombstone was dropped, microseconds since 1970: an event that is not younger
    and has no record may have been handled, and nobody knows."""


@dataclass(frozen=True, slots=True)
class Run:
    """The record of one run."""

    key: RunKey
    event: str
    """The event as JSON."""
    digest: str
    """Digest of the event; the same id with another digest is a conflict."""
    opened_at: float
    """Seconds since 1970 of the first opening, whatever is tried again."""
    epoch: int
    """Raised by each takeover; intents and the close of an older epoch are refused."""
    owner: str
    """The worker that drives it; empty when it was let go."""
    epoch_at: float
    """Seconds since 1970 when this epoch began."""
    held: float = 0.0
    """Seconds that workers held it in earlier epochs."""
    stalls: int = 0
    """Openings since the last new outcome, the first one not counted."""
    end: str | None = None
    """What it came to, as JSON; `None` while it is open."""
    closed_at: float | None = None
    nonce: str = ""
    """That of the opening that began this epoch."""
    event_time: int | None = None
    """Of the event, as it was when the run was first opened; microseconds since 1970."""
    reason: str | None = None
    """Why it ended without an answer: a `FailureReason`; `None` while it is open, and for an answer."""
    doubtful: bool = False
    """Whether it ended with a call in doubt that no person has resolved yet."""
    resolution: str | None = None
    """What persons found out about its calls: a JSON list of `Resolution`."""

    @property
    def tombstone(self) -> bool:
        """Whether it was pruned: it ended, but its event, its end and its journal are gone."""
        return self.end == ""


Delivery: TypeAlias = tuple[str, int]
"""(path, attempt) of an outcome that was handed to the run's code."""


class Effect(NamedTuple):
    """One attempt of an effect: its intent and, once recorded, its outcome.

    A tuple, because several are made for each step, and a frozen dataclass takes four times as long.
    """

    path: str
    attempt: int
    kind: str
    """`model`, `tool` or `sleep`."""
    name: str
    digest: str
    """Digest of what was asked; replay must ask the same."""
    effect: str
    """`pure`, `idempotent` or `once`."""
    arguments: str | None
    """As JSON; `None` for model requests, whose transcript would make the journal grow with its square."""
    intent_at: float = 0.0
    """Set by the ledger: seconds since 1970."""
    delivered: tuple[Delivery, ...] = ()
    """The outcomes that the code was given since the intent before this one, in order."""
    due: float | None = None
    """For a sleep: when it ends, seconds since 1970."""
    status: str | None = None
    """`None` until the outcome is recorded; see `engine.outcome`."""
    value: str | None = None
    """The outcome as JSON."""
    outcome_at: float | None = None


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a person found out about a call that was in doubt."""

    path: str
    attempt: int
    status: str
    """`ok` or `failed`."""
    value: str
    """JSON: what the call returned, or a message."""
    by: str
    """Who says so."""
    at: float = 0.0
    """Set by the ledger: seconds since 1970."""


@dataclass(frozen=True, slots=True)
class UseSummary:
    """What a ledger has of one use of an agent."""

    scope: str
    agent: str
    open: int
    ended: int
    """Tombstones not counted."""
    doubtful: int
    tombstones: int
    pruned_to: float | None
    """When the newest run that was pruned had been closed, seconds since 1970: state of Beam that is older may need
    what is gone."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's sign of life; one for all of its runs."""

    owner: str
    renewed_at: float
    until: float
