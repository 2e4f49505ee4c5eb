"""`publish` and `request` with a real broker: what is written, what counts as an answer, and what a crash leaves."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from agents_under_test import Event
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from cluster import Cluster
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions
from kafka_job import Asked, Job, confirmed, working
from pydantic import BaseModel
from toolkit_kit import call, failure

from beam_agents import ConfigurationError, RunAgent, RunContext, Tool, workflow
from beam_agents.io import Header, Kafka, ReadKafka, Sasl, WriteKafka
from beam_agents.ledger import MemoryLedger
from beam_agents.secrets import EnvSecret
from beam_agents.toolkit import Published, kafka_answers, publish, request
from runners.kafka import KafkaServer
from runners.prism import prism_options, prism_path
from tests.kafka_kit import make_topic
from tests.streaming_job import running

SECOND = timedelta(seconds=1)
Reply = list[tuple[dict[str, str], bytes]]


class Verdict(BaseModel):
    verdict: str
    of: Any = None


@pytest.fixture
def job(kafka: KafkaServer) -> Iterator[Job]:
    with working(kafka.servers) as job:
        yield job


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path / "ledger.db")
    yield made
    made.close()


def asking(job: Job, returns: Any = Verdict, **more: Any) -> Tool[Any]:
    def ask(card: str, amount: int = 1) -> Any:
        """Asks the other job."""

    ask.__annotations__["return"] = returns
    return request(Kafka(job.servers), job.topic, **{"replies": job.replies, "timeout": 20 * SECOND, **more})(ask)


def answering(job: Job, *answers: tuple[dict[str, str], Any]) -> None:
    """Has a job answer so, each with headers in which ID stands for the event's id."""

    def answer(asked: Asked) -> Reply:
        return [
            (
                {name: value.replace("ID", asked.id) for name, value in headers.items()},
                value if isinstance(value, bytes) else json.dumps(value).replace("ID", asked.id).encode(),
            )
            for headers, value in answers
        ]

    job.answer = answer


