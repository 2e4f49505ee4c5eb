"""The topic of the markers: one record for each transaction, with the ids of what it wrote."""

from __future__ import annotations

import time

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec, ResourceType  # type: ignore[attr-defined]

from beam_agents.errors import ConfigurationError
from beam_agents.io.kafka_connection import Kafka

MARKER_IDS = 20_000
"""The most ids in one record: 320 kB."""

_CALL_SECONDS = 10.0
_CREATED_SECONDS = 10.0
"""How long a topic that was just made may be unknown to a broker."""
_REFUSED = frozenset({KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED})


def prepare(kafka: Kafka, topic: str, markers: str, shards: int, remember: float) -> None:
    """Checks the topics, and makes that of the markers if it is missing.

    Args:
        kafka: The brokers.
        topic: Of the results.
        markers: Of the markers.
        shards: As many partitions as the markers' topic must have.
        remember: For how many seconds it must keep them.

    Raises:
        ConfigurationError: The results' topic is not there, or that of the markers does not fit.
        KafkaException: The brokers do not answer, or do not allow it.
    """
    # Or a broker with `auto.create.topics.enable`, which is the default, makes a topic that is asked about.
    admin = AdminClient(kafka.client_options() | {"allow.auto.create.topics": False})
    if _partitions(admin, topic) == 0:
        raise ConfigurationError(f"WriteKafka: there is no topic {topic!r} at {kafka.servers}; make it first")
    there = _partitions(admin, markers)
    if there == 0:
        _make(admin, markers, shards, remember)
        there = _wait_for(admin, markers, shards)
    if there != shards:
        raise ConfigurationError(
            f"WriteKafka(shards={shards}): the topic of the markers, {markers!r}, has {there} partitions, and "
            f"there must be as many as shards: give shards={there}, or name another topic with markers=..."
        )
    _check_retention(admin, markers, remember)


def end_of(kafka: Kafka, place: TopicPartition) -> int:
    """The offset behind the last record of a partition, also of those whose transaction is open.

    Raises:
        KafkaException: The brokers do not answer.
    """
    admin = AdminClient(kafka.client_options())
    found = admin.list_offsets(
        {place: OffsetSpec.latest()},  # type: ignore[no-untyped-call]
        isolation_level=IsolationLevel.READ_UNCOMMITTED,
        request_timeout=_CALL_SECONDS,
    )
    return int(found[place].result().offset)


def _partitions(admin: AdminClient, topic: str) -> int:
    """How many a topic has; 0 if there is none."""
    metadata = admin.list_topics(topic, timeout=_CALL_SECONDS).topics[topic]
    if metadata.error is not None and metadata.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
        return 0
    if metadata.error is not None:
        raise KafkaException(metadata.error)
    return len(metadata.partitions)


def _make(admin: AdminClient, markers: str, shards: int, remember: float) -> None:
    milliseconds = int(remember * 1000)
    config = {
        "cleanup.policy": "delete",
        "retention.ms": str(milliseconds),
        "segment.ms": str(max(milliseconds // 8, 60_000)),
        "retention.bytes": "-1",
        "message.timestamp.type": "CreateTime",
    }
    wanted = NewTopic(markers, num_partitions=shards, replication_factor=-1, config=config)
    try:
        admin.create_topics([wanted], request_timeout=_CALL_SECONDS)[markers].result()
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise


def _wait_for(admin: AdminClient, markers: str, shards: int) -> int:
    deadline = time.monotonic() + _CREATED_SECONDS
    while (there := _partitions(admin, markers)) == 0:
        if time.monotonic() > deadline:
            return shards
        time.sleep(0.05)
    return there


def _check_retention(admin: AdminClient, markers: str, remember: float) -> None:
    resource = ConfigResource(ResourceType.TOPIC, markers)
    try:
        config = admin.describe_configs([resource], request_timeout=_CALL_SECONDS)[resource].result()
    except KafkaException as error:
        if error.args[0].code() in _REFUSED:  # whoever may not look has to know
            return
        raise
    policy, kept, size = (config[name].value for name in ("cleanup.policy", "retention.ms", "retention.bytes"))
    wanted = int(remember * 1000)
    if policy != "delete" or 0 <= int(kept) < wanted or int(size) >= 0:
        raise ConfigurationError(
            f"WriteKafka: the topic of the markers, {markers!r}, has cleanup.policy={policy}, retention.ms={kept}, "
            f"retention.bytes={size}; as remember={remember:g} s says it must have delete, {wanted} or more, and -1: "
            "change it with Kafka's tools"
        )
