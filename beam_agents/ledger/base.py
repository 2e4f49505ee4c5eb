"""The ledger's protocol: records, commands, answers, and what a backend has to provide.

State decides what is emitted, the ledger decides what is done. It holds a record for each run, a journal of each
run's effects, and a head for each key. Workers change it by commands; a group of commands is one transaction. What
a command means stands in `rules.py`, once for all backends. Times are seconds since 1970 and durations are seconds; a
store keeps both to the microsecond.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

from beam_agents.errors import BeamAgentsError

LEASE_SECONDS = 4.0
"""How long a worker is believed alive after its last renewal."""


class LedgerUnavailable(BeamAgentsError):
    """The store did not take the commands this time (down, locked, full); they may be given again as they are."""


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


# ---- records ----


@dataclass(frozen=True, slots=True)
class Head:
    """What a key has come to: the newest session, and the run that is open."""

    key: HeadKey
    session_version: int = 0
    session: str | None = None
    """The session as JSON, as the last close left it."""
    open_run: str | None = None


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


Delivery: TypeAlias = tuple[str, int]
"""(path, attempt) of an outcome that was handed to the run's code."""


@dataclass(frozen=True, slots=True)
class Effect:
    """One attempt of an effect: its intent and, once recorded, its outcome."""

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
class Lease:
    """A worker's sign of life; one for all of its runs."""

    owner: str
    renewed_at: float
    until: float


# ---- commands and their answers ----


@dataclass(frozen=True, slots=True)
class Open:
    """Opens a run, or takes it over from a worker whose lease has run out.

    Answers: `Opened`, `Closed` (it has ended), `Busy` (its worker is alive), `OtherOpen` (another run of the key is
    open), `Conflict` (the id was used for another event), `StateAhead` (the state knows a newer session than the head).
    """

    run: RunKey
    event: str
    digest: str
    owner: str
    session_version: int = 0
    """The version that Beam's state has. A head that is behind it takes it over only with `session`."""
    session: str | None = None
    """The session to go on from in a head that is behind: for the first run after the revision was changed."""
    nonce: str = ""
    """Names this opening; the same when the command is given again because its answer was lost. The run is answered as
    it is then: no epoch, no stall. Empty: each opening counts."""
    event_time: int | None = None
    """Of the event, microseconds since 1970."""


@dataclass(frozen=True, slots=True)
class Intend:
    """Records that an attempt is about to be made. Given again, it changes nothing.

    Answers: `Done`, `Fenced`, or `Recorded` with the attempt before this one, when its outcome has come from a worker
    that was believed dead and leaves nothing to attempt.
    """

    run: RunKey
    epoch: int
    effect: Effect


@dataclass(frozen=True, slots=True)
class Record:
    """Records an attempt's outcome if it has none, whoever reports it and however late. Answers: `Recorded`."""

    run: RunKey
    path: str
    attempt: int
    status: str
    value: str


@dataclass(frozen=True, slots=True)
class Close:
    """Ends a run and moves the head on. Answers: `Closed` with what stands in the record, `Fenced`."""

    run: RunKey
    epoch: int
    end: str
    session: str | None
    """The key's session from now on, as JSON."""


@dataclass(frozen=True, slots=True)
class Release:
    """Lets a run go without ending it, so that any worker may open it at once. Answers: `Done`, `Fenced`."""

    run: RunKey
    epoch: int


@dataclass(frozen=True, slots=True)
class Renew:
    """A worker's sign of life. Answers: `Done`."""

    owner: str


@dataclass(frozen=True, slots=True)
class ReadHead:
    """Reads what a key has come to. Answers: `HeadIs`."""

    head: HeadKey


@dataclass(frozen=True, slots=True)
class Load:
    """Reads a run with its journal. Answers: `Loaded`."""

    run: RunKey


@dataclass(frozen=True, slots=True)
class FindOrphans:
    """Finds the open runs of a scope whose worker is gone. Answers: `Orphans`."""

    scope: str
    agent: str
    limit: int = 1000


@dataclass(frozen=True, slots=True)
class FindClosed:
    """Finds the runs of a scope that were closed lately. Answers: `FoundClosed`."""

    scope: str
    agent: str
    within: float
    """Seconds before now."""
    limit: int = 10_000


Command: TypeAlias = Open | Intend | Record | Close | Release | Renew | ReadHead | Load | FindOrphans | FindClosed


@dataclass(frozen=True, slots=True)
class Opened:
    """The run is the opener's, with its journal and the key's session."""

    run: Run
    effects: tuple[Effect, ...]
    """The journal in the order of its intents."""
    session_version: int
    session: str | None