def records(servers: str, topic: str, count: int = 1) -> list[Any]:
    """The first records of a topic with one partition."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "test"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found = consumer.consume(count, 20)
    consumer.close()
    return found


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


# ---- publish ----


def test_an_event_has_the_arguments_the_runs_key_and_the_calls_key(kafka: KafkaServer) -> None:
    topic = make_topic(kafka.servers)

    @publish(Kafka(kafka.servers), topic)
    def report(card: str, day: date, tags: list[str] | None = None) -> Published:
        """Reports a card."""

    @workflow(tools=[report])
    async def flow(ctx: RunContext[Any, Any, Any], event: str) -> Published:
        return await ctx.call(report, card=event, day=date(2026, 2, 3))

    assert report.description == "Reports a card."
    assert report.effect == "idempotent"
    published = flow.run_sync("c1", key="the key", event_id="e1", ledger=MemoryLedger()).output
    (record,) = records(kafka.servers, topic)
    assert published == Published(topic=topic, partition=0, offset=0)
    assert record.key() == b"the key"
    assert json.loads(record.value()) == {"card": "c1", "day": "2026-02-03", "tags": None}
    headers = dict(record.headers())
    assert len(headers.pop("id")) == 32
    assert headers == {"run_id": b"e1"}


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        ({"key": "number"}, b"7", {"number": 7, "what": {"verdict": "v", "of": None}}),
        ({"key": "number", "body": "what"}, b"7", {"verdict": "v", "of": None}),
    ],
)
def test_a_parameter_may_be_the_key_or_all_of_the_event(
    kafka: KafkaServer, arguments: dict[str, str], key: bytes, value: Any
) -> None:
    topic = make_topic(kafka.servers)

    @publish(Kafka(kafka.servers), topic, **arguments)  # type: ignore[arg-type]
    def report(number: int, what: Verdict) -> None: ...

    assert call(report, number=7, what={"verdict": "v"}) is None
    (record,) = records(kafka.servers, topic)
    assert record.key() == key
    assert json.loads(record.value()) == value


def test_a_call_that_is_made_again_has_the_same_id(kafka: KafkaServer, cluster: Cluster) -> None:
    topic, written = make_topic(kafka.servers), threading.Event()
    real = publish(Kafka(kafka.servers), topic)(_report)

    async def then_die(ctx: RunContext[Any, Any, Any], card: str) -> None:
        await real.function(ctx, card=card)  # type: ignore[misc]
        if ctx.attempt == 1:
            written.set()
            await asyncio.Event().wait()

    flow = _one_call(Tool(then_die, effect="idempotent", name="report"))
    first = cluster.worker(flow)
    first.start(Event(id="e1"))
    assert written.wait(20)
    cluster.kill(first)
    assert cluster.worker(flow).run(Event(id="e1")).end.output is None
    one, two = records(kafka.servers, topic, 2)
    assert one.headers() == two.headers()
    assert one.value() == two.value()


def _report(card: str) -> None: ...


def _one_call(tool: Tool[Any]) -> Any:
    @workflow(name="agent", tools=[tool], event_type=Event)
    async def flow(ctx: RunContext[Event, Any, Any], event: Event) -> Any:
        return await ctx.call(tool, card=event.text or "c1")

    return flow


def test_a_topic_that_is_not_there_is_named(kafka: KafkaServer) -> None:
    failed = failure(publish(Kafka(kafka.servers), "nothing-here")(_report), card="c")
    assert failed.reason == "tool_error"
    assert f"there is no topic 'nothing-here' at {kafka.servers}; make it first" in failed.message


@pytest.mark.parametrize("size", [5_000, 2_000_000])  # the topic's limit, the library's
def test_an_event_that_is_too_large_is_told(kafka: KafkaServer, size: int) -> None:
    topic = make_topic(kafka.servers, **{"max.message.bytes": "1000"})
    failed = failure(publish(Kafka(kafka.servers), topic)(_report), card="c" * size)
    assert failed.reason == "tool_error"
    assert f"bytes is too large for topic '{topic}' at {kafka.servers}" in failed.message


def test_brokers_that_are_away_are_named_when_the_time_is_over() -> None:
    away = Kafka(f"127.0.0.1:{closed_port()}")
    failed = failure(publish(away, "t", timeout=SECOND)(_report), card="c")
    assert failed.reason == "tool_error"
    assert f"topic 't' at {away.servers}" in failed.message
    failed = failure(request(away, "t", replies="r", timeout=SECOND)(_report), card="c")
    assert f"topics 't' and 'r' at {away.servers} could not be used in 1 s" in failed.message


def test_a_secret_that_is_missing_is_named_and_none_is_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", "hunter2")
    kafka = Kafka("localhost:9092", sasl=Sasl("PLAIN", "me", EnvSecret("KAFKA_PASSWORD")))
    tool = request(kafka, "t", replies="r")(_report)
    again = pickler.loads(pickler.dumps(tool))
    assert again.spec == tool.spec
    assert b"hunter2" not in pickler.dumps(tool, enable_trace=False, use_zlib=False)
    monkeypatch.delenv("KAFKA_PASSWORD")
    assert "KAFKA_PASSWORD" in failure(again, card="c").message


def test_a_broker_that_restarts_is_waited_for() -> None:
    with KafkaServer() as server, working(server.servers, lambda asked: []) as job, ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(call, asking(job, timeout=90 * SECOND), card="c1")
        job.wait_for(1, waiting)
        server.kill()
        published = pool.submit(
            call, publish(Kafka(server.servers), job.topic, timeout=90 * SECOND)(_report), card="c2"
        )
        server.restart()
        assert published.result(90) is None
        job.wait_for(2)
        job.reply(*confirmed(job.asked[0])[0])
        assert waiting.result(90)["verdict"] == "fine"


# ---- request ----


def test_the_answer_is_read_as_the_return_type(job: Job) -> None:
    assert call(asking(job, key="card"), card="c1", amount=5) == {
        "verdict": "fine",
        "of": {"card": "c1", "amount": 5},
    }
    (asked,) = job.asked
    assert asked.key == "c1"
    assert asked.headers["reply_to"] == job.replies
    assert set(asked.headers) == {"id", "run_id", "reply_to"}


@pytest.mark.parametrize(
    ("headers", "value", "returns", "result"),
    [
        ({"run_id": "ID", "kind": "result"}, {"run_id": "ID", "event": 1, "output": {"verdict": "v"}}, Verdict, "v"),
        ({"run_id": "ID", "kind": "result"}, {"verdict": "v"}, Verdict, "v"),  # WriteKafka(value=...)
        ({"run_id": "ID"}, {"verdict": "v"}, Verdict, "v"),
        ({"run_id": "ID", "kind": "result"}, b"5 is \xc3\xa4 number", str, "5 is ä number"),
        ({"in_reply_to": "ID"}, b"5", str, "5"),
        ({"in_reply_to": "ID"}, "text", str, "text"),
        ({"in_reply_to": "ID"}, 5, int, 5),
        ({"in_reply_to": "ID"}, b"whatever", None, None),
    ],
)
def test_what_counts_as_an_answer(job: Job, headers: dict[str, str], value: Any, returns: Any, result: Any) -> None:
    answering(job, (headers, value))
    said = call(asking(job, returns), card="c")
    assert (said["verdict"] if returns is Verdict else said) == result


def test_what_a_job_says_on_the_way_or_to_others_is_no_answer_and_the_first_answer_counts(job: Job) -> None:
    answering(
        job,
        ({"run_id": "ID", "kind": "trace"}, 1),
        ({"run_id": "ID", "kind": "emitted"}, 2),
        ({"run_id": "ID", "kind": "duplicate"}, 3),
        ({"run_id": "ID", "in_reply_to": "another"}, 4),
        ({}, 5),
        ({"in_reply_to": "ID"}, 6),
        ({"in_reply_to": "ID"}, 7),
    )
    job.replies = make_topic(job.servers)  # with one partition, so that they are read in this order
    assert call(asking(job, int), card="c") == 6


def test_a_failure_of_the_other_job_is_told(job: Job) -> None:
    answering(
        job,
        ({"run_id": "ID", "kind": "failure"}, {"reason": "deadline", "message": "it took too long", "run_id": "ID"}),
    )
    said = call(asking(job), card="c")
    assert said == f"ToolFailed: the job that reads topic '{job.topic}' failed: deadline: it took too long"
    answering(job, ({"in_reply_to": "ID", "kind": "failure"}, b"no\nsuch card"))
    assert call(asking(job), card="c").endswith("failed: no such card")


def test_an_answer_that_does_not_fit_is_lost(job: Job) -> None:
    answering(job, ({"in_reply_to": "ID"}, {"nothing": 1}))
    failed = failure(asking(job), card="c")
    assert failed.reason == "result_lost"
    assert "verdict" in failed.message


def test_a_job_that_does_not_answer_is_an_error_and_a_later_answer_is_for_a_later_attempt(job: Job) -> None:
    job.answer = lambda asked: []
    failed = failure(asking(job, timeout=SECOND), card="c")
    assert failed.reason == "tool_error"
    assert f"no answer came in topic '{job.replies}' in 1 s" in failed.message
    job.answer = confirmed
    assert call(asking(job), card="c")["verdict"] == "fine"  # the late answer to another call is none to this one
    job.answer = lambda asked: []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(call, asking(job, timeout=2 * SECOND, retries=3), card="late")
        job.wait_for(4)  # the second attempt asks again, since there is no answer yet
        job.reply(*confirmed(job.asked[3])[0])
        assert waiting.result(20)["of"] == {"card": "late", "amount": 1}
    assert job.asked[2].id == job.asked[3].id


def test_an_answer_that_came_while_the_worker_was_dead_is_found_and_nothing_is_asked_again(
    job: Job, cluster: Cluster
) -> None:
    job.answer = lambda asked: []
    flow = _one_call(asking(job))
    first = cluster.worker(flow)
    first.start(Event(id="e1"))
    job.wait_for(1)
    cluster.kill(first)
    job.reply(*confirmed(job.asked[0])[0])
    assert cluster.worker(flow).run(Event(id="e1")).end.output["verdict"] == "fine"
    assert len(job.asked) == 1


def test_an_answer_that_comes_after_the_restart_is_heard_and_the_job_knows_the_id(job: Job, cluster: Cluster) -> None:
    job.answer = lambda asked: []
    flow = _one_call(asking(job))
    first = cluster.worker(flow)
    first.start(Event(id="e1"))
    job.wait_for(1)
    cluster.kill(first)
    second = cluster.worker(flow).start(Event(id="e1"))
    job.wait_for(2)
    job.reply(*confirmed(job.asked[0])[0])
    assert second.done.result(30).end.output["verdict"] == "fine"
    assert job.asked[0] == job.asked[1]


def test_an_answer_in_a_transaction_that_was_open_at_the_restart_is_heard(job: Job, cluster: Cluster) -> None:
    job.answer = lambda asked: []
    flow = _one_call(asking(job))
    first = cluster.worker(flow)
    first.start(Event(id="e1"))
    job.wait_for(1)
    cluster.kill(first)
    producer = Producer({"bootstrap.servers": job.servers, "transactional.id": job.replies})
    producer.init_transactions()
    producer.begin_transaction()
    (headers, value) = confirmed(job.asked[0])[0]
    producer.produce(job.replies, value, headers=list(headers.items()))
    producer.flush()
    second = cluster.worker(flow).start(Event(id="e1"))
    job.wait_for(2)
    assert not second.done.done()
    producer.commit_transaction()
    assert second.done.result(30).end.output["verdict"] == "fine"


def test_workers_share_a_topic_of_answers_and_calls_share_a_consumer(job: Job, cluster: Cluster) -> None:
    def answer(asked: Asked) -> Reply:
        held.append(asked)
        return [one for asked in held for one in confirmed(asked)] if len(held) == 60 else []

    held: list[Asked] = []
    job.answer = answer
    flow = _one_call(asking(job))
    before = sum(thread.name == "beam-agents-answers" for thread in threading.enumerate())
    workers = [cluster.worker(flow), cluster.worker(flow)]
    handles = [workers[n % 2].start(Event(id=f"e{n}", text=f"card{n}"), key=f"k{n}") for n in range(60)]
    job.wait_for(59)
    assert sum(thread.name == "beam-agents-answers" for thread in threading.enumerate()) <= before + 2
    ends = [handle.done.result(30).end.output["of"]["card"] for handle in handles]
    assert ends == [f"card{n}" for n in range(60)]


def test_partitions_that_are_added_are_read(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_answers, "_REFRESH_SECONDS", 0.2)
    job.answer = lambda asked: []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(call, asking(job), card="c")
        job.wait_for(1)
        admin = AdminClient({"bootstrap.servers": job.servers})
        admin.create_partitions([NewPartitions(job.replies, 3)])[job.replies].result()
        producer = Producer({"bootstrap.servers": job.servers})
        (headers, value) = confirmed(job.asked[0])[0]
        producer.produce(job.replies, value, headers=list(headers.items()), partition=2)
        assert producer.flush(20) == 0
        assert waiting.result(20)["verdict"] == "fine"


def test_a_topic_of_answers_that_is_not_there_is_named_and_nothing_is_asked(job: Job) -> None:
    failed = failure(asking(job, replies="no-replies"), card="c")
    assert failed.reason == "tool_error"
    assert f"there is no topic 'no-replies' at {job.servers}; make it first" in failed.message
    assert job.asked == []


@pytest.mark.skipif(prism_path() is None, reason="Prism is not built: run 'python -m runners.prism'")
def test_another_agents_job_is_a_tool(kafka: KafkaServer, tmp_path: Path) -> None:
    topic, replies = make_topic(kafka.servers), make_topic(kafka.servers)

    @workflow(name="judge", event_type=dict[str, Any])
    async def judge(ctx: RunContext[Any, Any, Any], event: dict[str, Any]) -> Verdict:
        if event["amount"] > 100:
            raise ValueError("that is too much")
        return Verdict(verdict="fine", of=event["card"])

    at = Kafka(kafka.servers)
    pipeline = beam.Pipeline(options=PipelineOptions(prism_options()))
    events = (pipeline | ReadKafka(at, topic, value=dict[str, Any], event_id=Header("id"))).events
    out = events | RunAgent(judge, ledger=f"sqlite:///{tmp_path}/judge.db")
    out.results | "Answer" >> WriteKafka(at, replies, exactly_once="judge", shards=1)
    out.failures | "Refuse" >> WriteKafka(at, replies)

    @request(at, topic, replies=replies, key="card", timeout=60 * SECOND)
    def ask(card: str, amount: int) -> Verdict: ...

    with running(pipeline), ThreadPoolExecutor(2) as pool:
        refused = pool.submit(call, ask, card="c2", amount=500)
        assert call(ask, card="c1", amount=5) == {"verdict": "fine", "of": "c1"}
        assert "failed: code_error" in refused.result(60)
        assert "that is too much" in refused.result(60)


# ---- declarations ----


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"kafka": "localhost:9092"}, "takes a Kafka"),
        ({"topic": "a b"}, "topic='a b' must be letters"),
        ({"replies": ""}, "replies='' must be letters"),
        ({"replies": "t"}, "replies='t' must be another topic"),
        ({"timeout": timedelta(0)}, "must be above zero"),
        ({"remember": SECOND}, "must not be below timeout"),
        ({"key": "kard"}, "key='kard' is no parameter; there is: card"),
        ({"body": "kard"}, "body='kard' is no parameter"),
        ({"body": "card", "key": "card"}, "there may be one other parameter, the key"),
    ],
)
def test_declarations_that_cannot_work_are_refused(arguments: dict[str, Any], told: str) -> None:
    given = {"kafka": Kafka("localhost:9092"), "topic": "t", "replies": "r"} | arguments
    with pytest.raises(ConfigurationError, match=told):
        request(given.pop("kafka"), given.pop("topic"), **given)(_report)


def test_publish_returns_none_or_where_it_stands() -> None:
    with pytest.raises(ConfigurationError, match="None or Published, not <class 'int'>; for an answer use request"):

        @publish(Kafka("localhost:9092"), "t")
        def report(card: str) -> int: ...
