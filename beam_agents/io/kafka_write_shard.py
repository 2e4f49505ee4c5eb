"""Writing to Kafka exactly once: a transaction has results and, for each, a marker that it was written."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from beam_agents.errors import BeamAgentsError
from beam_agents.io.kafka_connection import Kafka
from beam_agents.io.kafka_write_markers import MARKER_IDS, end_of, prepare
from beam_agents.io.kafka_write_record import Outgoing
from beam_agents.io.kafka_write_seen import DIGEST_BYTES, Seen

_LOG = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0
"""How long a bundle waits for brokers that do not answer, before it fails and the runner begins it anew."""
_TRANSACTION_SECONDS = 60
"""After which the broker ends the transaction of a process that is gone; readers wait for it until then."""
_TAKEOVERS = 3
"""How often one bundle takes its shard back from another process."""
_PAUSE_SECONDS = 0.2
_CALL_SECONDS = 10.0
_LOOK_SECONDS = 0.05
_FENCED = frozenset({KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH})
_HOPELESS = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        KafkaError._AUTHENTICATION,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_CONFIG,
        KafkaError._INVALID_ARG,
    }
)


class KafkaWriteError(BeamAgentsError):
    """Nothing of a bundle can be said to be written; the runner begins it anew."""


@dataclass(frozen=True)
class ExactlyOnce:
    """What all shards of a sink share."""

    kafka: Kafka
    topic: str
    markers: str
    """The topic of the markers; its partition n is shard n's."""
    name: str
    shards: int
    remember: float
    """For how many seconds markers are kept at least."""
    max_bytes: int

    def digest(self, id: str) -> bytes:
        """What a marker holds of an id; sinks of other names or topics, which may have the markers' topic in common, do
        not share it."""
        scope = self.name if self.markers == f"{self.topic}.written" else f"{self.name} {self.topic}"
        return blake2b(f"{scope} {id}".encode(), digest_size=DIGEST_BYTES).digest()

    def transactional_id(self, shard: int) -> str:
        """The name under which one process at a time may write."""
        return f"{self.name}-{self.topic}-{shard}"


class Shards:
    """The shards of a sink in this process, each opened at its first record."""

    def __init__(self, settings: ExactlyOnce) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._shards: dict[int, Shard] = {}

    def write(self, waiting: dict[int, list[Outgoing]]) -> int:
        """Writes the records of some shards, side by side; how many were new.

        Raises:
            Exception: As `Shard.write`; other shards may have been written.
        """
        if len(waiting) == 1:
            ((number, records),) = waiting.items()
            return self._shard(number).write(records)
        with ThreadPoolExecutor(len(waiting) or 1, "beam-agents-kafka") as threads:
            return sum(threads.map(lambda number: self._shard(number).write(waiting[number]), waiting))

    def close(self) -> None:
        """Closes the connections."""
        with self._lock:
            shards, self._shards = list(self._shards.values()), {}
        for shard in shards:
            shard.close()

    def _shard(self, number: int) -> Shard:
        with self._lock:
            shard = self._shards.get(number)
            if shard is None:
                shard = self._shards[number] = Shard(self._settings, number)
            return shard


