"""One call of `publish` or `request`: what it waits for, and what an answer means."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from beam_agents.codec import adapter
from beam_agents.errors import ToolFailed
from beam_agents.io.kafka_connection import Kafka
from beam_agents.toolkit.declared import Context
from beam_agents.toolkit.kafka_answers import Answer, Answers
from beam_agents.toolkit.kafka_event import Event, Published
from beam_agents.toolkit.kafka_send import KafkaToolError, Sender, revealed
from beam_agents.toolkit.kept import Kept

_LONGEST_QUOTE = 300


@asynccontextmanager
async def open_sender(kafka: Kafka, seconds: float) -> AsyncIterator[Sender]:
    """What the calls of `publish` share in a worker.

    Raises:
        NotCalled: A secret is not there.
    """
    sender = Sender(kafka.servers, await revealed(kafka), seconds)
    try:
        yield sender
    finally:
        sender.close()


@dataclass(frozen=True)
class Line:
    """What the calls of `request` share in a worker."""

    sender: Sender
    answers: Answers

    @property
    def broken(self) -> bool:
        """Whether a new one is needed."""
        return self.sender.broken or self.answers.broken


@asynccontextmanager
async def open_line(kafka: Kafka, seconds: float, replies: str, remember: float) -> AsyncIterator[Line]:
    """Makes a `Line`.

    Raises:
        NotCalled: A secret is not there.
    """
    async with open_sender(kafka, seconds) as sender:
        answers = Answers(kafka.servers, await revealed(kafka), replies, remember)
        try:
            yield Line(sender, answers)
        finally:
            answers.close()


class Publish:
    """Carries `publish` out. It can be pickled."""

    def __init__(self, kept: Kept[Sender], servers: str, event: Event, seconds: float, returns: Any) -> None:
        self._kept = kept
        self._servers = servers
        self._event = event
        self._seconds = seconds
        self._returns = returns

    async def call(self, ctx: Context, values: dict[str, Any]) -> Published | None:
        """Writes the event.

        Raises:
            NotCalled: It was refused.
            KafkaToolError: Nobody knows whether it was written.
        """
        async with self._kept.use() as sender:
            try:
                async with asyncio.timeout(self._seconds) as limit:
                    published = await sender.send(self._event.record(ctx, values))
            except TimeoutError:
                if not limit.expired():
                    raise
                raise KafkaToolError(
                    f"topic {self._event.topic!r} at {self._servers} did not take the event in {self._seconds:g} s"
                    f"{sender.why}"
                ) from None
            finally:
                if sender.broken:
                    self._kept.drop(sender)
        return published if self._returns is Published else None


class Request:
    """Carries `request` out. It can be pickled."""

    def __init__(
        self,
        kept: Kept[Line],
        servers: str,
        event: Event,
        seconds: float,
        returns: Any,
        replies: str,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        self._kept = kept
        self._servers = servers
        self._event = event
        self._seconds = seconds
        self._returns = returns
        self._replies = replies
        self._redact = redact

    async def call(self, ctx: Context, values: dict[str, Any]) -> Any:
        """Writes the event, unless its answer is there already, and waits for the answer.

        Raises:
            ToolFailed: The other job failed.
            NotCalled: The event was refused, or there is no topic for answers.
            KafkaToolError: There was no answer in time, or nobody knows whether the event was written.
        """
        written = False
        async with self._kept.use() as line:
            try:
                async with asyncio.timeout(self._seconds) as limit:
                    await asyncio.shield(line.answers.ready)
                    with line.answers.expected(ctx.idempotency_key) as heard:
                        # The first attempt is recorded before it is made, so that nobody can have answered it before.
                        answer = await line.answers.look_back(ctx.idempotency_key) if ctx.attempt > 1 else None
                        if answer is None:
                            await line.sender.send(self._event.record(ctx, values, reply_to=self._replies))
                            written = True
                            answer = await heard
            except TimeoutError:
                if not limit.expired():
                    raise
                raise KafkaToolError(self._silence(line, written)) from None
            finally:
                if line.broken:
                    self._kept.drop(line)
        return self._result(answer, ctx.idempotency_key)

    def _silence(self, line: Line, written: bool) -> str:
        if written:
            return f"no answer came in topic {self._replies!r} in {self._seconds:g} s{line.answers.why}"
        return (
            f"topics {self._event.topic!r} and {self._replies!r} at {self._servers} could not be used in "
            f"{self._seconds:g} s{line.answers.why or line.sender.why}"
        )

    def _result(self, answer: Answer, id: str) -> Any:
        text = "null" if answer.value is None else answer.value.decode("utf-8", "replace")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if answer.kind == "failure":
            raise ToolFailed(f"the job that reads topic {self._event.topic!r} failed: {self._reason(value, text)}")
        if self._returns in (None, type(None)):
            return None
        read_as = [value, text]  # the text for an agent's answer that is a text and was written as it is
        if answer.kind == "result" and isinstance(value, dict) and value.get("run_id") == id and "output" in value:
            value = value["output"]
            read_as = [value]
        for one in read_as:
            try:
                return adapter(self._returns).validate_json(json.dumps(one), by_alias=True, by_name=True)
            except ValidationError:
                continue
        return value  # the engine says what is wrong

    def _reason(self, value: Any, text: str) -> str:
        """What a failure says: its reason and message if it is a `RunFailure`."""
        if isinstance(value, dict) and "reason" in value and "message" in value:
            text = f"{value['reason']}: {value['message']}"
        if self._redact is not None:  # before it is cut: a part of what is to be hidden is not recognised
            try:
                text = self._redact(text)
            except Exception as error:
                text = f"(its redact function raised {type(error).__name__})"
        line = re.sub(r"\s+", " ", str(text)).strip()
        return line if len(line) <= _LONGEST_QUOTE else f"{line[:_LONGEST_QUOTE]}..."
