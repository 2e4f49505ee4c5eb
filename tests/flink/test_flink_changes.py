"""`ReadPostgresChanges` on a real cluster: each row and change once, and the server told after the checkpoint."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from runners.flink.cluster import FlinkCluster
from runners.kafka import KafkaServer
from runners.postgres import PostgresServer
from tests.changes_kit import Database, replicating_server
from tests.flink.load_server import ROOT
from tests.kafka_kit import make_topic

pytestmark = [pytest.mark.flink, pytest.mark.timeout(400)]

SECONDS = 180.0


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with replicating_server() as started:
        yield started


class ChangesJob:
    """A job under way, and what a `read_committed` consumer has seen of its results."""

    def __init__(self, flink: FlinkCluster, kafka: KafkaServer, database: Database, folder: Path) -> None:
        self._flink = flink
        self._topics = [make_topic(kafka.servers), make_topic(kafka.servers)]
        self._seen: list[str] = []
        self._consumer: Consumer[bytes, bytes] = Consumer(
            {"bootstrap.servers": kafka.servers, "group.id": "test", "isolation.level": "read_committed"}
        )
        self._consumer.assign([TopicPartition(topic, 0, 0) for topic in self._topics])
        self._command = [sys.executable, "-m", "tests.flink.changes_job"]
        self._command += [f"--database={database.url}", f"--slot={database.slot}", f"--servers={kafka.servers}"]
        self._command += [f"--results={self._topics[0]}", f"--failures={self._topics[1]}"]
        self._command += [f"--ledger=sqlite:///{folder}/runs.db"]

    def start(self, every: timedelta) -> None:
        self.id = self._flink.submit(self._command, parallelism=1, checkpoint_interval=every, directory=ROOT)

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + SECONDS
        while not condition():
            if time.monotonic() > until:
                raise TimeoutError(f"{what} did not come within {SECONDS:g} s\n{self._flink.report()}")
            time.sleep(0.05)

    def runs(self) -> list[str]:
        """Ids of the runs of all results and failures so far, doubled ones too."""
        messages = self._consumer.consume(500, timeout=0.2)
        self._seen += [dict(message.headers() or ())["run_id"].decode() for message in messages]
        return self._seen

    def end(self) -> None:
        self._flink.rest.cancel(self.id)
        self._consumer.close()


@pytest.fixture
def job(
    flink: FlinkCluster, kafka: KafkaServer, server: PostgresServer, tmp_path: Path
) -> Iterator[tuple[ChangesJob, Database]]:
    database = Database(server)
    made = ChangesJob(flink, kafka, database, tmp_path)
    try:
        yield made, database
    finally:
        made.end()
        database.drop_slot()


def test_each_row_and_change_comes_once_though_a_worker_is_killed_and_the_log_is_let_go(
    flink: FlinkCluster, job: tuple[ChangesJob, Database]
) -> None:
    changes, database = job
    database.insert(*range(20))
    changes.start(timedelta(seconds=1))
    changes.wait(lambda: len(changes.runs()) >= 20, "the rows")
    database.insert(*range(20, 40))
    changes.wait(lambda: len(changes.runs()) >= 40, "the changes")
    for worker in flink.workers():
        os.kill(worker, signal.SIGKILL)
    database.insert(*range(40, 60))
    ((end,),) = database.sql("SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint")
    changes.wait(lambda: len(set(changes.runs())) >= 60, "the changes after the kill")
    changes.wait(lambda: database.confirmed() >= end, "the word to the server")
    runs = changes.runs()
    assert len(runs) == len(set(runs)) == 60


def test_before_a_checkpoint_the_server_keeps_all(flink: FlinkCluster, job: tuple[ChangesJob, Database]) -> None:
    changes, database = job
    database.insert(*range(5))
    changes.start(timedelta(hours=1))
    changes.wait(lambda: len(changes.runs()) >= 5, "the rows")
    began = database.confirmed()
    database.insert(5, 6)
    changes.wait(lambda: len(changes.runs()) >= 7, "the changes")
    for worker in flink.workers():
        os.kill(worker, signal.SIGKILL)
    database.insert(7)
    changes.wait(lambda: any("readings-7-" in run for run in changes.runs()), "the rows again")
    assert database.confirmed() == began