@dataclass(frozen=True, slots=True)
class Closed:
    """The run has ended; the record says how."""

    run: Run
    effects: tuple[Effect, ...]
    session_version: int
    """Of the head, which may have moved on since this run."""
    session: str | None


@dataclass(frozen=True, slots=True)
class Busy:
    """The run is driven by a worker that is alive."""

    run: Run
    until: float
    """When its worker's lease runs out unless it is renewed."""


@dataclass(frozen=True, slots=True)
class OtherOpen:
    """Another run of the key has to end first."""

    run: Run
    """The run that is open."""
    until: float
    """When its worker's lease runs out; 0 when nobody drives it."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """The id belongs to another event."""

    run: Run


@dataclass(frozen=True, slots=True)
class StateAhead:
    """The state knows a newer session than this ledger."""

    session_version: int
    """The head's; lower than the state's."""


@dataclass(frozen=True, slots=True)
class Done:
    """Carried out, at this time."""

    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Fenced:
    """Refused: the run has ended, or another worker has it."""

    run: Run | None
    """What the record says now."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """The outcome that stands."""

    effect: Effect
    """The attempt with the outcome that stands, which may be another than the one given."""
    new: bool


@dataclass(frozen=True, slots=True)
class HeadIs:
    """The head as it is now."""

    head: Head | None
    """`None` for a key that had no run yet."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A run with its journal in the order of its intents."""

    run: Run | None
    effects: tuple[Effect, ...] = ()


@dataclass(frozen=True, slots=True)
class Orphans:
    """Open runs that nobody drives."""

    runs: tuple[Run, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class FoundClosed:
    """Runs that were closed lately, the newest first."""

    runs: tuple[RunKey, ...] = field(default=())


Answer: TypeAlias = (
    Opened
    | Closed
    | Busy
    | OtherOpen
    | Conflict
    | StateAhead
    | Done
    | Fenced
    | Recorded
    | HeadIs
    | Loaded
    | Orphans
    | FoundClosed
)


# ---- backends ----


class Transaction(Protocol):
    """What the rules need of a store inside one transaction."""

    def now(self) -> float:
        """Seconds since 1970, by one clock for all workers of this ledger."""
        ...

    def head(self, key: HeadKey) -> Head | None: ...
    def put_head(self, head: Head) -> None: ...
    def run(self, key: RunKey) -> Run | None: ...
    def put_run(self, run: Run) -> None: ...
    def effects(self, key: RunKey) -> tuple[Effect, ...]:
        """The journal in the order in which `add_effect` was called."""
        ...

    def effect(self, key: RunKey, path: str, attempt: int) -> Effect | None: ...
    def add_effect(self, key: RunKey, effect: Effect) -> None: ...
    def put_outcome(self, key: RunKey, effect: Effect) -> None:
        """Stores `status`, `value` and `outcome_at` of an attempt that is there."""
        ...

    def lease(self, owner: str) -> Lease | None: ...
    def put_lease(self, lease: Lease) -> None: ...
    def open_runs(self, scope: str, agent: str, now: float, limit: int) -> Sequence[Run]:
        """The runs without an end that nobody drives, of all keys and revisions, at most `limit`, oldest first.

        Nobody drives a run that was let go, whose owner has no lease, or whose owner's lease ended at or before `now`.
        """
        ...

    def closed_runs(self, scope: str, agent: str, since: float, limit: int) -> Sequence[RunKey]:
        """The runs that were closed at or after `since`, of all keys and revisions, at most `limit`, newest first."""
        ...


class Ledger(ABC):
    """A store of runs. An instance is pickled with the pipeline and opened in each worker process.

    `open`, `apply` and `close` are called on one thread, the ledger writer's.
    """

    durable: bool = True
    """Whether it outlives the process; a ledger that does not cannot keep promises about `once` tools."""

    keep_open: bool = False
    """Whether a worker process that has opened it keeps it until its own end, though nobody uses it for a while."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Names the store; two ledgers with one URL are the same one."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Given to the store when it was made, and remembered by Beam's state; known once it is open."""

    @abstractmethod
    def open(self) -> None:
        """Connects, and makes the store if it is not there.

        Raises:
            LedgerUnavailable: Try again later.
            LedgerError: It cannot be used (another schema version, no permission).
        """

    @abstractmethod
    def apply(self, commands: Sequence[Command]) -> list[Answer]:
        """Carries out the commands in order, all of them or none, durably before it returns.

        Raises:
            LedgerUnavailable: Nothing is known to be recorded; giving the same commands again is safe.
            LedgerError: This ledger can never carry them out.
        """

    @abstractmethod
    def close(self) -> None:
        """Disconnects."""
