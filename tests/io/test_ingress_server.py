"""The HTTP door as a process of its own: its command, Kafka behind it, and jobs that read what it has taken."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam as beam
import httpx
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from confluent_kafka import Consumer, Producer

from beam_agents import RunAgent
from beam_agents.errors import ConfigurationError
from beam_agents.events import FailureReason, Identified
from beam_agents.io import Header, Kafka, ReadIngress, ReadKafka
from beam_agents.io.ingress.cli import main
from runners.kafka import KafkaServer
from runners.prism import prism_options, prism_path
from tests.agents.agent_kit import JUDGING, Txn
from tests.io.ingress_kit import stored
from tests.kafka_kit import make_topic
from tests.streaming_job import Sink, running

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ("--events", "tests.agents.agent_kit:Txn", "--key", "card", "--open", "--port", "0")


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    """A door, and a client of it."""
    command = [sys.executable, "-m", "beam_agents.io.ingress.cli", *COMMAND, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", process.stdout.readline())
            assert told is not None
            with httpx.Client(base_url=told[1], timeout=90) as client:
                yield client, process
        finally:
            process.kill()


def send(client: httpx.Client, id: str, amount: float = 1, **params: str) -> httpx.Response:
    event = {"txn_id": id, "card": f"c-{id}", "amount": amount}
    return client.post("/events", json=event, params=params, headers={"Idempotency-Key": id})


# ---- the command ----


def test_a_server_takes_events_until_it_is_told_to_end(tmp_path: Path) -> None:
    with serving("--store", str(tmp_path)) as (client, process):
        assert send(client, "t-1").status_code == 202
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""
    assert [event.id for event in stored(tmp_path)] == ["t-1"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--events", "tests.agents.agent_kit:Nobody"], "has no 'Nobody'"),
        (["--events", "no_such_module:Txn"], "No module named 'no_such_module'"),
        (["--events", "Txn"], "--events='Txn' must be MODULE:TYPE"),
        (["--key", "client"], "key='client': Txn has no such field"),
        (["--event-id", "nr"], "event_id='nr': Txn has no such field"),
        (["--token-env", "NOT_SET_HERE"], "NOT_SET_HERE"),
        (["--results-table", "answers"], "--results and --results-table"),
        (["--results", "sqlite:///x.db"], "--results and --results-table"),
        (["--results-topic", "answers"], "--results-topic needs Kafka's brokers: --kafka"),
        (["--results-topic", "a", "--results", "sqlite:///x.db", "--results-table", "b"], "in topics or in tables"),
        (["--results", "mysql://x", "--results-table", "b"], "results are in 'sqlite:///FILE'"),
        (["--host", "192.0.2.1"], "--host=192.0.2.1 --port=0"),
    ],
)
def test_arguments_that_cannot_work_are_named(
    more: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    assert main([*COMMAND, "--store", str(tmp_path), *more]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--events", "a:B", "--store", "x"], "--key"),
        (["--events", "a:B", "--key", "k"], "--store --kafka"),
        (["--events", "a:B", "--key", "k", "--store", "x", "--max-batch", "0"], "0 must be 1 or more"),
    ],
)
def test_arguments_that_are_missing_are_named(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_nobody_is_let_in_unless_one_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--events", "tests.agents.agent_kit:Txn", "--key", "card", "--store", str(tmp_path)]) == 2
    assert "say who may send" in capsys.readouterr().err
    assert main(["--events", "tests.agents.agent_kit:Txn", "--key", "card", "--kafka", "localhost:1", "--open"]) == 2
    assert "--topic" in capsys.readouterr().err


# ---- Kafka ----


def test_events_go_to_a_topic_and_results_come_back_from_one(kafka: KafkaServer) -> None:
    topic, results = make_topic(kafka.servers, 2), make_topic(kafka.servers, 2)
    more = ("--kafka", kafka.servers, "--topic", topic, "--results-topic", results)
    with serving(*more) as (client, process), ThreadPoolExecutor() as threads:
        waiting = threads.submit(send, client, "t-1", 5, wait="60s")
        sent = [send(client, f"t-{number}", number).status_code for number in (2, 2, 3)]
        assert sent == [202, 202, 202]
        tell(kafka.servers, results, "t-1", b'{"ok": false}', "result", commits=False)
        tell(kafka.servers, results, "t-1", b'{"ok": true}', "result", commits=True)
        tell(kafka.servers, results, b"\xff", b"foreign", "result", commits=True)
        tell(kafka.servers, results, "t-2", b"text", "failure", commits=True)
        tell(kafka.servers, results, "t-4", b'{"n": NaN}', "result", commits=True)
        assert waiting.result().status_code == 200
        assert waiting.result().json() == {"id": "t-1", "status": "decided", "result": {"ok": True}}
        failed = client.get("/events/t-2", params={"wait": "60s"})
        assert failed.json() == {"id": "t-2", "status": "failed", "result": "text"}
        assert client.get("/events/t-4", params={"wait": "60s"}).json()["result"] == {"n": "NaN"}
        assert client.get("/events/t-3").status_code == 404
        assert client.get("/readyz").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0

    with beam.Pipeline("FnApiRunner") as pipeline:
        read = ReadKafka(Kafka(kafka.servers), topic, value=Txn, event_id=Header("idempotency-key"))
        events, bad = pipeline | read
        expected = [
            (f"c-t-{n}", Identified[Txn](id=f"t-{n}", event=Txn(txn_id=f"t-{n}", card=f"c-t-{n}", amount=amount)))
            for n, amount in ((1, 5), (2, 2), (2, 2), (3, 3))
        ]
        assert_that(events, equal_to(expected), label="events")
        assert_that(bad, equal_to([]), label="bad")
    assert records(kafka.servers, topic, 4) == sorted(
        (f"c-t-{n}".encode(), f"t-{n}".encode(), n if n > 1 else 5) for n in (1, 2, 2, 3)
    )


def tell(servers: str, topic: str, id: str | bytes, value: bytes, kind: str, *, commits: bool) -> None:
    """Writes a result as `WriteKafka` does."""
    producer = Producer({"bootstrap.servers": servers, "transactional.id": f"{topic}-{id!r}"})
    producer.init_transactions()
    producer.begin_transaction()
    producer.produce(topic, value, headers=[("id", "0" * 32), ("kind", kind), ("run_id", id)])
    producer.commit_transaction() if commits else producer.abort_transaction()


def records(servers: str, topic: str, count: int) -> list[Any]:
    """Key, id and amount of the records of a topic."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": topic, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    found: list[Any] = []
    until = time.monotonic() + 60
    while len(found) < count and time.monotonic() < until:
        message = consumer.poll(1)
        if message is not None and message.error() is None:
            headers, value = dict(message.headers() or ()), json.loads(message.value() or b"{}")
            found.append((message.key(), headers["idempotency-key"], value["amount"]))
    consumer.close()
    return sorted(found)


