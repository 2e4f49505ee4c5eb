"""An event on its way to its key's DoFn, and its admission."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.utils.timestamp import Timestamp
from pydantic import ValidationError

from beam_agents.agent_base import AgentBase
from beam_agents.codec import canonical_json, digest, explain, key_text, named, printable, shown, told
from beam_agents.events import FailureReason, Identified, RunFailure
from beam_agents.stored import Stored
from beam_agents.transforms.windows import encode_window

FAILURES = "failures"

EventId = str | Callable[[Any], Any]
"""A field of the event, or a function of it."""


class Envelope(Stored):
    """An admitted event."""

    run_id: str
    event: str
    """The event as canonical JSON."""
    digest: str
    micros: int
    """The event's time: microseconds since 1970."""
    window: str = ""
    """The input's window, encoded, in hex; empty for the global one."""

    @property
    def timestamp(self) -> Timestamp:
        """The event's time."""
        return Timestamp(micros=self.micros)

    def encoded(self) -> bytes:
        """As it is stored."""
        return self.to_json()


class Admit(beam.DoFn):
    """Checks each element where it stands, in its own window: bad ones go to `failures` before they touch any state.

    Args:
        agent: Whose events they are.
        event_id: How an event names itself; `None` where elements are `Identified`.
        scope: For metrics.
        window_coder: The coder of the input's windows.
    """

    def __init__(
        self, agent: AgentBase[Any, Any, Any, Any], event_id: EventId | None, scope: str, window_coder: Any
    ) -> None:
        self._agent = agent
        self._event_id = event_id
        self._window_coder = window_coder
        self._failed = Metrics.counter(f"beam_agents.{scope}", "failed")

    def process(
        self, element: Any, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[Any]:
        """Emits (key, envelope) or, tagged, (key, failure)."""
        yield self._admit(element, timestamp, window)

    def _admit(self, element: Any, timestamp: Any, window: Any) -> Any:
        if not isinstance(element, tuple) or len(element) != 2:
            message = "the element is not a pair of key and event; put beam.WithKeys(...) before RunAgent"
            return self._refuse(None, FailureReason.INVALID_EVENT, message, raw=element)
        key, raw = element
        if key is None:
            return self._refuse(None, FailureReason.MISSING_KEY, "the key is None", raw=raw)
        source_id: str | None = None
        if isinstance(raw, Identified):
            source_id, raw = raw.id, raw.event
        # Validators and event_id are the user's and may raise anything.
        try:
            key_text(key)
            event = self._agent.read_event(raw)
            text = self._agent.event_json(event)
            event = self._agent.read_event_json(text)  # the record must read back, or nothing could be emitted
        except ValidationError as error:
            return self._refuse(key, FailureReason.INVALID_EVENT, explain(error, "event"), raw=raw)
        except BaseException as error:
            message = told(error) if isinstance(error, ValueError) else named(error)
            return self._refuse(key, FailureReason.INVALID_EVENT, message, raw=raw)
        try:
            run_id = self._id_of(event, source_id)
        except BaseException as error:
            message = f"event_id={self._event_id!r}: {named(error)}"
            return self._refuse(key, FailureReason.MISSING_ID, message, event=event)
        encoded = encode_window(window, self._window_coder).hex()
        if encoded:
            run_id = f"{run_id}@{window.max_timestamp().micros}"
        envelope = Envelope(
            run_id=run_id, event=text, digest=digest(text), micros=Timestamp.of(timestamp).micros, window=encoded
        )
        return key, envelope.encoded()

    def _id_of(self, event: Any, source_id: str | None) -> str:
        found: Any
        if self._event_id is None:
            found = source_id
        elif callable(self._event_id):
            found = self._event_id(event)
        elif isinstance(event, dict):
            found = event.get(self._event_id)
        else:
            found = getattr(event, self._event_id, None)
        if found is None or found == "":
            raise ValueError("the event has no id; without one a replay cannot be told from a new event")
        if not isinstance(found, (str, int)):
            raise TypeError(f"an id is a text or a whole number, not {found!r}")
        text = str(found)
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"the id {text!r} holds U+0000 or half of a surrogate pair, which no ledger can keep")
        return text

    def _refuse(
        self, key: Any, reason: FailureReason, message: str, *, event: Any = None, raw: Any = None
    ) -> beam.pvalue.TaggedOutput:
        self._failed.inc()
        text = _as_text(raw) if event is None else None
        failure: RunFailure[Any] = RunFailure(reason=reason, message=message, event=event, raw=text)
        return beam.pvalue.TaggedOutput(FAILURES, (key, failure))


def _as_text(raw: Any) -> str:
    """An element for a dead letter, as JSON where JSON can hold it, so that it can be mended and given again."""
    if isinstance(raw, bytes):
        return raw.decode(errors="replace")
    if not isinstance(raw, str):
        try:
            return canonical_json(raw)
        except ValueError:
            raw = shown(raw, limit=100_000)
    return printable(str(raw))
