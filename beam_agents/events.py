"""What a run comes to: results, failures, duplicates, trace records."""

from __future__ import annotations

from enum import StrEnum
from types import UnionType
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, JsonValue

from beam_agents.budget import Usage
from beam_agents.messages import Message

EventT = TypeVar("EventT")
OutputT = TypeVar("OutputT")


class Record(BaseModel):
    """The base of values that travel between transforms: frozen, and pickled also with type arguments."""

    model_config = ConfigDict(frozen=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (_apart(type(self)), self.__dict__)


class _Parts(NamedTuple):
    """A type with arguments. pydantic makes a class for each set of them, which no module has, so pickle would not find
    it."""

    origin: Any
    arguments: tuple[Any, ...]


def _apart(type_: Any) -> Any:
    generic = getattr(type_, "__pydantic_generic_metadata__", None)
    if generic and generic["origin"]:
        return _Parts(generic["origin"], tuple(map(_apart, generic["args"])))
    if get_origin(type_) is Annotated:
        return _Parts(Annotated, (_apart(type_.__origin__), *type_.__metadata__))
    if get_origin(type_) in (Union, UnionType):
        return _Parts(Union, tuple(map(_apart, get_args(type_))))
    return type_


def _together(parts: Any) -> Any:
    return parts.origin[tuple(map(_together, parts.arguments))] if isinstance(parts, _Parts) else parts


def _unpickle(parts: Any, values: dict[str, Any]) -> Any:
    return _together(parts).model_construct(**values)


class Identified(Record, Generic[EventT]):
    """An event with the id that its source gave it. `RunAgent` takes pairs of key and `Identified`, without `event_id`,
    and the agent sees the event."""

    id: str
    event: EventT


class FailureReason(StrEnum):
    """Why an event has no answer."""

    INVALID_EVENT = "invalid_event"
    """The element is not a (key, event) pair, or its event does not fit the agent's `event_type`; also an event that
    was recorded by a release with another `event_type`."""
    MISSING_KEY = "missing_key"
    MISSING_ID = "missing_id"
    ID_CONFLICT = "id_conflict"
    """An event with this id but another content was seen before."""
    OVERLOADED = "overloaded"
    """Too many events of its key waited already. Nothing was done for it."""
    BUDGET_STEPS = "budget_steps"
    BUDGET_TOOL_CALLS = "budget_tool_calls"
    BUDGET_TOKENS = "budget_tokens"
    BUDGET_COST = "budget_cost"
    DEADLINE = "deadline"
    """The budget's `wall_clock` ran out."""
    MODEL_ERROR = "model_error"
    INVALID_OUTPUT = "invalid_output"
    """The model's answer did not fit `output_type`, also after it was told what was wrong; or a recorded answer does
    not fit the `output_type` of this release."""
    TOOL_ERROR = "tool_error"
    RESULT_LOST = "result_lost"
    """A call that changes something happened, but what it returned cannot be recorded; `message` shows it."""
    IN_DOUBT = "in_doubt"
    """A `once` call may or may not have happened; `message` names it."""
    DETERMINISM = "determinism"
    """The code asked for another effect than the journal holds: it changed under an open run, or is random."""
    CRASH_LOOP = "crash_loop"
    """The run was opened again and again without getting any further."""
    REJECTED = "rejected"
    """User code raised `FailRun`."""
    CODE_ERROR = "code_error"
    """User code (`on_event`, `skip`, instructions, a workflow) raised."""
    TOO_OLD = "too_old"
    """The event is too old to judge: the ledger has dropped what it knew of events as old as this one, so it may have
    been handled before. Nothing was done for it now."""
    STATE_ERROR = "state_error"
    """The key's state cannot be read as this agent's `state_type`."""


class RunResult(Record, Generic[EventT, OutputT]):
    """An event that was decided."""

    run_id: str
    event: EventT
    output: OutputT
    usage: Usage = Usage()
    skipped: bool = False
    """Decided by `skip`, without a model."""


class RunFailure(Record, Generic[EventT]):
    """An event that has no answer: a dead letter."""

    reason: FailureReason
    message: str
    run_id: str | None = None
    event: EventT | None = None
    """The event; `None` when it could not be read, then `raw` has it."""
    raw: str | None = None
    """The element as text, for events that could not be read."""
    usage: Usage = Usage()
    transcript: tuple[Message, ...] = ()
    """What was said until the end, each tool call with its result."""


class Duplicate(Record, Generic[EventT]):
    """The same event again."""

    run_id: str
    event: EventT | None
    """The event; `None` when this release's `event_type` cannot read it, then `raw` has it."""
    raw: str | None = None
    """The event as it was recorded, if it cannot be read."""


class Emitted(Record):
    """A value that a workflow gave to `ctx.emit`."""

    run_id: str
    index: int = 0
    """The how manyth of its run, from 0."""
    value: JsonValue


class TraceRecord(Record):
    """One step of a run, for audit and monitoring. The same after any replay."""

    run_id: str
    path: str
    """Where in the run: 0, 1, 2 ..., and 3.0.1 inside a `gather`."""
    kind: Literal["model", "tool", "sleep"]
    name: str
    attempt: int
    outcome: str
    """`ok`, `retry`, `failed`, `rejected`, `error`, `result_lost`, `in_doubt`, `not_happened`, or `open` for a call
    without outcome when the run ended."""
    arguments: Any = None
    started: float
    """Seconds since 1970 when the intent was recorded."""
    ended: float | None = None
    """Seconds since 1970 when the outcome was recorded."""
    input_tokens: int | None = None
    output_tokens: int | None = None
