"""The topics."""

from __future__ import annotations

from collections.abc import Mapping

from confluent_kafka import Message as Record

from beam_agents import RunResult
from examples.support.production.events import Chat, Email, Reply, Status

MESSAGES = "messages"
"""What the door took: the ticket is the record's key."""
ID_HEADER = "idempotency-key"
"""The header of its records that has the event's id."""
ANSWERS = "answers"
"""What became of messages; the door reads it for those who wait."""
FAILURES = "failures"
TRACE = "trace"

LARGEST = 8_000_000
"""Bytes of a failure: it has the event and the transcript."""

TOPICS: Mapping[str, Mapping[str, str]] = {
    MESSAGES: {},
    ANSWERS: {},
    FAILURES: {"max.message.bytes": str(LARGEST)},
    TRACE: {},
}
"""All of them, with their settings."""


class Answer(Reply):
    """What stands in `answers`: the reply, and what it is about."""

    message: str
    """The message's id."""
    ticket: str


def answer(result: RunResult[Chat | Email | Status, Reply]) -> Answer:
    """What is told of a result."""
    return Answer(**result.output.model_dump(), message=result.run_id, ticket=result.event.ticket)


def id_of(record: Record) -> str:
    """The id of an event that the door took."""
    value = dict(record.headers() or {})[ID_HEADER]
    assert isinstance(value, bytes)
    return value.decode()
