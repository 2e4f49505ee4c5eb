"""Topics: made, and read as any consumer would."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

_PARTITIONS = 4
_SECONDS = 30.0


def client_options(servers: str) -> dict[str, str | int | float | bool]:
    """What all clients here are told: where brokers are, and not to complain in the terminal while they are away."""
    return {"bootstrap.servers": servers, "log_level": 2, "reconnect.backoff.max.ms": 1000}


def make_topics(servers: str, topics: Mapping[str, Mapping[str, str]]) -> None:
    """Makes topics.

    Args:
        servers: Where clients connect.
        topics: Their settings, by their names.
    """
    admin = AdminClient(client_options(servers))  # ends the requests with it
    made = admin.create_topics(
        [
            NewTopic(name, num_partitions=_PARTITIONS, replication_factor=1, config=dict(settings))
            for name, settings in topics.items()
        ]
    )
    for each in made.values():
        each.result(_SECONDS)


def records(
    servers: str,
    topics: Sequence[str],
    *,
    from_end: bool = False,
    goes_on: Callable[[], bool] = lambda: False,
) -> Iterator[Message]:
    """The records of topics: of committed transactions only, and each as often as it is there.

    Args:
        servers: Where clients connect.
        topics: Their names.
        from_end: Leaves out what is there already.
        goes_on: Asked again and again: whether to wait for more when all has been read.

    Raises:
        KafkaException: The broker does not answer, or there is no such topic.
    """
    consumer = Consumer(
        {
            **client_options(servers),
            "group.id": "none",  # the library asks for one; no offsets are committed
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    try:
        places = [
            TopicPartition(topic, partition, _ends(consumer, topic, partition)[int(from_end)])
            for topic in topics
            for partition in _partitions(consumer, topic)
        ]
        consumer.assign(places)
        ended: set[tuple[Any, Any]] = set()
        while len(ended) < len(places) or goes_on():
            for message in consumer.consume(500, 0.2):
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    ended.add((message.topic(), message.partition()))
                else:
                    raise KafkaException(error)
    finally:
        consumer.close()


def count(servers: str, topic: str) -> int:
    """How many records were written to a topic without transactions."""
    consumer = Consumer({**client_options(servers), "group.id": "none"})
    try:
        spans = [_ends(consumer, topic, partition) for partition in _partitions(consumer, topic)]
        return sum(last - first for first, last in spans)
    finally:
        consumer.close()


def _ends(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
    """The first offset of a partition, and the one behind its last."""
    first, last = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_SECONDS)
    return first, last


def _partitions(consumer: Consumer, topic: str) -> list[int]:
    found = consumer.list_topics(topic, timeout=_SECONDS).topics[topic]
    if found.error is not None:
        raise KafkaException(found.error)
    return sorted(found.partitions)
