"""Topics of a test, and what stands in them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic


def make_topic(servers: str, partitions: int = 1, name: str = "", **config: str) -> str:
    """A new topic; its name."""
    name = name or f"t-{uuid.uuid4().hex[:12]}"
    admin = AdminClient({"bootstrap.servers": servers})
    admin.create_topics([NewTopic(name, num_partitions=partitions, replication_factor=1, config=config)])[name].result()
    until = time.monotonic() + 20
    while name not in admin.list_topics(timeout=10).topics:  # it is made before it is known
        assert time.monotonic() < until, f"topic {name} does not appear"
        time.sleep(0.02)
    return name


def produce(servers: str, topic: str, records: Iterable[Mapping[str, Any]], **options: Any) -> None:
    """Writes records, each of what `Producer.produce` takes, and waits until they are there."""
    failed: list[Any] = []
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 0, **options})
    for record in records:
        producer.produce(topic, **record, on_delivery=lambda error, _: failed.append(error) if error else None)
    assert producer.flush(30) == 0
    assert failed == []
