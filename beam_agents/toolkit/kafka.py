"""`publish` and `request`: an event to another job's topic as a tool, and the answer to it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from beam_agents.errors import ConfigurationError
from beam_agents.toolkit.declared import KEY, Declaration, check_limits
from beam_agents.toolkit.kafka_event import Event, Published
from beam_agents.toolkit.kept import Kept
from beam_agents.tools import Tool

if TYPE_CHECKING:
    from beam_agents.io.kafka_connection import Kafka

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_GRACE = timedelta(seconds=5)
"""How much longer than its own time-out a call may take, so that the error is the one that names the topic."""


def publish(
    kafka: Kafka,
    topic: str,
    *,
    key: str | None = None,
    body: str | None = None,
    timeout: timedelta = timedelta(seconds=30),
    retries: int = 0,
    model_retries: int = 2,
    in_flight: int | None = None,
    name: str | None = None,
    description: str | None = None,
    redact: Callable[[str], str] | None = None,
) -> Callable[[Callable[..., Any]], Tool[Any]]:
    """Makes an event to a topic of Kafka a tool. It decorates a typed function without a body.

    The event is the arguments as a JSON object. Its header `id` is the call's key, the same whenever the call is made
    again: whoever reads the topic with `event_id=Header("id")` handles it once. So the tool is `idempotent`. The header
    `run_id` names the run. The call is done when all replicas that are in sync have the record.

    The function returns None, or `Published`: topic, partition and offset.

    Args:
        kafka: The brokers.
        topic: The topic. It must be there.
        key: The parameter that is the record's key; by default that is the key of the run.
        body: The parameter whose value is all of the event.
        timeout: How long brokers that are away are waited for.
        retries: Further attempts after an error or a time-out.
        model_retries, in_flight, name, description, redact: As in `@tool`.

    Raises:
        ConfigurationError: The declaration cannot work.
    """
    kind = f"publish to {topic!r}"
    _check(kind, kafka, topic, timeout)

    def declare(function: Callable[..., Any]) -> Tool[Any]:
        from beam_agents.toolkit.kafka_call import Publish, open_sender

        declared = Declaration("publish", function)
        if declared.returns not in (None, type(None), Published):
            raise ConfigurationError(
                f"{kind}: {declared.name!r} can return None or Published, not {declared.returns!r}; for an answer "
                "use request"
            )
        seconds = timeout.total_seconds()
        event = Event(topic, key, _parameters(kind, declared, key, body), body)
        call = Publish(Kept(partial(open_sender, kafka, seconds)), kafka.servers, event, seconds, declared.returns)
        return Tool(
            declared.calling(call.call),
            effect="idempotent",
            timeout=timeout + _GRACE,
            retries=retries,
            model_retries=model_retries,
            in_flight=in_flight,
            name=name,
            description=description,
            redact=redact,
        )

    return declare


def request(
    kafka: Kafka,
    topic: str,
    *,
    replies: str,
    key: str | None = None,
    body: str | None = None,
    timeout: timedelta = timedelta(minutes=1),
    remember: timedelta | None = None,
    retries: int = 0,
    model_retries: int = 2,
    in_flight: int | None = None,
    name: str | None = None,
    description: str | None = None,
    redact: Callable[[str], str] | None = None,
) -> Callable[[Callable[..., Any]], Tool[Any]]:
    """Makes an event to another job's topic and its answer a tool. It decorates a typed function without a body.

    The event is as `publish` writes it, with `replies` as the header `reply_to`. The answer is the first record in
    `replies` whose header `in_reply_to`, or else `run_id`, is the event's `id`: so a job that reads the topic with
    `event_id=Header("id")` and writes its agent's results to `replies` is asked by this. Its value is JSON, read as the
    return type; of a `RunResult` that is the `output`. A failure (header `kind` is `failure`) is a `ToolFailed`.

    The tool is `idempotent`: after a crash an answer that has come meanwhile is found in the topic, and only if there
    is none the event is written again, with the same id. The other job has to know ids that it had before.

    Args:
        kafka: The brokers.
        topic: The other job's topic. It must be there.
        replies: The topic of the answers. It must be there; each worker reads all of it from the first call on.
        key: The parameter that is the record's key; by default that is the key of the run.
        body: The parameter whose value is all of the event.
        timeout: For the event and its answer.
        remember: How far a call that is made again looks back for an answer; by default `timeout` and an hour. It
            should span what a job may be down, and the topic has to keep records for as long.
        retries: Further attempts after an error or a time-out.
        model_retries, in_flight, name, description, redact: As in `@tool`.

    Raises:
        ConfigurationError: The declaration cannot work.
    """
    kind = f"request to {topic!r}"
    _check(kind, kafka, topic, timeout)
    _check_topic(f"{kind}: replies", replies)
    if replies == topic:
        raise ConfigurationError(f"{kind}: replies={replies!r} must be another topic")
    span = timeout + timedelta(hours=1) if remember is None else remember
    if span < timeout:
        raise ConfigurationError(f"{kind}: remember={remember!r} must not be below timeout={timeout!r}")

    def declare(function: Callable[..., Any]) -> Tool[Any]:
        from beam_agents.toolkit.kafka_call import Request, open_line

        declared = Declaration("request", function)
        seconds = timeout.total_seconds()
        event = Event(topic, key, _parameters(kind, declared, key, body), body)
        kept = Kept(partial(open_line, kafka, seconds, replies, span.total_seconds()))
        call = Request(kept, kafka.servers, event, seconds, declared.returns, replies, redact)
        return Tool(
            declared.calling(call.call),
            effect="idempotent",
            timeout=timeout + _GRACE,
            retries=retries,
            model_retries=model_retries,
            in_flight=in_flight,
            name=name,
            description=description,
            redact=redact,
        )

    return declare


def _check(kind: str, kafka: Any, topic: Any, timeout: timedelta) -> None:
    from beam_agents.io.kafka_connection import Kafka  # with all of Beam, which other tools need not

    if importlib.util.find_spec("confluent_kafka") is None:
        raise ConfigurationError(f"{kind} needs confluent-kafka: pip install 'beam-agents[kafka]'")
    if not isinstance(kafka, Kafka):
        raise ConfigurationError(f"{kind} takes a Kafka('host:9092'), not {kafka!r}")
    _check_topic(f"{kind}: topic", topic)
    check_limits(kind, timeout=timeout)


def _check_topic(what: str, topic: Any) -> None:
    if not isinstance(topic, str) or not _TOPIC.fullmatch(topic):
        raise ConfigurationError(f"{what}={topic!r} must be letters, digits, '.', '_' and '-'")


def _parameters(kind: str, declared: Declaration, key: str | None, body: str | None) -> tuple[str, ...]:
    """The parameters that are in the event."""
    there = declared.parameters
    if KEY in there:
        raise ConfigurationError(
            f"{kind}: the engine fills {KEY!r}, as the header 'id'; leave it out of the parameters"
        )
    for name, parameter in (("key", key), ("body", body)):
        if parameter is not None and parameter not in there:
            raise ConfigurationError(
                f"{kind}: {name}={parameter!r} is no parameter; there is: {', '.join(there) or 'none'}"
            )
    if body is None:
        return there
    rest = tuple(parameter for parameter in there if parameter not in (body, key))
    if rest or key == body:
        raise ConfigurationError(
            f"{kind}: with body={body!r} there may be one other parameter, the key; these are: {there!r}"
        )
    return (body,)
