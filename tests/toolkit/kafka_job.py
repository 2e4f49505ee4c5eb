"""Another job for tests: a thread that reads a topic with a plain consumer and answers as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from tests.kafka_kit import make_topic


@dataclass(frozen=True)
class Asked:
    """A record that came."""

    id: str
    key: str | None
    value: Any
    headers: dict[str, str]


@dataclass
class Job:
    """Reads `topic`, whose ids it knows, and answers an id once.

    Attributes:
        asked: All records that came, those that came again too.
        answer: Gives the headers and the value of each answer to a record; it may take its time.
    """

    servers: str
    topic: str
    replies: str
    answer: Callable[[Asked], list[tuple[dict[str, str], bytes]]]
    asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._producer = Producer({"bootstrap.servers": self.servers, "linger.ms": 0})
        self._known: set[str] = set()
        self._stopping = threading.Event()

    def reply(self, headers: dict[str, str], value: bytes) -> None:
        """Writes a record to the topic of the answers, and waits until it is there."""
        self._producer.produce(self.replies, value, headers=list(headers.items()))
        assert self._producer.flush(20) == 0

    def wait_for(self, count: int, *calls: Future[Any]) -> None:
        """Waits until so many records came; calls that ended before are told."""
        until(lambda: len(self.asked) >= count or any(call.done() and call.result() for call in calls))

    def run(self) -> None:
        """Works until it is stopped."""
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": "job", "auto.offset.reset": "earliest"})
        consumer.assign([TopicPartition(self.topic, 0, 0)])
        while not self._stopping.is_set():
            message = consumer.poll(0.1)
            if message is None or message.error() is not None:
                continue
            headers = {name: (value or b"").decode() for name, value in message.headers() or ()}
            key = message.key()
            asked = Asked(headers["id"], key and key.decode(), json.loads(message.value() or b""), headers)
            self.asked.append(asked)
            if asked.id not in self._known:
                self._known.add(asked.id)
                for answer in self.answer(asked):
                    self.reply(*answer)
        consumer.close()

    def stop(self) -> None:
        """Lets `run` end."""
        self._stopping.set()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def confirmed(asked: Asked) -> list[tuple[dict[str, str], bytes]]:
    """Answers with what was asked."""
    return [({"in_reply_to": asked.id}, json.dumps({"verdict": "fine", "of": asked.value}).encode())]


@contextmanager
def working(servers: str, answer: Callable[[Asked], list[tuple[dict[str, str], bytes]]] = confirmed) -> Iterator[Job]:
    """A job with topics of its own."""
    job = Job(servers, make_topic(servers), make_topic(servers, 2), answer)
    thread = threading.Thread(target=job.run)
    thread.start()
    try:
        yield job
    finally:
        job.stop()
        thread.join(10)
