"""The Kafka broker of the tests itself: what it keeps when it is killed, and what it says when it cannot start."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from runners import kafka as runners_kafka
from runners.kafka import KafkaServer, KafkaUnavailable, install_kafka
from runners.tools import TOOLS_VARIABLE
from tests.kafka_kit import make_topic

SECONDS = 60.0


@pytest.fixture
def broker(kafka: KafkaServer) -> Iterator[KafkaServer]:
    """A broker of the test's own, which it may kill. `kafka` has seen to it that there can be one."""
    with KafkaServer() as server:
        yield server


def write(servers: str, *values: str, **options: str) -> None:
    producer = Producer({"bootstrap.servers": servers, **options})
    if "transactional.id" in options:
        producer.init_transactions(SECONDS)
        producer.begin_transaction()
    for value in values:
        producer.produce("records", value)
    if "transactional.id" in options:
        producer.commit_transaction(SECONDS)
    assert producer.flush(SECONDS) == 0


def read(servers: str, count: int) -> list[tuple[int, bytes]]:
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "reader", "auto.offset.reset": "earliest"})
    consumer.subscribe(["records"])
    found: list[tuple[int, bytes]] = []
    until = time.monotonic() + SECONDS
    while len(found) < count:
        assert time.monotonic() < until, found
        for message in consumer.consume(count, timeout=0.5):
            assert message.error() is None
            found.append((message.offset() or 0, message.value() or b""))
    consumer.close()
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_was_written_is_there_after_a_kill_at_the_same_place(broker: KafkaServer) -> None:
    servers = broker.servers
    make_topic(servers, name="records")
    write(servers, "one")
    broker.kill()
    assert broker.pid is None
    broker.restart()
    write(servers, "two", **{"transactional.id": "writer"})

    assert broker.servers == servers
    assert read(servers, 2) == [(0, b"one"), (1, b"two")]


def test_a_topic_that_nobody_made_is_not_made_by_a_question(kafka: KafkaServer) -> None:
    consumer = Consumer({"bootstrap.servers": kafka.servers, "group.id": "asks"})
    with pytest.raises(KafkaException) as refused:
        consumer.get_watermark_offsets(TopicPartition("nobody-made-this", 0), timeout=SECONDS)
    consumer.close()
    assert refused.value.args[0].code() in (KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART)


def test_it_ends_with_its_starter_however_that_ends(kafka: KafkaServer) -> None:
    code = "import sys, runners.kafka as k; s = k.KafkaServer(); s.start(); print(s.pid, s.folder, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        pid, folder = starter.stdout.readline().split()
        assert is_running(int(pid))
        starter.kill()
    until = time.monotonic() + SECONDS
    while is_running(int(pid)):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert "Kafka Server started" in Path(folder, "server.log").read_text()
    shutil.rmtree(folder)


def test_why_it_does_not_start_is_told_and_nothing_stays(
    kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    secured = {"listener.security.protocol.map": "CLIENT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT"}
    with pytest.raises(KafkaUnavailable, match=r"(?s)does not start:.*JAAS"), KafkaServer(secured):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_was_taken_meanwhile_is_followed_by_another(
    kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = int(kafka.servers.rpartition(":")[2])
    asked = runners_kafka._free_ports

    def first_the_taken_one(count: int) -> list[int]:
        monkeypatch.setattr(runners_kafka, "_free_ports", asked)
        return [taken, *asked(count - 1)]

    monkeypatch.setattr(runners_kafka, "_free_ports", first_the_taken_one)
    with KafkaServer() as server:
        assert server.servers != kafka.servers
        assert list(AdminClient({"bootstrap.servers": server.servers}).list_topics(timeout=SECONDS).brokers) == [1]


def test_without_maven_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOOLS_VARIABLE, str(tmp_path / "tools"))
    java = tmp_path / "java"
    monkeypatch.setattr(runners_kafka, "find_java", lambda: java)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KafkaUnavailable, match=r"no 'mvn' is on the PATH: install Maven"):
        install_kafka()
    assert runners_kafka.kafka_home() is None


def test_without_java_it_says_so(kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(KafkaUnavailable, match=r"JAVA_HOME, .* has no bin/java: install a JDK"):
        KafkaServer()
