"""`WriteKafka`: raw records, counted by a plain `read_committed` consumer, whatever dies in between."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from beam_agents import RunFailure, RunResult
from beam_agents.errors import ConfigurationError
from beam_agents.events import Duplicate, Emitted, FailureReason, TraceRecord
from beam_agents.io import Kafka, WriteKafka, kafka_write_shard
from beam_agents.io.kafka_write_markers import end_of
from beam_agents.io.kafka_write_plain import AtLeastOnce, Plain
from beam_agents.io.kafka_write_seen import Seen
from beam_agents.io.kafka_write_shard import KafkaWriteError, Shards
from runners.kafka import KafkaServer
from runners.prism import prism_options, prism_path
from tests.io import kafka_write_child
from tests.io.kafka_write_child import record, settings
from tests.kafka_kit import make_topic

needs_prism = pytest.mark.skipif(prism_path() is None, reason="Prism is not built: run 'python -m runners.prism'")


@pytest.fixture
def servers(kafka: Any) -> str:
    return str(kafka.servers)


@pytest.fixture
def topic(servers: str) -> str:
    return make_topic(servers, 3)


def raw(servers: str, topic: str) -> list[Message[bytes, bytes]]:
    """All records that a `read_committed` consumer sees in a topic, up to its end."""
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": uuid.uuid4().hex,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    partitions = range(len(consumer.list_topics(topic, timeout=10).topics[topic].partitions))
    open_ = {partition: end_of(Kafka(servers), TopicPartition(topic, partition)) for partition in partitions}
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    seen = []
    until = time.monotonic() + 60
    while open_:
        assert time.monotonic() < until, open_
        message = consumer.poll(0.2)
        if message is not None and message.error() is None:
            seen.append(message)
        elif message is not None and message.offset() >= open_.get(message.partition(), 0):
            assert message.error().code() == KafkaError._PARTITION_EOF
            open_.pop(message.partition(), None)
    consumer.close()
    return seen


def numbers(servers: str, topic: str) -> list[int]:
    return sorted(int(message.value().split()[0]) for message in raw(servers, topic))


def result(run_id: str, output: Any = "fine") -> RunResult[Any, Any]:
    return RunResult(run_id=run_id, event={"n": 1}, output=output)


# ---- exactly once ----


@pytest.mark.parametrize("point", ["before the transaction", "before the commit", "after the commit"])
def test_a_process_that_is_killed_leaves_nothing_out_and_nothing_twice(servers: str, topic: str, point: str):
    shards = Shards(settings(servers, topic))
    assert shards.write({0: [record(number) for number in range(5)]}) == 5
    child = [sys.executable, kafka_write_child.__file__, servers, topic, point, "3", "12"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    assert subprocess.run(child, env=environment, check=False, timeout=60).returncode == -signal.SIGKILL

    later = Shards(settings(servers, topic))
    for bundle in ([8, 9, 10], [3, 4, 5, 6, 7, 8], [11, 12, 13], [0, 13]):
        later.write({0: [record(number) for number in bundle]})
    assert numbers(servers, topic) == list(range(14))
    shards.close()
    later.close()


def test_a_zombie_that_wakes_up_in_its_commit_writes_nothing_twice(
    servers: str, topic: str, monkeypatch: pytest.MonkeyPatch
):
    other = Shards(settings(servers, topic))

    class Sleeping(Producer):
        slept = False

        def commit_transaction(self, timeout: float = -1) -> None:
            self.flush()
            if not Sleeping.slept:
                Sleeping.slept = True
                assert other.write({0: [record(number) for number in range(2, 9)]}) == 7
            super().commit_transaction(timeout)

    with monkeypatch.context() as patch:
        patch.setattr(kafka_write_shard, "Producer", Sleeping)
        zombie = Shards(settings(servers, topic))
        assert zombie.write({0: [record(number) for number in range(5)]}) == 2
    assert Sleeping.slept
    assert other.write({0: [record(number) for number in range(12)]}) == 3
    assert numbers(servers, topic) == list(range(12))
    zombie.close()
    other.close()


@pytest.mark.parametrize("committed", [True, False])
def test_a_commit_whose_outcome_is_unknown_is_looked_up(
    servers: str, topic: str, committed: bool, monkeypatch: pytest.MonkeyPatch
):
    class Failing(Producer):
        failed = 0

        def commit_transaction(self, timeout: float = -1) -> None:
            self.flush()
            failing, Failing.failed = Failing.failed == 0, Failing.failed + 1
            if committed or not failing:
                super().commit_transaction(timeout)
            if failing:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer"))

    monkeypatch.setattr(kafka_write_shard, "Producer", Failing)
    shards = Shards(settings(servers, topic))
    assert shards.write({0: [record(1), record(2)]}) == (0 if committed else 2)
    assert shards.write({0: [record(2), record(3)], 1: [record(4)]}) == 2
    assert numbers(servers, topic) == [1, 2, 3, 4]
    shards.close()


def test_brokers_that_are_killed_in_a_transaction(kafka: Any, topic: str, monkeypatch: pytest.MonkeyPatch):
    class Losing(Producer):
        lost = False

        def commit_transaction(self, timeout: float = -1) -> None:
            self.flush()
            if not Losing.lost:
                Losing.lost = True
                kafka.kill()
                kafka.restart()
            super().commit_transaction(timeout)

    monkeypatch.setattr(kafka_write_shard, "Producer", Losing)
    shards = Shards(settings(kafka.servers, topic))
    shards.write({0: [record(1), record(2)]})
    shards.write({0: [record(2), record(3)]})
    assert Losing.lost
    assert numbers(kafka.servers, topic) == [1, 2, 3]
    shards.close()


def test_threads_of_one_process_take_turns(servers: str, topic: str):
    shards = Shards(settings(servers, topic))
    threads = [
        threading.Thread(target=shards.write, args=({n % 2: [record(20 * (n % 2) + i) for i in range(n, n + 8)]},))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = {20 * (n % 2) + i for n in range(8) for i in range(n, n + 8)}
    assert numbers(servers, topic) == sorted(wanted)
    shards.close()


def test_of_two_values_with_one_id_the_first_is_written_and_the_other_is_reported(
    servers: str, topic: str, caplog: pytest.LogCaptureFixture
):
    shards = Shards(settings(servers, topic))
    assert shards.write({0: [record(1, "first"), record(1, "second"), record(2), record(2)]}) == 2
    assert sorted(message.value() for message in raw(servers, topic)) == [b"1 first", b"2 "]
    assert [entry.levelname for entry in caplog.records if "are not the same" in entry.message] == ["ERROR"]
    shards.close()


def test_topics_that_do_not_fit_are_named(servers: str, topic: str):
    def refused(message: str, **changes: Any) -> None:
        shards = Shards(settings(servers, changes.pop("topic", topic), **changes))
        with pytest.raises(ConfigurationError, match=message):
            shards.write({0: [record(1)]})
        shards.close()

    refused("there is no topic 'nowhere'", topic="nowhere")
    make_topic(servers, 2, f"{topic}.written", **{"retention.ms": "3600000", "cleanup.policy": "delete"})
    refused("has 2 partitions, .* give shards=2", shards=3)
    refused("retention.ms=3600000", remember=3601.0)
    compacted = make_topic(servers, 2, f"{topic}.compacted", **{"cleanup.policy": "compact", "retention.ms": "3600000"})
    refused("cleanup.policy=compact", markers=compacted)
    shards = Shards(settings(servers, topic))
    assert shards.write({0: [record(1)]}) == 1
    shards.close()


def test_asking_for_the_topics_does_not_make_them():
    with KafkaServer({"auto.create.topics.enable": "true"}) as server:
        shards = Shards(settings(server.servers, "nowhere"))
        with pytest.raises(ConfigurationError, match="there is no topic 'nowhere'"):
            shards.write({0: [record(1)]})
        shards.close()
        topic = make_topic(server.servers, 3)
        shards = Shards(settings(server.servers, topic))
        assert shards.write({0: [record(1)], 1: [record(2)]}) == 2
        shards.close()
        known = AdminClient({"bootstrap.servers": server.servers}).list_topics(timeout=10).topics
        assert "nowhere" not in known
        assert len(known[f"{topic}.written"].partitions) == 2


@pytest.mark.parametrize("once", [True, False])
def test_many_records_go_in_batches_that_the_topic_takes(servers: str, once: bool):
    topic = make_topic(servers, 1, **{"max.message.bytes": "20000"})
    records = [record(n, f"{n} " + "x" * 5_000) for n in range(40)]
    if once:
        writer: Any = Shards(dataclasses.replace(settings(servers, topic), max_bytes=20_000))
    else:
        writer = Plain(AtLeastOnce(Kafka(servers), topic, 20_000))
    assert writer.write({0: records}) == 40
    assert numbers(servers, topic) == list(range(40))
    writer.close()


def test_sinks_that_share_the_topic_of_their_marks_do_not_take_each_others_for_their_own(servers: str, topic: str):
    other = make_topic(servers, 1)
    for to in (topic, other):
        shards = Shards(settings(servers, to, markers=f"{topic}.marks"))
        assert shards.write({0: [record(1)]}) == 1
        assert numbers(servers, to) == [1]
        shards.close()


def test_a_record_that_the_topic_refuses_ends_the_bundle_with_the_reason(servers: str):
    topic = make_topic(servers, 1, **{"max.message.bytes": "2000"})
    shards = Shards(settings(servers, topic))
    with pytest.raises(KafkaWriteError, match=rf"WriteKafka\('{topic}', exactly_once='job'\), shard 0.*"):
        shards.write({0: [record(1, "x" * 3_000)]})
    assert shards.write({0: [record(2)]}) == 1
    assert numbers(servers, topic) == [2]
    shards.close()


def test_what_was_written_is_known_for_as_long_as_it_says(monkeypatch: pytest.MonkeyPatch):
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    seen = Seen(80.0)
    digests = [number.to_bytes(16, "big") for number in (0, 1, 2**64, 2**64 + 1, 2**127, 2**128 - 1)]
    seen.add(b"".join(digests), now)
    seen.add(b"".join((n << 40).to_bytes(16, "big") for n in range(1, 60_001)), now)
    assert all(digest in seen for digest in digests)
    assert all((n << 40).to_bytes(16, "big") in seen for n in (1, 30_000, 60_000))
    assert (2).to_bytes(16, "big") not in seen
    assert (2**64 + 2).to_bytes(16, "big") not in seen
    assert len(seen) == 60_006
    now += 85.0
    seen.add(digests[0], now)
    assert digests[1] in seen
    now += 15.0
    seen.add(digests[1], now)
    assert digests[2] not in seen
    assert (digests[0] in seen, digests[1] in seen, len(seen)) == (True, True, 2)


# ---- pipelines ----


@pytest.mark.parametrize("options", [pytest.param("prism", marks=needs_prism), "direct"])
def test_a_job_that_runs_again_writes_each_value_once(servers: str, topic: str, options: str):
    trace = {"kind": "tool", "name": "f", "attempt": 1, "outcome": "ok", "started": 1.0}
    values = [
        *((f"card{n % 7}", result(f"run{n}")) for n in range(60)),
        *((f"card{n}", result("run-shared")) for n in range(7)),
        ("card1", RunFailure(reason=FailureReason.DEADLINE, message="late", run_id="run1")),
        ("card1", RunFailure(reason=FailureReason.ID_CONFLICT, message="other", run_id="run1", event={"n": 2})),
        ("card1", RunFailure(reason=FailureReason.ID_CONFLICT, message="other", run_id="run1", event={"n": 3})),
        ("card1", TraceRecord(run_id="run1", path="0", **trace)),
        ("card1", TraceRecord(run_id="run1", path="1", **trace)),
        ("card1", Emitted(run_id="run1", index=0, value={"n": 1})),
        ("card1", Emitted(run_id="run1", index=1, value={"n": 1})),
        (None, RunFailure(reason=FailureReason.INVALID_EVENT, message="t-0-17: no event", raw="x")),
    ]
    bad = [("card1", 5), ("card2", result("odd", "\ud800"))]
    for _ in range(2):
        with beam.Pipeline(
            options=PipelineOptions(prism_options() if options == "prism" else ["--runner=FnApiRunner"])
        ) as pipeline:
            left = (
                pipeline | beam.Create(values + bad) | WriteKafka(Kafka(servers), topic, exactly_once="job", shards=2)
            )
            if options == "direct":
                assert_that(left | beam.Keys(), equal_to(["card1", "card2"]))

    messages = raw(servers, topic)
    headers = [dict(message.headers()) for message in messages]
    assert len(messages) == len(values) == len({header["id"] for header in headers})
    assert Counter(header["kind"] for header in headers) == {b"result": 67, b"failure": 4, b"trace": 2, b"emitted": 2}
    by_run = {
        header["run_id"]: message for header, message in zip(headers, messages, strict=True) if "run_id" in header
    }
    assert by_run[b"run9"].key() == b"card2"
    assert json.loads(by_run[b"run9"].value())["output"] == "fine"
    assert [message.key() for message, header in zip(messages, headers, strict=True) if "run_id" not in header] == [
        None
    ]
    assert len({message.partition() for message in messages if message.key() == b"card1"}) == 1


def test_values_of_the_users_own_form(servers: str, topic: str):
    values = [("a", {"n": 1, "to": "x", "text": "one"}), ("a", {"n": 1, "to": "x", "text": "again"}), (7, {"n": 2})]
    sink = WriteKafka(
        Kafka(servers), topic, exactly_once="job", id="n", key=lambda v: v.get("to"), value=lambda v: v.get("text")
    )
    large = "Write large" >> WriteKafka(Kafka(servers), topic, id="n", max_bytes=1_000)
    with beam.Pipeline("FnApiRunner") as pipeline:
        pipeline | beam.Create(values) | sink
        left = pipeline | "Large" >> beam.Create([("a", {"n": 3, "text": "x" * 2_000})]) | large
        assert_that(left | beam.MapTuple(lambda key, one: "max_bytes=1000" in one.message), equal_to([True]))
    assert sorted((message.key(), message.value()) for message in raw(servers, topic) if message.value()) == [
        (b"x", b"one")
    ]
    assert [message.key() for message in raw(servers, topic) if message.value() is None] == [None]


# ---- at least once ----


def test_at_least_once_writes_again_with_the_same_ids(servers: str, topic: str):
    for _ in range(2):
        with beam.Pipeline("FnApiRunner") as pipeline:
            pipeline | beam.Create([("a", result(f"run{n}")) for n in range(10)]) | WriteKafka(Kafka(servers), topic)
    ids = Counter(dict(message.headers())["id"] for message in raw(servers, topic))
    assert (len(ids), set(ids.values())) == (10, {2})


def test_a_producer_that_takes_nothing_any_more_is_replaced(servers: str, topic: str, monkeypatch: pytest.MonkeyPatch):
    plain = Plain(AtLeastOnce(Kafka(servers), topic, 1_000_000))
    broken = mock.Mock()
    broken.produce.side_effect = KafkaException(KafkaError(KafkaError._FATAL, "sequence lost"))
    with monkeypatch.context() as patched:
        patched.setattr("beam_agents.io.kafka_write_plain.Producer", lambda *_, **__: broken)
        with pytest.raises(KafkaWriteError, match="sequence lost"):
            plain.write({0: [record(1)]})
    assert plain.write({0: [record(1)]}) == 1
    assert numbers(servers, topic) == [1]
    plain.close()


def test_a_record_that_did_not_arrive_ends_the_bundle(servers: str):
    topic = make_topic(servers, 1, **{"max.message.bytes": "2000"})
    plain = Plain(AtLeastOnce(Kafka(servers), topic, 1_000_000))
    with pytest.raises(KafkaWriteError, match=f"WriteKafka\\('{topic}'\\) at {servers}: .*[Ss]ize"):
        plain.write({0: [record(1, "x" * 3_000)]})
    assert plain.write({0: [record(2)]}) == 1
    plain.close()


# ---- at construction ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kafka": "host:9092"}, r"takes a Kafka\('host:9092'\), not 'host:9092'"),
        ({"topic": "a b"}, "topic='a b'"),
        ({"exactly_once": ""}, "exactly_once=''"),
        ({"shards": 0}, "shards=0"),
        ({"remember": timedelta(0)}, "remember="),
        ({"key": 1}, "key=1"),
        ({"value": "text"}, "value='text'"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(arguments: dict[str, Any], message: str):
    with pytest.raises(ConfigurationError, match=message):
        WriteKafka(**({"kafka": Kafka("host:9092"), "topic": "out"} | arguments))


def test_values_that_cannot_be_told_apart_and_names_that_are_used_twice_are_refused():
    pipeline = beam.Pipeline("FnApiRunner")
    duplicates = pipeline | beam.Create([]).with_output_types(tuple[str, Duplicate])
    duplicates | "Plain" >> WriteKafka(Kafka("host:9092"), "out")
    with pytest.raises(ConfigurationError, match="a Duplicate has no id of its own"):
        duplicates | "Once" >> WriteKafka(Kafka("host:9092"), "out", exactly_once="job")
    pipeline = beam.Pipeline("FnApiRunner")
    results = pipeline | beam.Create([]).with_output_types(tuple[str, RunResult])
    results | "First" >> WriteKafka(Kafka("host:9092"), "out", exactly_once="job")
    results | "Other topic" >> WriteKafka(Kafka("host:9092"), "other", exactly_once="job")
    with pytest.raises(ConfigurationError, match="two WriteKafka in this pipeline have topic 'out'"):
        results | "Second" >> WriteKafka(Kafka("host:9092"), "out", exactly_once="job")
    results | "Half" >> WriteKafka(Kafka("host:9092"), "c", exactly_once="a-b")
    with pytest.raises(ConfigurationError, match="another split of the same"):
        results | "Other half" >> WriteKafka(Kafka("host:9092"), "b-c", exactly_once="a")