class Shard:
    """Writes each record once, whatever dies and whoever else writes to the shard. Threads take turns.

    A process that opens a shard fences the one that had it, whose open transaction is aborted or, if it was being
    committed, completed. Then all markers are there, and it reads those that it does not know yet.

    Args:
        settings: The sink's.
        number: The shard, which is also the partition of its markers.
    """

    def __init__(self, settings: ExactlyOnce, number: int) -> None:
        self._settings = settings
        self._number = number
        self._lock = threading.Lock()
        self._producer: Producer | None = None
        self._seen = Seen(settings.remember)
        self._position = 0
        """The offset up to which markers were read."""

    def write(self, records: Sequence[Outgoing]) -> int:
        """Writes the records of which no marker says that they were written, in one transaction; how many these were.

        Raises:
            KafkaWriteError: The brokers did not take them within a minute, or refused them.
            ConfigurationError: A topic is not there, or the markers' topic does not fit.
        """
        with self._lock:
            deadline, takeovers = time.monotonic() + PATIENCE_SECONDS, 0
            while True:
                try:
                    producer = self._producer or self._open(deadline)
                    fresh = self._fresh(records)
                    if fresh:
                        self._commit(producer, fresh, deadline)
                    return len(fresh)
                except KafkaException as error:
                    # What came of the transaction is not known, or it failed. Whoever opens the shard next ends it and
                    # reads in the markers what came of it.
                    self._drop()
                    cause: KafkaError = error.args[0]
                    takeovers += cause.code() in _FENCED
                    if takeovers > _TAKEOVERS or cause.code() in _HOPELESS or time.monotonic() > deadline:
                        raise KafkaWriteError(self._told(cause)) from error
                    _LOG.warning("%s; trying again", self._told(cause))
                    time.sleep(_PAUSE_SECONDS)

    def close(self) -> None:
        """Closes the connection."""
        with self._lock:
            self._drop()

    def __len__(self) -> int:
        """How many ids it knows."""
        return len(self._seen)

    def _open(self, deadline: float) -> Producer:
        settings = self._settings
        options = {
            # Java's: the same key goes to the same partition whoever writes it.
            "partitioner": "murmur2_random",
            "linger.ms": 1,
            "log_level": 2,  # connections that are refused, several a second
            "transaction.timeout.ms": _TRANSACTION_SECONDS * 1000,
            **settings.kafka.client_options(),
            "transactional.id": settings.transactional_id(self._number),
            "message.max.bytes": max(settings.max_bytes, 1_000_000),
            "batch.size": batch_size(settings.kafka, settings.max_bytes),
        }
        prepare(settings.kafka, settings.topic, settings.markers, settings.shards, settings.remember)
        producer = Producer(options, logger=_LOG)
        try:
            self._patiently(producer.init_transactions, deadline)
            self._read_markers()
        except BaseException:
            producer.purge()
            raise
        self._producer = producer
        return producer

    def _drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()  # else closing waits until its records time out

    def _fresh(self, records: Sequence[Outgoing]) -> list[tuple[bytes, Outgoing]]:
        """Those that were not written, each once, with their digests."""
        fresh: dict[bytes, Outgoing] = {}
        for record in records:
            digest = self._settings.digest(record.id)
            if digest in self._seen:
                continue
            known = fresh.setdefault(digest, record)
            if known != record:
                _LOG.error(
                    "two values with the id %s (%s, run_id %r) for topic %r are not the same; the first is written",
                    record.id,
                    record.kind,
                    record.run_id,
                    self._settings.topic,
                )
        return list(fresh.items())

    def _commit(self, producer: Producer, fresh: list[tuple[bytes, Outgoing]], deadline: float) -> None:
        settings = self._settings
        producer.begin_transaction()
        for _, record in fresh:
            _produce(producer, settings.topic, record.value, key=record.key, headers=record.headers())
        packed = [
            b"".join(digest for digest, _ in fresh[at : at + MARKER_IDS]) for at in range(0, len(fresh), MARKER_IDS)
        ]
        for marker in packed:
            _produce(producer, settings.markers, marker, partition=self._number)
        self._patiently(producer.commit_transaction, deadline)
        for marker in packed:
            self._seen.add(marker, time.time())

    def _read_markers(self) -> None:
        """Reads what was written to the shard since it was last read, by whomever."""
        settings = self._settings
        place = TopicPartition(settings.markers, self._number)
        end = end_of(settings.kafka, place)
        if end <= self._position:
            return
        options = {
            "fetch.wait.max.ms": 10,
            **settings.kafka.client_options(),
            "group.id": settings.name,  # required, not joined
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
        }
        consumer = Consumer(options, logger=_LOG)
        try:
            consumer.assign([TopicPartition(settings.markers, self._number, self._position)])
            deadline = time.monotonic() + PATIENCE_SECONDS
            while self._position < end:
                messages = consumer.consume(10_000, timeout=_LOOK_SECONDS)
                if messages:
                    self._take(messages)
                    deadline = time.monotonic() + PATIENCE_SECONDS
                if time.monotonic() > deadline:
                    raise KafkaException(
                        KafkaError(KafkaError._TIMED_OUT, f"markers end at {self._position}, not {end}")
                    )
        finally:
            consumer.close()

    def _take(self, messages: list[Any]) -> None:
        markers = [message for message in messages if message.error() is None]
        if markers:  # a marker may be taken for a little newer than it is
            self._seen.add(b"".join(marker.value() for marker in markers), markers[-1].timestamp()[1] / 1000)
            self._position = markers[-1].offset() + 1
        for error, offset in ((message.error(), message.offset()) for message in messages if message.error()):
            if error.code() == KafkaError._PARTITION_EOF:
                self._position = max(self._position, offset)
            elif error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                continue  # the library asks for the group all the same, which nothing is wanted of
            elif not error.retriable():
                raise KafkaException(error)

    def _patiently(self, call: Callable[[float], None], deadline: float) -> None:
        """Makes a call that is to be made again after an error from which it can recover."""
        while True:
            try:
                call(_CALL_SECONDS)
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > deadline:
                    raise
                _LOG.warning("%s; trying again", self._told(error.args[0]))
            else:
                return

    def _told(self, error: KafkaError) -> str:
        settings = self._settings
        what = f"WriteKafka({settings.topic!r}, exactly_once={settings.name!r}), shard {self._number}"
        if error.code() in _FENCED:
            return f"{what}: another process has taken the shard; is another job running under this name? ({error})"
        return f"{what}, at {settings.kafka.servers}: {error}"


def batch_size(kafka: Kafka, max_bytes: int) -> int:
    """The largest batch: brokers hold their limit for records, `max.message.bytes`, against batches."""
    return min(max_bytes, int(kafka.options.get("batch.size", 1_000_000)))


def _produce(producer: Producer, topic: str, value: bytes | None, **options: Any) -> None:
    while True:
        try:
            producer.produce(topic, value, **options)
        except BufferError:
            producer.poll(0.1)
        else:
            producer.poll(0)
            return
