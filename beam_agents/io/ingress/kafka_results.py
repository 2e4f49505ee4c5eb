"""Results from the topics that `WriteKafka` writes."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any

from confluent_kafka import OFFSET_END, Consumer, KafkaException, TopicPartition

from beam_agents.errors import ConfigurationError
from beam_agents.events import FailureReason
from beam_agents.io.ingress.results import Result, Results
from beam_agents.io.kafka_connection import Kafka

_LOG = logging.getLogger(__name__)

_CALL_SECONDS = 10.0
_PAUSE_SECONDS = 1.0


class KafkaResults(Results):
    """Follows topics of results and failures, committed records only, and keeps the newest.

    Args:
        kafka: The brokers.
        topics: Where the job writes what events come to, by `WriteKafka`.
        keep: How many results are kept.
        since_seconds: How old a result may be that is found by a server that has just started.
    """

    def __init__(self, kafka: Kafka, topics: Sequence[str], *, keep: int = 10_000, since_seconds: float = 3600) -> None:
        self._kafka = kafka
        self._topics = list(topics)
        self._keep = keep
        self._since = since_seconds
        self._known: OrderedDict[str, Result] = OrderedDict()
        self._waiting: defaultdict[str, list[asyncio.Future[Result]]] = defaultdict(list)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="beam-agents-results", daemon=True)

    async def open(self) -> None:
        """Finds the topics."""
        self._loop = asyncio.get_running_loop()
        try:
            await asyncio.to_thread(self._check)
        except KafkaException as error:
            raise ConfigurationError(f"results at {self._kafka.servers}: {error.args[0].str()}") from error
        self._thread.start()

    async def find(self, id: str) -> Result | None:
        """The result, if it is one of those that are kept."""
        return self._known.get(id)

    async def wait(self, id: str) -> Result:
        """The result."""
        if id in self._known:
            return self._known[id]
        came: asyncio.Future[Result] = self._loop.create_future()
        self._waiting[id].append(came)
        try:
            return await came
        finally:
            self._waiting[id].remove(came)
            if not self._waiting[id]:
                del self._waiting[id]

    async def close(self) -> None:
        """Follows no more."""
        self._ended.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _check(self) -> None:
        consumer = self._consumer()
        try:
            for topic in self._topics:
                if consumer.list_topics(topic, timeout=_CALL_SECONDS).topics[topic].error is not None:
                    raise ConfigurationError(f"topic {topic!r} of results is not there: make it first")
        finally:
            consumer.close()

    def _consumer(self) -> Consumer:
        options = {
            "fetch.wait.max.ms": 20,
            "log_level": 2,  # connections that are refused, several a second
            "reconnect.backoff.max.ms": 1000,
            **self._kafka.client_options(),
            "group.id": "beam-agents-ingress",  # required, not joined
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
        }
        return Consumer(options, logger=_LOG)

    def _follow(self) -> None:
        consumer = self._consumer()
        try:
            while not self._ended.is_set():
                try:
                    consumer.assign(self._begin(consumer))
                    break
                except KafkaException as error:
                    _LOG.warning("results at %s: %s; trying again", self._kafka.servers, error)
                    self._ended.wait(_PAUSE_SECONDS)
            while not self._ended.is_set():
                found = [message for message in consumer.consume(500, 0.1) if message.error() is None]
                if found:
                    self._loop.call_soon_threadsafe(self._take, found)
        finally:
            consumer.close()

    def _begin(self, consumer: Consumer) -> list[TopicPartition]:
        since = int((time.time() - self._since) * 1000)
        places = [
            TopicPartition(topic, number, since)
            for topic in self._topics
            for number in consumer.list_topics(topic, timeout=_CALL_SECONDS).topics[topic].partitions
        ]
        found = consumer.offsets_for_times(places, timeout=_CALL_SECONDS)
        # A partition without younger records begins with the next one; its end is asked for now, not when it is read.
        for place in found:
            if place.offset in (-1, OFFSET_END):
                place.offset = consumer.get_watermark_offsets(place, timeout=_CALL_SECONDS)[1]
        return found

    def _take(self, messages: list[Any]) -> None:
        for message in messages:
            headers = dict(message.headers() or ())
            raw = headers.get("run_id")
            if raw is None:
                continue
            id = raw.decode("utf-8", "replace")
            try:
                value = json.loads(message.value() or b"null", parse_constant=str)
            except ValueError:
                value = (message.value() or b"").decode("utf-8", "replace")
            failed = headers.get("kind") == b"failure"
            if failed and isinstance(value, dict) and value.get("reason") == FailureReason.ID_CONFLICT:
                continue  # of a second event with an id that has a result
            result = Result("failed" if failed else "decided", value)
            self._known[id] = result
            self._known.move_to_end(id)
            if len(self._known) > self._keep:
                self._known.popitem(last=False)
            for came in self._waiting.get(id, ()):
                if not came.done():
                    came.set_result(result)
