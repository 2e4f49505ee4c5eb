"""`ReadKafka`: what it makes of records, where it goes on, and what it does with what is gone."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam import coders
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.utils.timestamp import Timestamp
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions
from pydantic import BaseModel

from beam_agents import Agent, FailureReason, RunAgent, RunFailure
from beam_agents.errors import ConfigurationError, StoredFormUnknown
from beam_agents.io import Header, Identified, Kafka, KafkaRecord, ReadKafka
from beam_agents.io.files import shard_of
from beam_agents.io.kafka_bounded import FindDoFn, SpanDoFn
from beam_agents.io.kafka_consumer import Reader
from beam_agents.io.kafka_read import PollDoFn
from beam_agents.io.kafka_record import Decoder
from beam_agents.models import FunctionModel, say
from runners.kafka import KafkaServer
from runners.prism import prism_options, prism_path
from tests.kafka_kit import make_topic, produce
from tests.streaming_job import Sink, running

needs_prism = pytest.mark.skipif(prism_path() is None, reason="Prism is not built: run 'python -m runners.prism'")


class Payment(BaseModel):
    id: str = ""
    card: str = ""
    amount: int


def payment(amount: int, **more: Any) -> dict[str, Any]:
    return {"key": f"card{amount % 3}", "value": json.dumps({"amount": amount} | more).encode()}


def amounts(events: list[Any]) -> list[int]:
    return [identified.event.amount for _, identified in events]


def record(value: bytes | None, **more: Any) -> KafkaRecord:
    told = {"topic": "payments", "partition": 3, "offset": 1042, "key": b"card1", "timestamp": datetime.now(UTC)}
    return KafkaRecord(**(told | more), value=value)


# ---- from record to event ----


def test_an_event_has_the_coordinates_for_its_id_and_the_records_key() -> None:
    assert Decoder(Payment, None, None)(record(b'{"amount": 5}')) == (
        "card1",
        Identified(id="payments-3-1042", event=Payment(amount=5)),
    )


@pytest.mark.parametrize(
    ("key", "event_id", "expected"),
    [
        ("card", "id", ("c7", "p1")),
        (lambda value: value.amount, lambda value: value.amount + 1, ("5", "6")),
        (None, Header("txn"), ("card1", "t-9")),
    ],
)
def test_key_and_id_may_come_from_the_value_or_a_header(key: Any, event_id: Any, expected: tuple[str, str]) -> None:
    value = b'{"amount": 5, "card": "c7", "id": "p1"}'
    found = Decoder(Payment, key, event_id)(record(value, headers=(("txn", b"t-1"), ("txn", b"t-9"))))
    assert isinstance(found, tuple)
    assert (found[0], found[1].id) == expected


@pytest.mark.parametrize(
    ("value", "of", "event"),
    [
        (str, "größe".encode(), "größe"),
        (bytes, b"\xff\x00", b"\xff\x00"),
        (dict[str, int], b'{"a": 1}', {"a": 1}),
    ],
)
def test_values_of_other_types(value: Any, of: bytes, event: Any) -> None:
    found = Decoder(value, None, None)(record(of))
    assert isinstance(found, tuple)
    assert found[1].event == event


def test_the_whole_record_may_be_the_event_a_tombstone_too() -> None:
    whole = record(None, headers=(("a", None),))
    assert Decoder(KafkaRecord, None, None)(whole) == ("card1", Identified(id="payments-3-1042", event=whole))


@pytest.mark.parametrize(
    ("of", "more", "arguments", "reason", "told"),
    [
        (b'{"amount": "x"}', {}, {}, "invalid_event", "amount"),
        (b"\xff", {}, {}, "invalid_event", ""),
        (None, {}, {}, "invalid_event", "tombstone"),
        (b'{"amount": 5}', {"key": None}, {}, "missing_key", "has no key; say with key="),
        (b'{"amount": 5}', {"key": b"\xff"}, {}, "missing_key", "utf-8"),
        (b'{"amount": 5}', {}, {"key": "card"}, "missing_key", "key='card'"),
        (b'{"amount": 5}', {}, {"event_id": "id"}, "missing_id", "event_id='id'"),
        (b'{"amount": 5}', {}, {"event_id": Header("txn")}, "missing_id", "no such header"),
        (b'{"amount": 5}', {}, {"event_id": lambda value: 1 / 0}, "missing_id", "ZeroDivisionError"),
        (b'{"amount": 5}', {}, {"key": lambda value: 1.5}, "missing_key", "a text or a whole number"),
    ],
)
def test_what_is_no_event_is_told_with_its_coordinates(
    of: bytes | None, more: dict[str, Any], arguments: dict[str, Any], reason: str, told: str
) -> None:
    decoder = Decoder(Payment, arguments.get("key"), arguments.get("event_id"))
    failure = decoder(record(of, **more))
    assert isinstance(failure, RunFailure)
    assert failure.reason == FailureReason(reason)
    assert re.match(f"record payments-3-1042: .*{told}", failure.message)
    assert failure.raw == (None if of is None else of.decode("utf-8", "backslashreplace"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"topics": []}, "at least one topic"),
        ({"start": "now"}, "'earliest' or 'latest'"),
        ({"shards": 0}, "shards=0"),
        ({"key": "kard"}, "Payment has no such field, it has: id, card, amount"),
        ({"value": str, "event_id": "id"}, "str has no such field"),
        ({"event_id": 5}, "or a Header"),
        ({"value": object()}, "cannot be read by pydantic"),
        ({"kafka": "localhost:9092"}, "takes a Kafka"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], told: str) -> None:
    given = {"kafka": Kafka("localhost:9092"), "topics": "payments", "value": Payment} | arguments
    with pytest.raises(ConfigurationError, match=told):
        ReadKafka(given.pop("kafka"), given.pop("topics"), **given)


def test_an_event_is_coded_without_pickle() -> None:
    pipeline = beam.Pipeline("FnApiRunner")
    events, _ = pipeline | ReadKafka(Kafka("localhost:9092"), "payments", value=Payment)
    coder = coders.registry.get_coder(events.element_type)
    event = ("card1", Identified[Payment](id="p-1-2", event=Payment(amount=5)))
    assert coder.decode(coder.encode(event)) == event
    assert b"card1" in coder.encode(event)
    assert b'"amount":5' in coder.encode(event)


# ---- what is there now ----


def test_a_direct_runner_reads_what_is_there_and_ends(kafka: KafkaServer) -> None:
    topic = make_topic(kafka.servers, 3)
    produce(kafka.servers, topic, [payment(n) | {"timestamp": 1_700_000_000_000 + n} for n in range(50)])
    produce(kafka.servers, topic, [{"key": "card1", "value": b"rubbish"}])
    with beam.Pipeline("FnApiRunner") as pipeline:
        events, bad = pipeline | ReadKafka(Kafka(kafka.servers), topic, value=Payment)
        times = events | beam.Map(lambda event, at=beam.DoFn.TimestampParam: (event[1].event.amount, float(at)))
        assert_that(times, equal_to([(n, 1_700_000_000 + n / 1000) for n in range(50)]), label="events")
        assert_that(bad | beam.Map(lambda pair: (pair[0], pair[1].raw)), equal_to([(None, "rubbish")]), label="bad")


def test_only_committed_records_are_read(kafka: KafkaServer) -> None:
    topic = make_topic(kafka.servers)
    producer = Producer({"bootstrap.servers": kafka.servers, "transactional.id": topic})
    producer.init_transactions()
    for number, commits in enumerate((False, True, False)):
        producer.begin_transaction()
        producer.produce(topic, key="card", value=json.dumps({"amount": number}))
        producer.flush()
        producer.commit_transaction() if commits else producer.abort_transaction()
    with beam.Pipeline("FnApiRunner") as pipeline:
        events, _ = pipeline | ReadKafka(Kafka(kafka.servers), topic, value=Payment)
        assert_that(events | beam.Map(lambda event: event[1].event.amount), equal_to([1]))


def test_a_time_that_no_calendar_has_harms_nobody(kafka: KafkaServer) -> None:
    topic = make_topic(kafka.servers, **{"message.timestamp.after.max.ms": str(2**63 - 1)})
    produce(kafka.servers, topic, [payment(1) | {"timestamp": 1_700_000_000_000_000}, payment(2)])
    with beam.Pipeline("FnApiRunner") as pipeline:
        read = pipeline | ReadKafka(Kafka(kafka.servers), topic, value=KafkaRecord)
        years = read.events | beam.MapTuple(lambda _, one: one.event.timestamp.year)
        assert_that(years, equal_to([9999, datetime.now(UTC).year]))


def test_a_topic_that_is_not_there_is_named(kafka: KafkaServer) -> None:
    with pytest.raises(Exception, match="there is no topic 'nothing-here'"), beam.Pipeline("FnApiRunner") as pipeline:
        _ = pipeline | ReadKafka(Kafka(kafka.servers), "nothing-here", value=Payment)


def test_an_agent_decides_each_record_once_and_takes_the_coordinates_for_ids(
    kafka: KafkaServer, tmp_path: Path
) -> None:
    topic = make_topic(kafka.servers, 2)
    produce(kafka.servers, topic, [payment(n) for n in range(6)])
    ids = []
    for _ in range(2):  # a second job finds all decided
        with beam.Pipeline("FnApiRunner") as pipeline:
            events, _ = pipeline | ReadKafka(Kafka(kafka.servers), topic, value=Payment)
            model = FunctionModel(lambda request: say("fine"))
            agent: Agent[Payment, str, Any, Any] = Agent("teller", model=model, event_type=Payment, output_type=str)
            results = (events | RunAgent(agent, ledger=f"sqlite:///{tmp_path}/runs.db")).results
            assert_that(results | beam.Map(lambda pair: pair[1].event.amount), equal_to(list(range(6))))
            results | beam.Map(lambda pair: pair[1].run_id) | beam.io.WriteToText(str(tmp_path / "ids"))
        ids.append(sorted(line for path in tmp_path.glob("ids*") for line in path.read_text().split()))
    assert ids[0] == ids[1]
    assert all(id.startswith(f"{topic}-") for id in ids[0])
    assert len(set(ids[0])) == 6


# ---- for ever ----


class Shard:
    """A shard of `PollDoFn`, looked at by hand: its state and what it emitted."""

    def __init__(self, kafka: KafkaServer, topics: list[str], **more: Any) -> None:
        self._kafka = kafka
        self._arguments = [
            topics,
            1,
            more.get("start", "earliest"),
            Decoder(Payment, None, None),
            more.get("most", 500),
        ]
        self.state = _Cell()
        self.timer = _Timer()
        self.restart()

    def restart(self) -> None:
        """Another process goes on from the state."""
        self.dofn = PollDoFn(Kafka(self._kafka.servers), *self._arguments)

    def resharded(self, shards: int) -> None:
        """Another job goes on from the state, with another number of shards."""
        self._arguments[1] = shards
        self.restart()

    def look(self, shard: int = 0) -> list[Any]:
        """One look."""
        fired = Timestamp.now()
        return list(self.dofn.look(shard=shard, fired=fired, offsets=self.state, look=self.timer))

    def until(self, count: int) -> list[Any]:
        """Looks until so many came, and then once more."""
        found: list[Any] = []
        deadline = time.monotonic() + 30
        while len(found) < count:
            assert time.monotonic() < deadline, found
            found += self.look()
            time.sleep(0.02)
        return found + self.look()


class _Cell:
    def __init__(self) -> None:
        self.value: bytes | None = None
        self.writes = 0

    def read(self) -> bytes | None:
        return self.value

    def write(self, value: bytes) -> None:
        self.value = value
        self.writes += 1


class _Timer:
    def __init__(self) -> None:
        self.pauses: list[float] = []

    def set(self, at: float) -> None:
        self.pauses.append(at - time.time())


@pytest.fixture
def shard_on(kafka: KafkaServer, request: pytest.FixtureRequest) -> Callable[..., Shard]:
    def make(*topics: str, **more: Any) -> Shard:
        shard = Shard(kafka, list(topics), **more)
        request.addfinalizer(lambda: shard.dofn.teardown())
        return shard

    return make


def events_of(elements: list[Any]) -> list[int]:
    return [element.value[1].event.amount for element in elements if not hasattr(element, "tag")]


def bad_of(elements: list[Any]) -> list[str]:
    return [element.value.value[1].message for element in elements if hasattr(element, "tag")]


def test_it_goes_on_where_its_state_says(kafka: KafkaServer, shard_on: Callable[..., Shard]) -> None:
    topic = make_topic(kafka.servers)
    produce(kafka.servers, topic, [payment(n) for n in range(3)])
    shard = shard_on(topic)
    assert events_of(shard.until(3)) == [0, 1, 2]
    kept, writes = shard.state.value, shard.state.writes
    assert shard.look() == []
    assert shard.state.writes == writes, "a look that finds nothing writes nothing"
    produce(kafka.servers, topic, [payment(3)])
    assert events_of(shard.until(1)) == [3]
    shard.state.value = kept  # the bundle did not count
    assert events_of(shard.until(1)) == [3]
    produce(kafka.servers, topic, [payment(4)])
    shard.dofn.teardown()
    shard.restart()
    assert events_of(shard.until(1)) == [4]


def test_a_look_reads_no_more_than_its_limit_and_the_next_one_comes_at_once(
    kafka: KafkaServer, shard_on: Callable[..., Shard]
) -> None:
    topic = make_topic(kafka.servers)
    produce(kafka.servers, topic, [payment(n) for n in range(7)])
    shard = shard_on(topic, most=5)
    found = shard.until(5)
    assert len(found) <= 7
    assert events_of(found)[:5] == list(range(5))
    assert min(shard.timer.pauses) <= 0
    shard.until(7 - len(found)) if len(found) < 7 else None
    for _ in range(8):
        shard.look()
    assert shard.timer.pauses[-1] > 0.15, "while nothing comes, looks are rarer"


def test_a_job_that_starts_at_the_end_keeps_that_place(kafka: KafkaServer, shard_on: Callable[..., Shard]) -> None:
    topic = make_topic(kafka.servers)
    produce(kafka.servers, topic, [payment(1)])
    shard = shard_on(topic, start="latest")
    shard.look()
    produce(kafka.servers, topic, [payment(2)])
    shard.dofn.teardown()
    shard.restart()
    assert events_of(shard.until(1)) == [2]


def test_new_partitions_are_read_from_their_beginning(kafka: KafkaServer, shard_on: Callable[..., Shard]) -> None:
    topic = make_topic(kafka.servers)
    shard = shard_on(topic, start="latest")
    shard.look()
    admin = AdminClient({"bootstrap.servers": kafka.servers})
    admin.create_partitions([NewPartitions(topic, 2)])[topic].result()
    produce(kafka.servers, topic, [payment(9) | {"partition": 1}])
    shard.dofn.teardown()
    shard.restart()  # it looks for partitions at once, and else each half a minute
    assert events_of(shard.until(1)) == [9]


def test_what_was_deleted_before_it_was_read_is_told(kafka: KafkaServer, shard_on: Callable[..., Shard]) -> None:
    topic = make_topic(kafka.servers)
    produce(kafka.servers, topic, [payment(0)])
    shard = shard_on(topic)
    shard.until(1)
    shard.dofn.teardown()
    produce(kafka.servers, topic, [payment(n) for n in range(1, 5)])
    admin = AdminClient({"bootstrap.servers": kafka.servers})
    admin.delete_records([TopicPartition(topic, 0, 3)])[TopicPartition(topic, 0)].result()
    shard.restart()
    found = shard.until(3)
    assert events_of(found) == [3, 4]
    assert bad_of(found) == [
        f"records from {topic}-0-1 on were deleted before they were read; reading goes on at {topic}-0-3"
    ]


def test_several_partitions_that_lose_their_places_at_once_are_told(
    kafka: KafkaServer, shard_on: Callable[..., Shard]
) -> None:
    topic = make_topic(kafka.servers, 3)
    shard = shard_on(topic)
    places = "0", "1", "2"
    shard.state.value = b'{"schema_version":1,"started":true,"next":{"%s":{"0":5,"1":5,"2":5}}}' % topic.encode()
    found = shard.until(3)
    assert sorted(bad_of(found)) == [
        f"{topic}-{place} ends before 5: the topic was made anew; reading goes on at {topic}-{place}-0"
        for place in places
    ]
    produce(kafka.servers, topic, [payment(int(place)) | {"partition": int(place)} for place in places])
    assert sorted(events_of(shard.until(3))) == [0, 1, 2]


def test_a_partition_without_a_leader_does_not_hide_the_others(
    kafka: KafkaServer, shard_on: Callable[..., Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = make_topic(kafka.servers, 3)
    produce(kafka.servers, topic, [payment(number) | {"partition": number} for number in range(3)])
    shard = shard_on(topic)
    bounds, away = Reader.bounds, {(topic, 0), (topic, 1)}

    def unless_away(reader: Reader, place: tuple[str, int], seconds: float = 10.0) -> tuple[int, int]:
        if place in away:
            time.sleep(seconds)
            raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE))
        return bounds(reader, place, seconds)

    monkeypatch.setattr(Reader, "bounds", unless_away)
    assert events_of(shard.until(1)) == [2]
    away.clear()
    assert sorted(events_of(shard.until(2))) == [0, 1]


def test_a_job_with_another_number_of_shards_reads_what_has_moved_and_goes_on_with_the_rest(
    kafka: KafkaServer, shard_on: Callable[..., Shard]
) -> None:
    topic = make_topic(kafka.servers, 4)
    records = [payment(number) | {"partition": number} for number in range(4)]
    produce(kafka.servers, topic, records)
    theirs = {n: {number for number in range(4) if shard_of(f"{topic}:{number}", n) == 0} for n in (1, 2)}
    shard = shard_on(topic)
    assert sorted(events_of(shard.until(4))) == [0, 1, 2, 3]
    shard.dofn.teardown()
    shard.resharded(2)
    produce(kafka.servers, topic, [payment(10 + number) | {"partition": number} for number in range(4)])
    found = events_of(shard.until(len(theirs[2])) if theirs[2] else shard.look())
    assert sorted(found) == sorted(10 + number for number in theirs[2]), "those that are still its own, from its place"
    shard.dofn.teardown()
    shard.resharded(1)
    moved = theirs[1] - theirs[2]
    found = events_of(shard.until(2 * len(moved)) if moved else shard.look())
    assert sorted(found) == sorted([*moved, *(10 + number for number in moved)])
    timers = len(shard.timer.pauses)
    assert shard.look(shard=1) == []
    assert len(shard.timer.pauses) == timers, "a shard that is there no more winds down"


def test_a_topic_that_is_not_read_any_more_is_not_and_keeps_its_place(
    kafka: KafkaServer, shard_on: Callable[..., Shard]
) -> None:
    one, other = make_topic(kafka.servers), make_topic(kafka.servers)
    for topic in (one, other):
        produce(kafka.servers, topic, [payment(1)])
    both = shard_on(one, other)
    both.until(2)
    alone = shard_on(one)
    alone.state.value = both.state.value
    produce(kafka.servers, other, [payment(2)])
    produce(kafka.servers, one, [payment(3)])
    assert events_of(alone.until(1)) == [3]
    both.state.value = alone.state.value
    both.dofn.teardown()
    both.restart()
    assert events_of(both.until(1)) == [2]


def test_a_place_that_is_there_again_when_it_is_looked_up_is_read_on(
    kafka: KafkaServer, shard_on: Callable[..., Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = make_topic(kafka.servers)
    produce(kafka.servers, topic, [payment(n) for n in range(2)])
    shard = shard_on(topic)
    shard.state.value = b'{"schema_version":1,"started":true,"next":{"%s":{"0":5}}}' % topic.encode()
    bounds = Reader.bounds

    def after_others_came(reader: Reader, place: tuple[str, int], seconds: float = 10.0) -> tuple[int, int]:
        if bounds(reader, place)[1] == 2:
            produce(kafka.servers, topic, [payment(n) for n in range(2, 8)])
        return bounds(reader, place)

    monkeypatch.setattr(Reader, "bounds", after_others_came)
    assert events_of(shard.until(3)) == [5, 6, 7]


def test_what_is_deleted_while_it_is_read_to_its_end_is_told(kafka: KafkaServer) -> None:
    topic = make_topic(kafka.servers)
    produce(kafka.servers, topic, [payment(n) for n in range(6)])
    (span,) = FindDoFn(Kafka(kafka.servers), "earliest").process([topic])
    admin = AdminClient({"bootstrap.servers": kafka.servers})
    admin.delete_records([TopicPartition(topic, 0, 3)])[TopicPartition(topic, 0)].result()
    found = list(SpanDoFn(Kafka(kafka.servers), Decoder(Payment, None, None)).process(span))
    assert events_of(found) == [3, 4, 5]
    assert bad_of(found) == [
        f"records from {topic}-0-0 on were deleted before they were read; reading goes on at {topic}-0-3"
    ]


def test_brokers_that_are_away_are_waited_for_and_the_log_is_not_filled(caplog: pytest.LogCaptureFixture) -> None:
    with KafkaServer() as server:
        topic = make_topic(server.servers)
        produce(server.servers, topic, [payment(1)])
        shard = Shard(server, [topic])
        assert events_of(shard.until(1)) == [1]
        caplog.clear()
        server.kill()
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert shard.look() == []
            time.sleep(0.05)
        told = [record.getMessage() for record in caplog.records if record.name.endswith("kafka_consumer")]
        assert any("Connection refused" in text or "Disconnected" in text for text in told)
        assert len(told) < 10
        server.restart()
        produce(server.servers, topic, [payment(2)])
        assert events_of(shard.until(1)) == [2]
        shard.dofn.teardown()


def test_positions_of_this_release_are_read_for_ever(kafka: KafkaServer, shard_on: Callable[..., Shard]) -> None:
    topic = make_topic(kafka.servers)
    produce(kafka.servers, topic, [payment(n) for n in range(3)])
    shard = shard_on(topic)
    shard.state.value = b'{"schema_version":1,"started":true,"next":{"%s":{"0":2}}}' % topic.encode()
    assert events_of(shard.until(1)) == [2]
    shard.state.value = b'{"schema_version":2}'
    with pytest.raises(StoredFormUnknown, match="another release"):
        shard.look()


@needs_prism
def test_a_stream_goes_on_with_what_comes(kafka: KafkaServer) -> None:
    first, second = make_topic(kafka.servers, 2), make_topic(kafka.servers)
    produce(kafka.servers, first, [payment(n) for n in range(20)])
    events, bad = Sink(), Sink()
    pipeline = beam.Pipeline(options=PipelineOptions(prism_options()))
    read = pipeline | ReadKafka(Kafka(kafka.servers), [first, second], value=Payment)
    read.events | "Events" >> events
    read.bad | "Bad" >> bad
    with running(pipeline) as job:
        assert sorted(amounts([seen.value for seen in events.take(20, job)])) == list(range(20))
        produce(kafka.servers, second, [payment(20), {"value": b"{}"}])
        (seen,) = events.take(1, job)
        assert seen.value == ("card2", Identified(id=f"{second}-0-0", event=Payment(amount=20)))
        (lost,) = bad.take(1, job)
        assert f"{second}-0-1" in lost.value[1].message
        assert abs(seen.timestamp - time.time()) < 60
    assert events.values() == bad.values() == []
