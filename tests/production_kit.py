"""What the tests of examples in production share: commands as processes, a platform that runs, topics read raw."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from examples.production.folder import Folder, Running
from runners.flink.errors import FlinkUnavailable
from runners.flink.install import install_flink, install_job_server
from runners.flink.java import find_java
from runners.kafka import KafkaUnavailable, install_kafka
from runners.postgres import PostgresUnavailable, install_postgres

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 600.0


def program(example: str, command: str, folder: Path, *options: str) -> list[str]:
    """The command line of a command, such as `up`, of an example, such as `fraud`."""
    return [sys.executable, "-m", f"examples.{example}.production", command, f"--folder={folder}", *options]


def command(example: str, folder: Path, name: str, *options: str) -> str:
    """Runs a command as users do; what it printed."""
    done = subprocess.run(
        program(example, name, folder, *options), cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, f"{name} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def up(example: str, tmp_path: Path, *options: str) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """The folder of an example's platform that runs, and its `up`; skips where it cannot be had, but not in CI."""
    try:
        find_java()
        for install in (install_flink, install_job_server, install_kafka, install_postgres):
            install()
    except (FlinkUnavailable, KafkaUnavailable, PostgresUnavailable) as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    folder, log = tmp_path / "production", tmp_path / "up.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            program(example, "up", folder, "--rest-port=0", *options), cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        until = time.monotonic() + LIMIT
        while b"It runs." not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield folder, process
    finally:
        subprocess.run(program(example, "down", folder), cwd=ROOT, timeout=LIMIT, check=False)
        if process.poll() is None:
            process.kill()
        process.wait()
        print(log.read_text())


def running(folder: Path) -> Running:
    """What was noted of a platform that runs."""
    found = Folder(folder).running()
    assert found is not None
    return found


def committed(servers: str, topic: str) -> list[Message]:
    """The records of a topic, read to where it ends for consumers of committed records."""
    options = {"group.id": "raw", "isolation.level": "read_committed", "enable.partition.eof": True}
    consumer = Consumer({"bootstrap.servers": servers, **options})
    found: list[Message] = []
    try:
        places = [
            TopicPartition(topic, nth, 0) for nth in consumer.list_topics(topic, timeout=30).topics[topic].partitions
        ]
        consumer.assign(places)
        ended: set[int | None] = set()
        until = time.monotonic() + LIMIT
        while len(ended) < len(places):
            assert time.monotonic() < until
            for message in consumer.consume(500, 0.2):
                error = message.error()
                if error is None:
                    found.append(message)
                else:
                    assert error.code() == KafkaError._PARTITION_EOF, error
                    ended.add(message.partition())
    finally:
        consumer.close()
    return found
