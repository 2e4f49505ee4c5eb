"""The answers in a topic: one consumer for all calls that wait, and a look back for those of a worker that died."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from beam_agents.engine.threads import in_thread
from beam_agents.errors import NotCalled
from beam_agents.toolkit.kafka_send import Options, no_topic

_LOG = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_LOOK_SECONDS = 0.1
_PAUSE_SECONDS = 0.5
"""Before brokers that did not answer are asked again."""
_CALL_SECONDS = 10.0
_CREATED_SECONDS = 3.0
"""How long a topic that was just made may be unknown to a broker."""
_REFRESH_SECONDS = 30.0
"""Between two looks for new partitions."""
_BATCH = 500
_ANSWERS = (None, b"result", b"failure", b"value")
"""The kinds of records with a run's id that answer it: not its trace, nor what it emitted on the way."""


class Answer(NamedTuple):
    """A record that answers a call."""

    kind: str
    """The header `kind`; empty if there is none."""
    value: bytes | None


class Answers:
    """Reads a topic from now on, in a thread of its own. It belongs to one event loop.

    Args:
        servers: Named in errors.
        options: Those of clients.
        topic: The topic, all partitions of which are read.
        remember: How many seconds `look_back` looks back.

    Attributes:
        ready: Done when every answer that is written from now on will be heard.
    """

    def __init__(self, servers: str, options: Options, topic: str, remember: float) -> None:
        self._trouble = ""
        self._failure: Exception | None = None
        self._servers = servers
        self._options = options
        self._topic = topic
        self._remember = remember
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self._lock = threading.Lock()
        self._waiting: defaultdict[str, set[asyncio.Future[Answer]]] = defaultdict(set)
        self._wanted: defaultdict[str, list[asyncio.Future[Answer | None]]] = defaultdict(list)
        self._search: asyncio.Task[None] | None = None
        self._stopping = threading.Event()
        threading.Thread(target=self._run, name="beam-agents-answers", daemon=True).start()

    @property
    def broken(self) -> bool:
        """Whether it hears nothing any more."""
        return self._failure is not None

    @property
    def why(self) -> str:
        """What the library last complained of, to be put behind a message."""
        return f" ({self._trouble})" if self._trouble else ""

    @contextmanager
    def expected(self, id: str) -> Iterator[asyncio.Future[Answer]]:
        """Listens for the answer to a call: the first that comes."""
        heard: asyncio.Future[Answer] = self._loop.create_future()
        with self._lock:
            self._waiting[id].add(heard)
            if self._failure is not None:
                _fail(heard, self._failure)
        try:
            yield heard
        finally:
            with self._lock:
                self._waiting[id].discard(heard)
                if not self._waiting[id]:
                    del self._waiting[id]

    async def look_back(self, id: str) -> Answer | None:
        """The first answer to a call that is in the topic already. Calls that ask meanwhile share the next look.

        Raises:
            NotCalled: There is no such topic any more.
        """
        found: asyncio.Future[Answer | None] = self._loop.create_future()
        self._wanted[id].append(found)
        if self._search is None or self._search.done():
            self._search = asyncio.create_task(self._look())
        return await found

    def close(self) -> None:
        """Has its threads end, without waiting for them."""
        self._stopping.set()
        if self._search is not None:
            self._search.cancel()

    async def _look(self) -> None:
        while self._wanted:
            wanted, self._wanted = self._wanted, defaultdict(list)
            asking = [future for futures in wanted.values() for future in futures]

            def needless(asking: list[Any] = asking) -> bool:
                return self._stopping.is_set() or all(future.done() for future in asking)

            outcome: Any = None
            while outcome is None and not needless():
                try:
                    outcome = await in_thread(self._read_back, frozenset(wanted), needless)
                except KafkaException as error:
                    self._trouble = str(error.args[0])
                    await asyncio.sleep(_PAUSE_SECONDS)
                except Exception as error:
                    outcome = error
            for id, futures in wanted.items():
                for future in futures:
                    if not future.done():
                        if isinstance(outcome, Exception):
                            future.set_exception(outcome)
                        else:
                            future.set_result((outcome or {}).get(id))

    def _read_back(self, ids: frozenset[str], needless: Callable[[], bool]) -> dict[str, Answer]:
        with _consumer(self._options, self._note) as consumer:
            ends = self._ends(consumer)
            since = int((time.time() - self._remember) * 1000)
            at = consumer.offsets_for_times([TopicPartition(self._topic, one, since) for one in ends], _CALL_SECONDS)
            positions = {place.partition: place.offset for place in at if 0 <= place.offset < ends[place.partition]}
            self._assign(consumer, positions)
            left, found = set(positions), dict[str, Answer]()
            while left and len(found) < len(ids) and not needless():
                for message in consumer.consume(_BATCH, _LOOK_SECONDS):
                    partition, error = message.partition() or 0, message.error()
                    if error is None:
                        id, answer = _read(message)
                        if id in ids:
                            found.setdefault(id, answer)
                        if (message.offset() or 0) + 1 >= ends[partition]:
                            left.discard(partition)
                    elif error.code() == KafkaError._PARTITION_EOF:
                        left.discard(partition)
                    else:
                        self._note(error)
            return found

    def _run(self) -> None:
        try:
            with _consumer(self._options, self._note) as consumer:
                positions = self._first_positions(consumer)
                if positions is not None:
                    self._tell(_settle, self.ready, None)
                    self._listen(consumer, positions)
        except Exception as error:
            with self._lock:
                self._failure = error
                waiting = [heard for several in self._waiting.values() for heard in several]
            for future in (self.ready, *waiting):
                self._tell(_fail, future, error)

    def _first_positions(self, consumer: Consumer) -> dict[int, int] | None:
        missing_until: float | None = None
        while not self._stopping.is_set():
            try:
                positions = self._ends(consumer)
            except NotCalled:
                missing_until = missing_until or time.monotonic() + _CREATED_SECONDS
                if time.monotonic() > missing_until:
                    raise
                self._stopping.wait(_LOOK_SECONDS)
            except KafkaException as error:
                self._trouble = str(error.args[0])
                self._stopping.wait(_PAUSE_SECONDS)
            else:
                self._assign(consumer, positions)
                return positions
        return None

    def _listen(self, consumer: Consumer, positions: dict[int, int]) -> None:
        refresh_at = time.monotonic() + _REFRESH_SECONDS
        while not self._stopping.is_set():
            # `consume` alone waits for a full batch.
            first = consumer.poll(_POLL_SECONDS)
            for message in [first, *consumer.consume(_BATCH, 0)] if first is not None else []:
                error = message.error()
                if error is None:
                    positions[message.partition() or 0] = (message.offset() or 0) + 1
                    self._hear(message)
                elif error.code() != KafkaError._PARTITION_EOF:
                    self._note(error)
            if time.monotonic() > refresh_at:
                self._add_partitions(consumer, positions)
                refresh_at = time.monotonic() + _REFRESH_SECONDS

    def _hear(self, message: Any) -> None:
        self._trouble = ""
        id, answer = _read(message)
        with self._lock:
            heard = list(self._waiting[id]) if id is not None and id in self._waiting else []
        for future in heard:
            self._tell(_settle, future, answer)

    def _add_partitions(self, consumer: Consumer, positions: dict[int, int]) -> None:
        try:
            there = self._partitions(consumer)
        except (KafkaException, NotCalled) as error:
            self._trouble = str(error)
            return
        new = [partition for partition in there if partition not in positions]
        if new:
            positions.update(dict.fromkeys(new, 0))
            self._assign(consumer, positions)

    def _partitions(self, consumer: Consumer) -> list[int]:
        known = consumer.list_topics(self._topic, timeout=_CALL_SECONDS).topics[self._topic]
        if known.error is not None and known.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise NotCalled(no_topic(self._topic, self._servers))
        if known.error is not None:
            raise KafkaException(known.error)
        return sorted(known.partitions)

    def _ends(self, consumer: Consumer) -> dict[int, int]:
        """Behind the last record of each partition that can be read: records of open transactions come after it."""
        return {
            partition: consumer.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=_CALL_SECONDS)[1]
            for partition in self._partitions(consumer)
        }

    def _assign(self, consumer: Consumer, positions: dict[int, int]) -> None:
        consumer.assign([TopicPartition(self._topic, *position) for position in positions.items()])

    def _note(self, error: KafkaError) -> None:
        self._trouble = error.str()

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the worker's loop has ended
            self._loop.call_soon_threadsafe(function, *arguments)


@contextmanager
def _consumer(options: Options, note: Callable[[KafkaError], None]) -> Iterator[Consumer]:
    consumer = Consumer(
        {
            "fetch.error.backoff.ms": 100,
            "log_level": 2,
            "reconnect.backoff.max.ms": 2_000,
            **options,
            "group.id": "beam-agents",  # the library wants one; nothing is committed to it
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",  # what retention deleted, or a topic that was made anew
            "error_cb": note,
        },
        logger=_LOG,
    )
    try:
        yield consumer
    finally:
        consumer.close()


def _read(message: Any) -> tuple[str | None, Answer]:
    """Which call a record answers, if any, and the answer."""
    headers = dict(message.headers() or ())
    kind = headers.get("kind")
    id = headers.get("in_reply_to") or (headers.get("run_id") if kind in _ANSWERS else None)
    answer = Answer((kind or b"").decode("utf-8", "replace"), message.value())
    return (id.decode("utf-8", "replace") if id else None), answer


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # those who wait have it; nobody may
