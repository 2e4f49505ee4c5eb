"""One system's trial: servers, topics, the stream of messages, the kills, and what raw records say in the end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from pydantic import BaseModel

from benchmarks.comparison.model import ModelCall
from benchmarks.comparison.office import OfficeCall
from benchmarks.comparison.systems import ROOT, Running, System
from benchmarks.comparison.task import Message, Place, Reply, kind_of, messages

PARTITIONS = 4
_POLL = 0.02
_LOOK_AFTER_SECONDS = 10.0
"""Without a reply: then it is looked at whether the system has ended."""

LineT = TypeVar("LineT", bound=BaseModel)


class Outcome(BaseModel):
    """What came of a trial. Counts are of messages unless they say otherwise."""

    system: str
    messages: int
    kills: int
    lost: int
    """Without a reply, and without a record in the topic of failures where the system has one."""
    failed: int
    """With a record in the topic of failures."""
    replied_twice: int
    """With more than one reply, for a consumer of committed records."""
    asked_twice: int
    """Whose refund or routing arrived at the back office more than once."""
    effects_twice: int
    """Whose refund or routing the back office made more than once."""
    effects_missing: int
    """Whose refund or routing was never made."""
    lookups: int
    """Look-ups beyond one for each message; calls."""
    answers_paid_again: int
    """Model answers for a step of a message beyond the first; calls."""
    seconds: float
    """From the first reply to the last one: what it takes to start a system for the first time does not count."""
    to_reply: list[float]
    """For each kill, seconds until the next reply."""
    lines: int


def kill_points(count: int, kills: int) -> list[int]:
    """The effect calls at which a system is killed: evenly spread over those that the messages need."""
    effects = sum(kind_of(message.reference) != "question" for message in messages(count))
    return [round(effects * (nth + 0.5) / kills) for nth in range(kills)]


def carry_out(
    system: System,
    servers: str,
    folder: Path,
    *,
    count: int,
    kills: int,
    rate: float,
    patience: float = 300.0,
    latency: float = 0.125,
    settle: float = 6.0,
) -> Outcome:
    """One trial.

    Args:
        system: What is tried.
        servers: Kafka's.
        folder: A new one, for logs and what systems keep.
        count: How many messages.
        kills: How many kills.
        rate: Messages a second; a system that is slower finds them waiting.
        patience: Seconds without a new reply after which what is missing is lost.
        latency: Seconds of a model's answer, evenly 60 % up or down.
        settle: Seconds after the last reply in which second ones are counted: a client commits every five.

    Raises:
        RuntimeError: The system ended by itself, or never replied at all: that says nothing of what it loses.
    """
    folder.mkdir(parents=True)
    given, points = messages(count), kill_points(count, kills)
    office_log, model_log = folder / "office.jsonl", folder / "model.jsonl"
    holds = [str(point) for point in points]
    with (
        server("office", f"--log={office_log}", *(["--hold", *holds] if holds else [])) as office,
        server("model", f"--log={model_log}", f"--latency={latency}") as model,
        _Topics(servers, given) as topics,
    ):
        place = Place(
            servers=servers,
            messages=topics.messages,
            replies=topics.replies,
            model=model,
            office=office,
            folder=str(folder),
        )
        running = system.start(place, folder)
        try:
            topics.feed(rate)
            killed = _kill_at(points, office_log, running, topics, patience)
            topics.wait(running, patience, settle)
        finally:
            running.stop()
        if not topics.seen:
            raise RuntimeError(f"{system.name} gave no reply in {patience:g} s; its log is in {folder}")
        return _count(system, given, topics, killed, _lines(office_log, OfficeCall), _lines(model_log, ModelCall))


def _kill_at(points: Sequence[int], log: Path, running: Running, topics: _Topics, patience: float) -> list[float]:
    """Kills when the effect call of each number has arrived; the moments."""
    killed: list[float] = []
    for point in points:
        while sum(call.tool != "account" for call in _lines(log, OfficeCall)) < point:
            if topics.quiet_for() > patience:
                return killed  # it is stuck: what is missing is counted
            if topics.quiet_for() > _LOOK_AFTER_SECONDS:
                running.check()
            time.sleep(_POLL)
        killed.append(time.time())
        running.kill()
        print(f"    killed at effect call {point}", flush=True)
    return killed


def _count(
    system: System,
    given: Sequence[Message],
    topics: _Topics,
    killed: Sequence[float],
    office: Sequence[OfficeCall],
    model: Sequence[ModelCall],
) -> Outcome:
    replies = Counter(reference for reference, _ in topics.seen)
    effects = [call for call in office if call.tool != "account"]
    asked, made = Counter(call.reference for call in effects), Counter(call.reference for call in effects if call.made)
    needed = {message.reference for message in given if kind_of(message.reference) != "question"}
    moments = [at for _, at in topics.seen]
    return Outcome(
        system=system.name,
        messages=len(given),
        kills=len(killed),
        lost=sum(message.reference not in replies for message in given) - topics.failed,
        failed=topics.failed,
        replied_twice=sum(count > 1 for count in replies.values()),
        asked_twice=sum(count > 1 for count in asked.values()),
        effects_twice=sum(count > 1 for count in made.values()),
        effects_missing=len(needed - made.keys()),
        lookups=sum(call.tool == "account" for call in office) - len(given),
        answers_paid_again=len(model) - len({(call.reference, call.step) for call in model}),
        seconds=max(moments, default=0.0) - min(moments, default=0.0),
        to_reply=[min((at for at in moments if at > kill), default=kill) - kill for kill in killed],
        lines=system.lines(),
    )


class _Topics:
    """The topics of a trial: messages that are fed at a rate, and replies as a consumer of committed records has them.

    Args:
        servers: Kafka's.
        given: What is fed.
    """

    def __init__(self, servers: str, given: Sequence[Message]) -> None:
        self._servers = servers
        self._given = given
        self.messages = f"messages-{uuid.uuid4().hex[:8]}"
        self.replies = f"replies-{uuid.uuid4().hex[:8]}"
        self.seen: list[tuple[str, float]] = []
        """Each reply's reference, and when it came."""
        self.failed = 0
        """Records in the topic of failures."""
        self._fed = threading.Event()
        self._stop = threading.Event()
        self._last_new = time.time()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> _Topics:
        admin = AdminClient({"bootstrap.servers": self._servers})
        names = (self.messages, self.replies, f"{self.replies}-failures")
        for made in admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in names]).values():
            made.result(30)
        until = time.monotonic() + 30
        while not set(names) <= admin.list_topics(timeout=10).topics.keys():  # they are made before they are known
            if time.monotonic() > until:
                raise TimeoutError(f"topics {names!r} do not appear")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def feed(self, rate: float) -> None:
        """Begins to feed, and to read replies."""
        self._last_new = time.time()
        for target, arguments in ((self._feed, (rate,)), (self._read, ())):
            self._threads.append(threading.Thread(target=target, args=arguments, daemon=True))
            self._threads[-1].start()

    def quiet_for(self) -> float:
        """Seconds since the last reply to a message that had none."""
        return time.time() - self._last_new

    def wait(self, running: Running, patience: float, settle: float) -> None:
        """Waits until all messages have a reply or nothing comes any more."""
        while not (self._fed.is_set() and self._decided() and self.quiet_for() > settle):
            if self.quiet_for() > patience:
                return
            if self.quiet_for() > _LOOK_AFTER_SECONDS:
                running.check()
            time.sleep(0.1)

    def _decided(self) -> bool:
        return len({reference for reference, _ in self.seen}) + self.failed >= len(self._given)

    def _feed(self, rate: float) -> None:
        producer = Producer({"bootstrap.servers": self._servers, "enable.idempotence": True, "linger.ms": 0})
        began = time.monotonic()
        for number, message in enumerate(self._given):
            if self._stop.wait(max(0.0, began + number / rate - time.monotonic())):
                break
            producer.produce(self.messages, key=message.customer, value=message.model_dump_json())
            producer.poll(0)
        producer.flush()
        self._fed.set()

    def _read(self) -> None:
        options: dict[str, Any] = {
            "bootstrap.servers": self._servers,
            "group.id": "counts",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 20,
        }
        known: set[str] = set()
        with closing(Consumer(options)) as consumer:
            failures = f"{self.replies}-failures"
            topics = (self.replies, failures)
            consumer.assign([TopicPartition(topic, number, 0) for topic in topics for number in range(PARTITIONS)])
            while not self._stop.is_set():
                for record in consumer.consume(100, 0.05):
                    if record.error():
                        continue
                    if record.topic() == failures:
                        self.failed += 1
                        self._last_new = time.time()
                        continue
                    reference = Reply.model_validate_json(record.value() or b"").reference
                    self.seen.append((reference, time.time()))
                    if reference not in known:
                        known.add(reference)
                        self._last_new = time.time()


@contextmanager
def server(name: str, *arguments: str) -> Iterator[str]:
    """A server of this package in a process of its own; its URL."""
    command = [sys.executable, "-m", f"{__package__}.{name}", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise RuntimeError(f"the server {name!r} did not start")
            yield url
        finally:
            process.kill()


def _lines(log: Path, form: type[LineT]) -> list[LineT]:
    with suppress(FileNotFoundError):
        whole = log.read_text().rpartition("\n")[0]
        return [form.model_validate_json(line) for line in whole.splitlines()]
    return []
