"""Records that calls of tools write to Kafka, each acknowledged before its call goes on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from beam_agents.engine.threads import in_thread
from beam_agents.errors import BeamAgentsError, ConfigurationError, NotCalled
from beam_agents.io.kafka_connection import Kafka
from beam_agents.toolkit.kafka_event import Published, Record

_LOG = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_FULL_SECONDS = 0.05
"""Between two looks whether the producer's queue has room."""
_LONGEST_MILLISECONDS = 2**31 - 1
_NO_TOPIC = (KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART)
_REFUSED = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.INVALID_CONFIG,
    KafkaError.POLICY_VIOLATION,
    KafkaError.INVALID_RECORD,
)

Options = Mapping[str, str | int | float | bool]


class KafkaToolError(BeamAgentsError):
    """Nobody knows whether a record was written, or no answer came."""


async def revealed(kafka: Kafka) -> Options:
    """The options of clients, with secrets.

    Raises:
        NotCalled: A secret is not there.
    """
    try:
        options: Options = await in_thread(kafka.client_options)
    except ConfigurationError as error:
        raise NotCalled(str(error)) from error
    return options


class Sender:
    """An idempotent producer, and the thread that hears what became of its records. It belongs to one event loop.

    Args:
        servers: Named in errors.
        options: Those of clients.
        seconds: How long the library goes on trying to write a record.

    Attributes:
        broken: Whether nothing can be written by it any more.
    """

    def __init__(self, servers: str, options: Options, seconds: float) -> None:
        self._trouble = ""
        self.broken = False
        self._servers = servers
        self._loop = asyncio.get_running_loop()
        self._stopping = threading.Event()
        self._producer = Producer(
            {
                "partitioner": "murmur2_random",  # as Java's clients and `WriteKafka` do
                "linger.ms": 1,
                "log_level": 2,  # connections that are refused, several a second
                "reconnect.backoff.max.ms": 2_000,
                "topic.metadata.propagation.max.ms": 3_000,
                **options,
                "enable.idempotence": True,
                "message.timeout.ms": min(max(int(seconds * 1000), 100), _LONGEST_MILLISECONDS),
                "error_cb": self._note,
            },
            logger=_LOG,
        )
        threading.Thread(target=self._poll, name="beam-agents-publish", daemon=True).start()

    async def send(self, record: Record) -> Published:
        """Writes a record and waits until all replicas that are in sync have it.

        Raises:
            NotCalled: It was refused.
            KafkaToolError: Nobody knows whether it was written.
        """
        done: asyncio.Future[Any] = self._loop.create_future()
        while True:
            try:
                self._producer.produce(
                    record.topic,
                    record.value,
                    key=record.key,
                    headers=record.headers,
                    on_delivery=partial(self._heard, done),
                )
                break
            except BufferError:
                await asyncio.sleep(_FULL_SECONDS)
            except KafkaException as error:
                raise self._judged(error.args[0], record) from None
        refused, message = await done
        if refused is not None:
            raise self._judged(refused, record)
        return Published(topic=record.topic, partition=message.partition(), offset=message.offset())

    def close(self) -> None:
        """Has the thread end, without waiting for it; what is not written by now is given up."""
        self._stopping.set()

    def _poll(self) -> None:
        while not self._stopping.is_set():
            self._producer.poll(_POLL_SECONDS)

    def _heard(self, done: asyncio.Future[Any], error: KafkaError | None, message: Any) -> None:
        if error is None:
            self._trouble = ""
        with contextlib.suppress(RuntimeError):  # the worker's loop has ended
            self._loop.call_soon_threadsafe(_settle, done, (error, message))

    def _note(self, error: KafkaError) -> None:
        self._trouble = error.str()
        self.broken = self.broken or error.fatal()

    def _judged(self, error: KafkaError, record: Record) -> Exception:
        where = f"topic {record.topic!r} at {self._servers}"
        self.broken = self.broken or error.fatal()
        if error.code() in _NO_TOPIC:
            return NotCalled(no_topic(record.topic, self._servers))
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return NotCalled(
                f"an event of {len(record.value)} bytes is too large for {where}: see max.message.bytes of the topic "
                "and Kafka(options={'message.max.bytes': ...})"
            )
        if error.code() in _REFUSED:
            return NotCalled(f"{where}: {error.str()}")
        return KafkaToolError(f"{where}: {error.str()}{self.why}")

    @property
    def why(self) -> str:
        """What the library last complained of, to be put behind a message."""
        return f" ({self._trouble})" if self._trouble else ""


def no_topic(topic: str, servers: str) -> str:
    """What is said of a topic that is not there."""
    return f"there is no topic {topic!r} at {servers}; make it first"


def _settle(done: asyncio.Future[Any], outcome: Any) -> None:
    if not done.done():
        done.set_result(outcome)