def test_a_topic_that_is_not_there_ends_the_server(
    kafka: KafkaServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    topic = make_topic(kafka.servers)
    given = [*COMMAND, "--kafka", kafka.servers, "--topic", topic]
    assert main([*given, "--results-topic", "no-such-topic"]) == 2
    assert "topic 'no-such-topic' of results is not there: make it first" in capsys.readouterr().err


# ---- jobs ----


def line(id: str, event: str) -> str:
    return json.dumps({"id": id, "key": "c1", "event": event}) + "\n"


def test_an_agent_decides_an_event_that_was_sent_twice_once(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    good, bad = '{"txn_id": "t-1", "amount": 5}', '{"txn_id": 5}'
    first = line("t-1", good) + line("t-2", bad) + "rubbish\n" + line("t-3", good)[:20]
    (inbox / "events-000000000000001.jsonl").write_text(first)
    (inbox / "events-000000000000002.jsonl").write_text(line("t-1", good) + line("t-4", good))
    (inbox / "other.jsonl").write_text(line("t-9", good))
    with beam.Pipeline("FnApiRunner") as pipeline:
        events, refused = pipeline | ReadIngress(inbox, value=Txn)
        done = events | RunAgent(JUDGING, ledger=f"sqlite:///{tmp_path}/runs.db")
        ids = [outcome | f"{n}" >> beam.Map(lambda pair: pair[1].run_id)
               for n, outcome in enumerate((done.results, done.duplicates, done.failures))]  # fmt: skip
        assert_that(ids[0], equal_to(["t-1", "t-4"]), label="results")
        assert_that(ids[1], equal_to(["t-1"]), label="duplicates")
        assert_that(ids[2], equal_to([]), label="failures")
        told = refused | beam.Map(lambda pair: (pair[0], pair[1].run_id, pair[1].reason, pair[1].raw))
        wrong = [(None, "t-2", FailureReason.INVALID_EVENT, bad), (None, None, FailureReason.INVALID_EVENT, "rubbish")]
        assert_that(told, equal_to(wrong), label="refused")


def test_a_value_that_nobody_can_read_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cannot be read by pydantic"):
        ReadIngress("inbox", value=object())


@pytest.mark.skipif(prism_path() is None, reason="Prism is not built: run 'python -m runners.prism'")
def test_a_job_reads_what_comes_while_it_runs(tmp_path: Path) -> None:
    first = tmp_path / "events-000000000000001.jsonl"
    first.write_text(line("t-1", '{"txn_id": "t-1"}') + line("t-2", '{"txn_id": "t-2"}')[:30])
    pipeline, events = beam.Pipeline(options=PipelineOptions(prism_options())), Sink()
    read = pipeline | ReadIngress(tmp_path, value=Txn)
    read.events | events
    with running(pipeline) as job:
        assert [seen.value for seen in events.take(1, job)] == [("c1", Identified(id="t-1", event=Txn(txn_id="t-1")))]
        (tmp_path / "events-000000000000002.jsonl").write_text(line("t-2", '{"txn_id": "t-2"}'))
        assert [seen.value[1].id for seen in events.take(1, job)] == ["t-2"]
