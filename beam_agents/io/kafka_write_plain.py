"""Writing to Kafka at least once."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from beam_agents.io.kafka_connection import Kafka
from beam_agents.io.kafka_write_record import Outgoing
from beam_agents.io.kafka_write_shard import PATIENCE_SECONDS, KafkaWriteError, batch_size

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class AtLeastOnce:
    """What the workers need to know."""

    kafka: Kafka
    topic: str
    max_bytes: int


class Plain:
    """An idempotent producer that the bundles of a process share."""

    def __init__(self, settings: AtLeastOnce) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._producer: Producer | None = None

    def write(self, waiting: dict[int, list[Outgoing]]) -> int:
        """Writes records and waits until all are there; how many.

        Raises:
            KafkaWriteError: Some are not, within a minute.
        """
        producer, records = self._connected(), [record for shard in waiting.values() for record in shard]
        sent = _Sent(len(records))
        deadline = time.monotonic() + PATIENCE_SECONDS
        for record in records:
            while True:
                try:
                    producer.produce(
                        self._settings.topic,
                        record.value,
                        key=record.key,
                        headers=record.headers(),
                        on_delivery=sent.note,
                    )
                except BufferError:
                    producer.poll(0.1)
                except KafkaException as error:  # it takes nothing any more
                    self._drop(producer)
                    raise KafkaWriteError(self._told(error.args[0])) from error
                else:
                    producer.poll(0)
                    break
        while sent.open and time.monotonic() < deadline:
            producer.poll(0.1)
        if sent.open or sent.error is not None:
            self._drop(producer)  # whether it can go on is not told with what became of a record
            raise KafkaWriteError(self._told(sent.error))
        return len(records)

    def close(self) -> None:
        """Closes the connection."""
        with self._lock:
            self._producer = None

    def _connected(self) -> Producer:
        with self._lock:
            if self._producer is None:
                options = {
                    "partitioner": "murmur2_random",
                    "linger.ms": 1,
                    "log_level": 2,  # connections that are refused, several a second
                    **self._settings.kafka.client_options(),
                    "enable.idempotence": True,
                    "message.max.bytes": max(self._settings.max_bytes, 1_000_000),
                    "message.timeout.ms": int(PATIENCE_SECONDS * 1000),
                    "batch.size": batch_size(self._settings.kafka, self._settings.max_bytes),
                }
                self._producer = Producer(options, logger=_LOG)
            return self._producer

    def _drop(self, producer: Producer) -> None:
        with self._lock:
            if self._producer is producer:
                self._producer = None
                producer.purge()  # else closing waits until its records time out

    def _told(self, error: KafkaError | None) -> str:
        return f"WriteKafka({self._settings.topic!r}) at {self._settings.kafka.servers}: {error or 'no answer'}"


class _Sent:
    """What became of the records of a bundle. The thread that polls the producer, any bundle's, notes it."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self.open = count
        self.error: KafkaError | None = None

    def note(self, error: KafkaError | None, _message: Any) -> None:
        """Notes what became of one."""
        with self._lock:
            self.open -= 1
            self.error = self.error or error
