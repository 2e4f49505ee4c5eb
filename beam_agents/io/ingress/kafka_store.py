"""Kafka as the store."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from beam_agents.errors import ConfigurationError
from beam_agents.io.ingress.body import Accepted
from beam_agents.io.ingress.store import Store, StoreDown, TooLarge
from beam_agents.io.kafka_connection import Kafka
from beam_agents.io.kafka_write_shard import batch_size

_LOG = logging.getLogger(__name__)

ID_HEADER = "idempotency-key"
"""The header of a record that has the event's id."""

_LOOK_SECONDS = 5.0
_OVERHEAD = 2_000
"""Bytes that a record has beside its event: key, id, and what Kafka adds."""


class KafkaStore(Store):
    """Writes each event as a record: its key, its JSON as it came, and its id in a header.

    All replicas in sync have a record when it counts (`acks=all`).

    Args:
        kafka: The brokers.
        topic: The topic, which must be there.
        seconds: How long a record may take.
        max_bytes: The largest event. Not above the topic's `max.message.bytes`.
    """

    def __init__(self, kafka: Kafka, topic: str, *, seconds: float = 10.0, max_bytes: int = 1_000_000) -> None:
        self.place = f"topic {topic!r} at {kafka.servers}"
        self._kafka = kafka
        self._topic = topic
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="beam-agents-store", daemon=True)
        self._producer: Producer | None = None

    async def open(self) -> None:
        """Connects, and looks for the topic."""
        self._loop = asyncio.get_running_loop()
        self._producer = self._connect()
        try:
            found = await asyncio.to_thread(self._producer.list_topics, self._topic, timeout=_LOOK_SECONDS)
        except KafkaException as error:
            raise ConfigurationError(f"{self.place} cannot be reached: {error.args[0].str()}") from error
        if found.topics[self._topic].error is not None:
            raise ConfigurationError(f"{self.place} is not there: make it first")
        self._thread.start()

    async def append(self, events: Sequence[Accepted]) -> None:
        """Writes records, and waits for the brokers."""
        producer = self._producer
        assert producer is not None
        try:
            stored = [self._produce(producer, event) for event in events]
        except (BufferError, KafkaException) as error:
            raise StoreDown(f"{self.place}: {error}") from error
        failed = [one for one in await asyncio.gather(*stored, return_exceptions=True) if one is not None]
        if failed and all(_is_too_large(one) for one in failed):
            raise TooLarge(f"{self.place} does not take so large an event: see its max.message.bytes")
        if failed:
            raise StoreDown(f"{self.place}: {failed[0]}") from failed[0]

    async def ready(self) -> bool:
        """Whether the brokers answer."""
        assert self._producer is not None
        try:
            await asyncio.to_thread(self._producer.list_topics, self._topic, timeout=_LOOK_SECONDS)
        except KafkaException:
            return False
        return True

    async def close(self) -> None:
        """Writes what waits."""
        if self._producer is not None:
            await asyncio.to_thread(self._producer.flush, self._seconds)
        self._ended.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _connect(self) -> Producer:
        options = {
            "partitioner": "murmur2_random",  # Java's: the same key goes to the same partition whoever writes it
            "linger.ms": 2,
            "log_level": 2,  # connections that are refused, several a second
            "reconnect.backoff.max.ms": 1000,
            **self._kafka.client_options(),
            "acks": "all",
            "enable.idempotence": True,
            "delivery.timeout.ms": int(self._seconds * 1000),
            "message.max.bytes": max(self._max_bytes + _OVERHEAD, 1_000_000),
            "batch.size": batch_size(self._kafka, self._max_bytes),
        }
        return Producer(options, logger=_LOG)

    def _produce(self, producer: Producer, event: Accepted) -> asyncio.Future[None]:
        stored: asyncio.Future[None] = self._loop.create_future()

        def settle(error: Any) -> None:
            if not stored.done():
                stored.set_result(None) if error is None else stored.set_exception(KafkaException(error))

        def delivered(error: Any, _: Any) -> None:
            self._loop.call_soon_threadsafe(settle, error)

        headers: list[tuple[str, str | bytes | None]] = [(ID_HEADER, event.id)]
        producer.produce(
            self._topic, event.event.encode(), key=event.key.encode(), headers=headers, on_delivery=delivered
        )
        return stored

    def _poll(self) -> None:
        while not self._ended.is_set():
            producer = self._producer
            assert producer is not None
            try:
                producer.poll(0.2)
            except KafkaException as error:  # it can do nothing any more
                _LOG.error("%s: %s; connecting anew", self.place, error)
                self._producer = self._connect()
                producer.purge()
                with suppress(KafkaException):
                    producer.poll(0)  # tells those that wait


def _is_too_large(error: BaseException) -> bool:
    return isinstance(error, KafkaException) and error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE
