"""What workers and operators ask of a ledger, and what it answers. What a command means stands in `rules.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from beam_agents.ledger.records import Effect, Head, HeadKey, Resolution, Run, RunKey, UseSummary


@dataclass(frozen=True, slots=True)
class Open:
    """Opens a run, or takes it over from a worker whose lease has run out.

    Answers: `Opened`, `Closed` (it has ended), `Busy` (its worker is alive), `OtherOpen` (another run of the key is
    open), `Conflict` (the id was used for another event), `StateAhead` (the state knows a newer session than the head),
    `Pruned` (it has ended, and what it came to is gone), `TooOld` (if there was a record, it is gone).
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
class Record:
    """Records an attempt's outcome if it has none, whoever reports it and however late.

    Answers: `Recorded`, or `Fenced` when the run has ended so long ago that it was pruned.
    """

    run: RunKey
    path: str
    attempt: int
    status: str
    value: str


@dataclass(frozen=True, slots=True)
class Intend:
    """Records that an attempt is about to be made. Given again, it changes nothing.

    Answers: `Done`, `Fenced`, or `Recorded` with an earlier attempt, whose outcome has come from a worker that was
    believed dead and leaves nothing to attempt.
    """

    run: RunKey
    epoch: int
    effect: Effect
    outcomes: tuple[Record, ...] = ()
    """Of the same run, which its code went on with: they are recorded first, whatever becomes of the intent. If one
    stands otherwise already, the code has seen what did not happen, and the answer is `Fenced`."""


@dataclass(frozen=True, slots=True)
class Close:
    """Ends a run and moves the head on. Answers: `Closed` with what stands in the record, `Fenced`."""

    run: RunKey
    epoch: int
    end: str
    session: str | None
    """The key's session from now on, as JSON."""
    reason: str | None = None
    """Why there is no answer: a `FailureReason`; `in_doubt` makes the run one that a person has to look at."""
    outcomes: tuple[Record, ...] = ()
    """As those of `Intend`."""


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


@dataclass(frozen=True, slots=True)
class FindRuns:
    """Finds runs for a person to look at; tombstones are not among them. Answers: `FoundRuns`."""

    scope: str | None = None
    """`None`: of all scopes."""
    agent: str | None = None
    key: str | None = None
    """The Beam key as canonical JSON."""
    run_id: str | None = None
    revision: int | None = None
    which: Literal["all", "open", "doubtful", "failed"] = "all"
    """`failed`: ended without an answer."""
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Summarize:
    """Counts what the ledger has, for each use of an agent. Answers: `Summary`."""


@dataclass(frozen=True, slots=True)
class Resolve:
    """Records what a person found out about a call without a known outcome.

    Of an open run that nobody drives it is the call's outcome, with which the run goes on. Of an ended run it is only
    noted: what was emitted stands. Either way the run keeps who has said it.

    Answers: `Recorded` (the outcome of an open run's call), `Resolved` (noted), `Busy` (a worker that is alive drives
    the run), `Loaded` (there is no such run, it is pruned, or it has no such call without a known outcome).
    """

    run: RunKey
    resolution: Resolution


@dataclass(frozen=True, slots=True)
class Prune:
    """Drops what is old of one use of an agent: journals, events and ends of runs closed long ago, which leave
    tombstones, and old tombstones. Open runs and heads stay. Answers: `PruneDone`; while a count is at the limit, there
    is more.
    """

    scope: str
    agent: str
    closed_for: float
    """Seconds since the close after which a run is made a tombstone."""
    tombstones_for: float
    """Seconds since the close after which its tombstone is dropped, too."""
    limit: int = 500
    """At most so many runs, and so many tombstones, at once."""


@dataclass(frozen=True, slots=True)
class CountOld:
    """Counts what `Prune` would drop if it were given until there is no more. Answers: `PruneDone`."""

    scope: str
    agent: str
    closed_for: float
    """As that of `Prune`."""
    tombstones_for: float
    """As that of `Prune`; not less than `closed_for`."""


@dataclass(frozen=True, slots=True)
class ReadHorizon:
    """Reads how far a use of an agent was pruned. Answers: `HorizonIs`."""

    scope: str
    agent: str


Command: TypeAlias = (
    Open
    | Intend
    | Record
    | Close
    | Release
    | Renew
    | ReadHead
    | Load
    | FindOrphans
    | FindClosed
    | FindRuns
    | Summarize
    | Resolve
    | Prune
    | CountOld
    | ReadHorizon
)


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
class Pruned:
    """The run has ended, and only its tombstone is left."""

    run: Run


@dataclass(frozen=True, slots=True)
class TooOld:
    """There is no record of the run, but tombstones of events as old as its event were dropped."""

    forgotten_to: int
    """Event time of the newest of them, microseconds since 1970."""


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


@dataclass(frozen=True, slots=True)
class FoundRuns:
    """Runs, the newest first."""

    runs: tuple[Run, ...] = ()


@dataclass(frozen=True, slots=True)
class Summary:
    """What the ledger has, by scope and agent."""

    uses: tuple[UseSummary, ...] = ()


@dataclass(frozen=True, slots=True)
class Resolved:
    """It is noted in the run's record."""

    run: Run


@dataclass(frozen=True, slots=True)
class PruneDone:
    """How much was dropped, or would be."""

    runs: int
    """Made tombstones."""
    tombstones: int
    """Dropped."""


@dataclass(frozen=True, slots=True)
class HorizonIs:
    """How far a use of an agent was pruned."""

    pruned_to: float | None
    """When the newest run that was pruned had been closed, seconds since 1970; `None` if none was."""


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
    | Pruned
    | TooOld
    | FoundRuns
    | Summary
    | Resolved
    | PruneDone
    | HorizonIs
)
