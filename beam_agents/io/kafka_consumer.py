"""Records of some partitions from given offsets on, as a plain consumer without a group reads them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from beam_agents.errors import ConfigurationError
from beam_agents.io.kafka_connection import Kafka

_LOG = logging.getLogger(__name__)

_CALL_SECONDS = 10.0
_QUIET_SECONDS = 60.0
"""Between two warnings of the same trouble."""

Place = tuple[str, int]
"""Topic and partition."""


@dataclass(frozen=True)
class Gone:
    """Records that were not read and are not there any more."""

    place: Place
    first: int
    """The first offset that was wanted."""
    next: int
    """The first offset that is there."""


class _Rarely(logging.Filter):
    """Lets each kind of message through once a minute: of brokers that are away the library tells 20 times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = record.getMessage().split(" ", 1)[0], time.monotonic()
        if now - self._told.get(kind, -_QUIET_SECONDS) < _QUIET_SECONDS:
            return False
        self._told[kind] = now
        return True


class Reader:
    """Reads on from where it is told. Brokers that are away are waited for, in the background.

    Args:
        kafka: The brokers.

    Raises:
        ConfigurationError: A secret is not there.
    """

    def __init__(self, kafka: Kafka) -> None:
        self._servers = kafka.servers
        self._positions: dict[Place, int] = {}
        self._stopped = False
        """Whether the library has stopped to read a partition, so that all have to be assigned again."""
        self._warned: dict[str, float] = {}
        library = logging.Logger(_LOG.name)
        library.parent = _LOG
        library.addFilter(_Rarely())
        self._consumer = Consumer(
            {
                "fetch.wait.max.ms": 100,
                "fetch.error.backoff.ms": 100,
                "reconnect.backoff.max.ms": 2_000,
                # Of each partition it holds as much in memory as one look may want several times.
                "queued.max.messages.kbytes": 16_384,
                "topic.metadata.refresh.interval.ms": 30_000,
                **kafka.client_options(),
                "group.id": "beam-agents",  # the library wants one; nothing is committed to it
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
            },
            logger=library,
        )

    def read(
        self, positions: Mapping[Place, int], *, records: int, size: int, seconds: float = 0.0
    ) -> tuple[list[Message[bytes, bytes]], list[Gone], dict[Place, int]]:
        """What comes next.

        Args:
            positions: The next offset of each partition that is read.
            records: At most so many.
            size: At most about so many bytes.
            seconds: How long it waits for the first.

        Returns:
            The records; what is gone, so that the position has to be moved; the partitions that are read to their ends,
            as the broker knows them, with the next offset there.
        """
        if self._stopped or positions != self._positions:
            self._assign(positions)
        found: list[Message[bytes, bytes]] = []
        gone: list[Gone] = []
        ends: dict[Place, int] = {}
        while records > 0 and size > 0:
            batch = self._consumer.consume(min(records, 500), seconds if not found else 0.0)
            for message in batch:
                place = (message.topic() or "", message.partition() or 0)
                error = message.error()
                if error is None:
                    found.append(message)
                    self._positions[place] = (message.offset() or 0) + 1
                    ends.pop(place, None)
                    records -= 1
                    size -= len(message.value() or b"") + len(message.key() or b"") + 100
                elif error.code() == KafkaError._PARTITION_EOF:
                    ends[place] = message.offset() or 0
                elif error.code() == KafkaError._AUTO_OFFSET_RESET:
                    gone += self._find_gone(place)
                else:
                    self._warn(str(error))
            if not batch:
                break
        return found, gone, ends

    def partitions(self, topics: Iterable[str]) -> list[Place] | None:
        """All partitions of the topics, or `None` while the brokers do not answer.

        A topic that is not there has none.
        """
        try:
            known = self._consumer.list_topics(timeout=2.0).topics
        except KafkaException as error:
            self._warn(str(error))
            return None
        places: list[Place] = []
        for topic in topics:
            if topic not in known:
                self._warn(f"there is no topic {topic!r}")
            else:
                places += [(topic, partition) for partition in sorted(known[topic].partitions)]
        return places

    def bounds(self, place: Place, seconds: float = _CALL_SECONDS) -> tuple[int, int]:
        """The first offset of a partition, and the one behind its last record.

        Raises:
            KafkaException: The brokers do not answer within so many seconds, or it has no leader.
        """
        low, high = self._consumer.get_watermark_offsets(TopicPartition(*place), timeout=seconds)
        return low, high

    def close(self) -> None:
        """Ends it."""
        self._consumer.close()

    def _assign(self, positions: Mapping[Place, int]) -> None:
        self._positions, self._stopped = dict(positions), False
        self._consumer.assign([TopicPartition(*place, offset) for place, offset in positions.items()])

    def _find_gone(self, place: Place) -> list[Gone]:
        wanted = self._positions[place]
        self._stopped = True  # also if its place is there again
        try:
            low, high = self.bounds(place)
        except KafkaException as error:
            self._warn(str(error))
            return []
        # An offset behind the end: the topic was deleted and made again.
        return [Gone(place, wanted, low if wanted < low or wanted > high else wanted)]

    def _warn(self, trouble: str) -> None:
        now = time.monotonic()
        if now - self._warned.get(trouble, -_QUIET_SECONDS) >= _QUIET_SECONDS:
            self._warned[trouble] = now
            _LOG.warning("ReadKafka at %s goes on trying: %s", self._servers, trouble)


def ends_now(kafka: Kafka, topics: Sequence[str]) -> dict[Place, tuple[int, int]]:
    """The first offset of each partition and the one behind its last committed record, now.

    Raises:
        ConfigurationError: A topic is not there, or the brokers do not answer.
    """
    admin = AdminClient(kafka.client_options())
    try:
        known = admin.list_topics(timeout=_CALL_SECONDS).topics
        for topic in topics:
            if topic not in known:
                raise ConfigurationError(f"ReadKafka: there is no topic {topic!r} at {kafka.servers}; make it first")
        places = [TopicPartition(topic, number) for topic in topics for number in known[topic].partitions]
        first = admin.list_offsets(
            {place: OffsetSpec.earliest() for place in places},  # type: ignore[no-untyped-call]
            request_timeout=_CALL_SECONDS,
        )
        last = admin.list_offsets(
            {place: OffsetSpec.latest() for place in places},  # type: ignore[no-untyped-call]
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=_CALL_SECONDS,
        )
        return {
            (place.topic, place.partition): (first[place].result().offset, last[place].result().offset)
            for place in places
        }
    except KafkaException as error:
        raise ConfigurationError(f"ReadKafka: the brokers at {kafka.servers} do not answer: {error}") from error
