"""`ReadKafka` on a real cluster: every record once, under its coordinates, and windows though a partition is idle."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.window import FixedWindows
from apache_beam.utils.windowed_value import PaneInfoTiming
from confluent_kafka import Consumer, Message, TopicPartition

from beam_agents import RunAgent
from beam_agents.io import Kafka, ReadKafka, WriteKafka
from runners.flink.cluster import FlinkCluster
from runners.kafka import KafkaServer
from tests.flink.kafka_job import Payment, teller
from tests.flink.load_server import ROOT
from tests.kafka_kit import make_topic, produce
from tests.streaming_job import running

pytestmark = [pytest.mark.flink, pytest.mark.timeout(400)]

RECORDS = 200
OPEN = 3
MODEL_SECONDS = 15.0
SECONDS = 180.0


class Topic:
    """What a plain `read_committed` consumer has seen of a topic with one partition."""

    def __init__(self, kafka: KafkaServer) -> None:
        self.name = make_topic(kafka.servers)
        self.seen: list[Message[bytes, bytes]] = []
        options = {"bootstrap.servers": kafka.servers, "group.id": "test", "isolation.level": "read_committed"}
        self._consumer: Consumer[bytes, bytes] = Consumer(options)
        self._consumer.assign([TopicPartition(self.name, 0, 0)])

    def run_ids(self) -> list[str]:
        """Of the records, doubled ones too."""
        self.seen += self._consumer.consume(500, timeout=0.2)
        return [dict(message.headers() or ())["run_id"].decode() for message in self.seen]

    def values(self) -> list[str]:
        """Of the records."""
        self.seen += self._consumer.consume(500, timeout=0.2)
        return [(message.value() or b"").decode() for message in self.seen]

    def close(self) -> None:
        self._consumer.close()


def wait(condition: Callable[[], bool], what: str, cluster: FlinkCluster) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"{what} did not come within {SECONDS:g} s\n{cluster.report()}")


def test_an_agent_decides_each_record_once_and_windows_end_though_a_partition_is_idle(
    flink: FlinkCluster, kafka: KafkaServer, tmp_path: Path
) -> None:
    source = make_topic(kafka.servers, 3)
    results, windows, rest = Topic(kafka), Topic(kafka), Topic(kafka)
    records = [
        {"key": f"card{number % 7}", "value": b'{"number": %d}' % number, "partition": number % 2}  # 2 stays idle
        for number in range(RECORDS)
    ]
    produce(kafka.servers, source, [*records, {"key": "card0", "value": b"rubbish", "partition": 1}])
    ids = {f"{source}-{partition}-{offset}" for partition in (0, 1) for offset in range(RECORDS // 2)}

    broker = Kafka(kafka.servers)
    pipeline = beam.Pipeline(options=PipelineOptions(flink.submit_arguments(), streaming=True))
    events, bad = pipeline | ReadKafka(broker, source, value=Payment)
    outputs = events | RunAgent(teller(), ledger=f"sqlite:///{tmp_path}/runs.db")
    outputs.results | WriteKafka(broker, results.name, exactly_once="teller")
    named = outputs.results | beam.Map(lambda pair: ("all", pair[1].run_id)).with_output_types(tuple[str, str])
    grouped = named | beam.WindowInto(FixedWindows(1)) | beam.GroupByKey()
    told = grouped | beam.FlatMap(  # workers cannot import a test's module, so a function of it would not do
        lambda pair, pane=beam.DoFn.PaneInfoParam: [(id, f"{id} {pane.timing}") for id in pair[1]]
    ).with_output_types(tuple[str, str])
    told | WriteKafka(broker, windows.name, id=lambda text: text, value=lambda text: text)
    outputs.duplicates | "Duplicates" >> WriteKafka(broker, rest.name)
    (outputs.failures, bad) | beam.Flatten() | "Failures" >> WriteKafka(broker, rest.name)
    try:
        with running(pipeline):
            wait(lambda: ids <= set(results.run_ids()), "all results", flink)
            wait(lambda: len(set(windows.values())) >= RECORDS, "all windows", flink)
            wait(lambda: len(rest.values()) >= 1, "the dead letter", flink)
        assert sorted(results.run_ids()) == sorted(ids)
        assert set(windows.values()) == {f"{id} {PaneInfoTiming.ON_TIME}" for id in ids}
        (letter,) = set(rest.values())
        assert f"record {source}-1-{RECORDS // 2}: " in letter
    finally:
        for topic in (results, windows, rest):
            topic.close()


def test_open_runs_go_on_after_a_kill_though_nothing_more_comes(
    flink: FlinkCluster, kafka: KafkaServer, tmp_path: Path
) -> None:
    source, failures, ledger = make_topic(kafka.servers), make_topic(kafka.servers), tmp_path / "runs.db"
    results = Topic(kafka)
    command = [sys.executable, "-m", "tests.flink.kafka_job", f"--servers={kafka.servers}", f"--read={source}"]
    command += [f"--results={results.name}", f"--failures={failures}", f"--ledger=sqlite:///{ledger}"]
    command += [f"--model-seconds={MODEL_SECONDS}"]
    job = flink.submit(command, parallelism=1, checkpoint_interval=timedelta(seconds=1), directory=ROOT)

    def open_runs() -> int:
        with closing(sqlite3.connect(ledger)) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'runs'").fetchone():
                return 0
            (count,) = connection.execute("SELECT count(*) FROM runs WHERE ending IS NULL").fetchone()
        return int(count)

    def checkpoints() -> int:
        return flink.rest.checkpoints(job).completed

    try:
        produce(kafka.servers, source, [{"key": f"card{n}", "value": b'{"number": %d}' % n} for n in range(OPEN)])
        wait(lambda: open_runs() == OPEN, "the open runs", flink)
        covered = checkpoints() + 2  # one that began after all were read
        wait(lambda: checkpoints() >= covered, "a checkpoint", flink)
        assert open_runs() == OPEN
        for worker in flink.workers():
            os.kill(worker, signal.SIGKILL)
        wait(lambda: len(results.run_ids()) >= OPEN, "the results after the kill", flink)
        assert len(results.run_ids()) == len(set(results.run_ids())) == OPEN
    finally:
        flink.rest.cancel(job)
        results.close()
