"""What leaves the pipeline: its identity, its JSON, and what is said of a value that could not be delivered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.pvalue import PCollection
from apache_beam.typehints.native_type_compatibility import convert_to_beam_type
from apache_beam.typehints.typehints import Any as AnyHint
from apache_beam.typehints.typehints import coerce_to_kv_type
from pydantic import BaseModel, ConfigDict

from beam_agents.codec import canonical_json, digest, key_text, named, shown
from beam_agents.errors import ConfigurationError
from beam_agents.events import Duplicate, Emitted, FailureReason, RunFailure, RunResult, TraceRecord
from beam_agents.transforms.coders import register

Field = str | Callable[[Any], Any]
"""A field of the value (an attribute, or a key of a mapping), or a function of it."""

UNDELIVERED = "undelivered"
"""The tag of what could not be delivered."""


class Undelivered(BaseModel):
    """A value that a sink could not deliver, and never will by itself."""

    model_config = ConfigDict(frozen=True)

    id: str | None
    """What `Identity.digest` gives, which the other side may have seen; `None` when the value has no id."""
    message: str
    """Why, without secrets."""
    value: str
    """The value as JSON, or, if JSON cannot hold it, the beginning of its `repr`."""
    attempts: int = 0
    """How often it was sent."""
    status: int | None = None
    """The HTTP status of the last answer, if there was one."""


class Identity(NamedTuple):
    """What tells a value from all others of its key, in this job and after any replay."""

    kind: str
    """`result`, `failure`, `trace`, `emitted`, `duplicate`, or `value` for an id of the user's."""
    id: str
    run_id: str | None

    def digest(self, key: Any, *scope: str) -> str:
        """A name that no value of another key has, either: 32 hex digits."""
        return digest(*scope, key_text(key), self.kind, self.id)


def identify(value: Any, id: Field | None) -> Identity:
    """The identity of an output of `RunAgent`, or, with `id`, of any value.

    The ledger decides what a run comes to, so two values with one identity are the same value.

    Raises:
        ValueError: The value has no identity.
    """
    if id is not None:
        own = field_of(value, id)
        if own is None or own == "":
            raise ValueError(f"id={id!r} gave {own!r}")
        return Identity("value", str(own), getattr(value, "run_id", None))
    match value:
        case RunResult():
            return Identity("result", value.run_id, value.run_id)
        case RunFailure(run_id=None):  # an element that was no event: its content is all that it has
            return Identity("failure", digest(canonical_json(value)), None)
        case RunFailure(reason=FailureReason.ID_CONFLICT):  # the id is that of another event
            return Identity(
                "failure", f"{value.run_id} {digest(canonical_json(value.event), str(value.raw))}", value.run_id
            )
        case RunFailure():
            return Identity("failure", f"{value.run_id} {value.reason.value}", value.run_id)
        case TraceRecord():
            return Identity("trace", f"{value.run_id} {value.path} {value.attempt}", value.run_id)
        case Emitted():
            return Identity("emitted", f"{value.run_id} {value.index}", value.run_id)
        case Duplicate():
            return Identity("duplicate", value.run_id, value.run_id)
    raise ValueError(f"{shown(value)} is no output of RunAgent; say with id=... what identifies it")


def check_identifiable(pcoll: PCollection[Any], sink: str, id: Field | None, *, once: bool) -> None:
    """Refuses input of which its type says that the sink cannot tell its values apart.

    Args:
        pcoll: The input.
        sink: Named in errors.
        id: What identifies a value, if the user says it.
        once: Whether a value with the identity of an earlier one is left out.

    Raises:
        ConfigurationError: It says what to change.
    """
    if pcoll.element_type in (None, Any, AnyHint):
        return
    try:
        _, value_type = coerce_to_kv_type(pcoll.element_type, sink).tuple_types
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{sink}: its input has elements of {pcoll.element_type}, not pairs of key and value; "
            "put beam.WithKeys(...) before it"
        ) from error
    if id is not None or not isinstance(value_type, type):
        return
    if once and issubclass(value_type, Duplicate):
        raise ConfigurationError(
            f"{sink}: an event can come again many times, so a Duplicate has no id of its own; give id=..."
        )
    known = (RunResult, RunFailure, TraceRecord, Emitted, Duplicate)
    if value_type is not object and not issubclass(value_type, known):
        raise ConfigurationError(
            f"{sink}: {value_type.__name__} is no output of RunAgent; say with id=... which field identifies it, or "
            "give a function of the value"
        )


def field_of(value: Any, field: Field) -> Any:
    """What a field or function says of a value.

    Raises:
        Exception: Whatever a function raised, or that there is no such field.
    """
    if callable(field):
        return field(value)
    return value[field] if isinstance(value, Mapping) else getattr(value, field)


def check_field(sink: str, name: str, field: Field | None) -> None:
    """Refuses what is neither a field nor a function.

    Raises:
        ConfigurationError: It says what to give.
    """
    if field is not None and not callable(field) and (not isinstance(field, str) or not field):
        raise ConfigurationError(f"{sink}({name}={field!r}) must name a field of the value, or be a function of it")


def undelivered(
    value: Any, why: str | Exception, *, id: str | None = None, attempts: int = 0, status: int | None = None
) -> Undelivered:
    """The record of a value that was not delivered."""
    try:
        text = canonical_json(value)
    except ValueError:
        text = shown(value)
    message = why if isinstance(why, str) else named(why)
    return Undelivered(id=id, message=message, value=text, attempts=attempts, status=status)


def typed_undelivered(pcoll: PCollection[Any]) -> PCollection[Any]:
    """Gives the output of undelivered values its type: (key, `Undelivered`)."""
    register(Undelivered)
    pcoll.element_type = convert_to_beam_type(tuple[Any, Undelivered])
    return pcoll


def pair_of(element: Any, sink: str) -> tuple[Any, Any]:
    """An element as key and value.

    Raises:
        TypeError: It is no pair.
    """
    if not isinstance(element, tuple) or len(element) != 2:
        raise TypeError(f"{sink} takes pairs of key and value, not {shown(element)}; put beam.WithKeys(...) before it")
    return element


def transforms_of(pipeline: beam.Pipeline, type_: type[Any]) -> list[Any]:
    """The transforms of a type that a pipeline has so far."""
    found: list[Any] = []
    waiting = [pipeline.transforms_stack[0]]
    while waiting:
        applied = waiting.pop()
        if isinstance(applied.transform, type_):
            found.append(applied.transform)
        waiting.extend(applied.parts)
    return found
