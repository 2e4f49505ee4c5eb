"""The HTTP door's folder: what a crash or a bad disk leaves; and its answers to those who wait for results."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import apache_beam as beam
import httpx
import pytest
from confluent_kafka import KafkaError, KafkaException
from pydantic import BaseModel

from beam_agents import Agent, RunAgent
from beam_agents.errors import ConfigurationError
from beam_agents.io.ingress.admission import Admission
from beam_agents.io.ingress.app import Door, Limits
from beam_agents.io.ingress.body import Accepted, Events
from beam_agents.io.ingress.folder_store import FolderStore
from beam_agents.io.ingress.kafka_store import KafkaStore
from beam_agents.io.ingress.store import StoreDown
from beam_agents.io.ingress.table_results import TableResults
from beam_agents.io.kafka_connection import Kafka
from beam_agents.io.sinks.table import WriteTable
from beam_agents.messages import AssistantMessage, ModelRequest
from beam_agents.models import FunctionModel, say
from tests.agents.agent_kit import last_user_text
from tests.io.ingress_kit import MemoryStore, Order, stored


def one(number: int) -> Accepted:
    return Accepted(f"o-{number}", "ada", f'{{"customer":"ada","amount":{number}}}')


class Disk:
    """Stands in for `os.fsync`, which it calls: counts, and fails or waits on demand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.fails_at: set[int] = set()
        self.go = threading.Event()
        self.go.set()
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, file: int) -> None:
        assert self.go.wait(30)
        self.calls += 1
        if self.calls in self.fails_at:
            raise OSError(28, "No space left on device")
        self._fsync(file)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


# ---- the folder ----


def test_requests_that_wait_share_the_waiting_for_the_disk(tmp_path: Path, disk: Disk) -> None:
    async def run() -> None:
        store = FolderStore(tmp_path)
        await store.open()
        disk.go.clear()
        all_of_them = [asyncio.create_task(store.append([one(number)])) for number in range(500)]
        await asyncio.sleep(0)
        disk.go.set()
        await asyncio.gather(*all_of_them)
        await store.close()

    asyncio.run(run())
    assert stored(tmp_path) == [one(number) for number in range(500)]
    assert disk.calls <= 3  # the folder, the first request or so, the rest


def test_nothing_that_counts_is_lost_when_the_disk_fails_once(tmp_path: Path, disk: Disk) -> None:
    disk.fails_at = {3, 4, 5, 6}  # the second write, a try, the making of the next file, a try

    async def run() -> list[int]:
        store = FolderStore(tmp_path)
        await store.open()
        taken = []
        for number in range(5):
            if number in (1, 2):
                with pytest.raises(StoreDown, match=rf"{tmp_path}.*No space left on device"):
                    await store.append([one(number)])
            else:
                await store.append([one(number)])
                taken.append(number)
            assert await store.ready() == (number in taken)
        await store.close()
        return taken

    taken = asyncio.run(run())
    assert taken == [0, 3, 4]
    assert [one(number) for number in taken] == [event for event in stored(tmp_path) if event in map(one, taken)]
    assert len([path for path in tmp_path.glob("events-*") if path.stat().st_size]) == 2


def test_a_disk_that_can_be_written_again_is_ready_though_nobody_sends(tmp_path: Path, disk: Disk) -> None:
    disk.fails_at = {2, 3}

    async def run() -> list[bool]:
        store = FolderStore(tmp_path)
        await store.open()
        with pytest.raises(StoreDown):
            await store.append([one(1)])
        ready = [await store.ready() for _ in range(3)]
        await store.close()
        return ready

    assert asyncio.run(run()) == [False, True, True]
    assert [path.name for path in tmp_path.iterdir() if "probe" in path.name] == []


def test_an_event_that_no_job_could_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beam_agents.io.ingress.folder_store.LONGEST_LINE", 1_000)
    events = Events(dict[str, Any], key="customer", event_id=None, id_header="Idempotency-Key", max_batch=10)
    door = Door(events, FolderStore(tmp_path), OPEN, None, Limits())
    fits, large = (f'{{"customer": "ada", "text": "{"ж" * length}"}}' for length in (400, 500))
    assert [answer.status_code for answer in ask(door, *(("POST", "/events", body) for body in (fits, large)))] == [
        202,
        413,
    ]
    assert [event.event for event in stored(tmp_path)] == [fits]


class Brokers:
    """Stands in for a producer of confluent-kafka: says of each record what it is told to."""

    def __init__(self, fatal: bool = False, error: int | None = None) -> None:
        self._fatal, self._error = fatal, error
        self._asked: queue.Queue[Callable[[Any, Any], None]] = queue.Queue()

    def list_topics(self, topic: str, timeout: float) -> Any:
        return mock.Mock(topics={topic: mock.Mock(error=None)})

    def produce(self, *_: Any, on_delivery: Callable[[Any, Any], None], **__: Any) -> None:
        self._asked.put(on_delivery)

    def poll(self, seconds: float) -> None:
        if self._fatal and seconds:
            time.sleep(0.05)
            if not self._asked.empty():
                raise KafkaException(KafkaError(KafkaError._FATAL, "sequence lost"))
            return
        with contextlib.suppress(queue.Empty):
            told = self._asked.get(timeout=min(seconds, 0.02) or None, block=bool(seconds))
            told(None if self._error is None else KafkaError(self._error), None)

    def purge(self) -> None:
        self._error = KafkaError._PURGE_QUEUE

    def flush(self, seconds: float) -> int:
        return 0


def test_a_producer_that_can_do_nothing_any_more_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [Brokers(fatal=True), Brokers()]
    monkeypatch.setattr("beam_agents.io.ingress.kafka_store.Producer", lambda *_, **__: made.pop(0))

    async def run() -> None:
        store = KafkaStore(Kafka("host:9092"), "orders")
        await store.open()
        with pytest.raises(StoreDown, match="topic 'orders' at host:9092"):
            await asyncio.wait_for(store.append([one(1)]), 10)
        await asyncio.wait_for(store.append([one(1), one(2)]), 10)
        await store.close()

    asyncio.run(run())
    assert made == []


def test_an_event_that_the_topic_refuses_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    brokers = Brokers(error=KafkaError.MSG_SIZE_TOO_LARGE)
    monkeypatch.setattr("beam_agents.io.ingress.kafka_store.Producer", lambda *_, **__: brokers)
    door = Door(EVENTS, KafkaStore(Kafka("host:9092"), "orders"), OPEN, None, Limits())
    (answer,) = ask(door, ("POST", "/events", "o-1"))
    assert (answer.status_code, "max.message.bytes" in answer.json()["detail"]) == (413, True)


def test_a_door_tells_of_the_disk_and_takes_the_event_again(tmp_path: Path, disk: Disk) -> None:
    disk.fails_at = {2}
    answers = ask(Door(EVENTS, FolderStore(tmp_path), OPEN, None, Limits()), *[("POST", "/events", "o-1")] * 2)
    assert [answer.status_code for answer in answers] == [503, 202]
    assert stored(tmp_path)[-1].id == "o-1"


def test_files_are_replaced_by_the_next_in_order_also_if_the_clock_goes_back(tmp_path: Path) -> None:
    (tmp_path / "events-007258118400000.jsonl").write_bytes(b'{"id": "torn')
    (tmp_path / "events-1.jsonl").write_bytes(b"not one of them")
    before = sorted(tmp_path.iterdir())

    async def run() -> None:
        store = FolderStore(tmp_path, file_bytes=100)
        await store.open()
        for number in range(6):
            await store.append([one(number)])
        await store.close()

    asyncio.run(run())
    made = sorted(set(tmp_path.glob("events-*.jsonl")) - set(before))
    assert [path.name for path in made] == [f"events-{7258118400001 + number:015d}.jsonl" for number in range(3)]
    assert before[0].read_bytes() == b'{"id": "torn'
    before[1].unlink()
    assert stored(tmp_path) == [one(number) for number in range(6)]


def test_a_folder_belongs_to_one_server_at_a_time(tmp_path: Path) -> None:
    async def run() -> None:
        first, second, third = (FolderStore(tmp_path / "deep" / "inbox") for _ in range(3))
        await first.open()
        with pytest.raises(ConfigurationError, match=r"inbox' belongs to another server that runs"):
            await second.open()
        await second.close()
        await first.close()
        await third.open()
        await third.append([one(1)])
        await third.close()

    asyncio.run(run())
    assert stored(tmp_path / "deep" / "inbox") == [one(1)]


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be used: "):
        asyncio.run(FolderStore(tmp_path / "file").open())


# ---- results in tables ----

EVENTS = Events(Order, key="customer", event_id=None, id_header="Idempotency-Key", max_batch=10)
OPEN = Admission([], None, open=True)


def ask(door: Door, *requests: tuple[str, str, str]) -> list[httpx.Response]:
    """What the door answers to requests, each a method, a path and an id, or the event itself."""

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(door.application())
        async with door.opened(), httpx.AsyncClient(transport=transport, base_url="http://door") as client:
            return [
                await client.request(
                    method,
                    path,
                    content=(id if id.startswith("{") else '{"customer": "ada"}').encode()
                    if method == "POST"
                    else None,
                    headers={"content-type": "application/json", "idempotency-key": id if id[:1] != "{" else "o-1"},
                )
                for method, path, id in requests
            ]

    return asyncio.run(run())


class Answer(BaseModel):
    text: str


class Why(BaseModel):
    reason: str


def clerk(request: ModelRequest) -> AssistantMessage:
    if "bad" in last_user_text(request):
        raise ValueError("cannot be answered")
    return say("fine")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With what became of `o-1`, which was decided, and `o-2`, which failed."""
    url = f"sqlite:///{tmp_path_factory.mktemp('results')}/results.db"
    agent: Agent[Any, Any, Any, Any] = Agent(
        "clerk", model=FunctionModel(clerk, name="clerk"), event_type=Order, output_type=str
    )
    with beam.Pipeline("FnApiRunner") as pipeline:
        orders = [("ada", Order(customer="ada")), ("bad", Order(customer="bad"))]
        done = (
            pipeline
            | beam.Create(orders).with_output_types(tuple[str, Order])
            | RunAgent(agent, event_id=lambda order: {"ada": "o-1", "bad": "o-2"}[order.customer])
        )
        reason = done.failures | beam.Map(lambda pair: (pair[0], {"id": pair[1].run_id, "reason": "as I say"}))
        reason | "Named" >> WriteTable(url, "named", Why, id="id")
        done.results | "Good" >> WriteTable(url, "answers", Answer, row=lambda result: {"text": result.output})
        done.failures | "Bad" >> WriteTable(url, "failures", Why, row=lambda failure: {"reason": str(failure.reason)})
    return url


def told_by(url: str, **limits: Any) -> Door:
    results = TableResults(url, {"answers": "decided", "failures": "failed"})
    return Door(EVENTS, MemoryStore(), OPEN, results, Limits(**limits))


def test_results_in_tables_are_told(database: str) -> None:
    found, failed, missing, sent = ask(
        told_by(database),
        ("GET", "/events/o-1", ""),
        ("POST", "/events?wait=30s", "o-2"),
        ("GET", "/events/o-3", ""),
        ("POST", "/events", "o-1"),
    )
    assert (found.status_code, failed.status_code, missing.status_code, sent.status_code) == (200, 200, 404, 202)
    assert found.json() == {"id": "o-1", "status": "decided", "result": {"key": "ada", "id": "o-1", "text": "fine"}}
    assert failed.json()["status"] == "failed"
    assert failed.json()["result"]["reason"] == "model_error"
    assert failed.headers["location"] == "/events/o-2"
    assert missing.headers["content-type"] == "application/problem+json"
    assert missing.headers["retry-after"] == "1"


def test_an_id_may_have_slashes_and_what_can_be_none_is_not_looked_for(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/results.db"
    with sqlite3.connect(tmp_path / "results.db") as connection:
        connection.execute("CREATE TABLE answers (id TEXT, text TEXT)")
        connection.execute("INSERT INTO answers VALUES ('shop/orders/17', 'fine')")
    connection.close()
    door = Door(EVENTS, MemoryStore(), OPEN, TableResults(url, {"answers": "decided"}), Limits())
    sent, *asked = ask(
        door,
        ("POST", "/events", "shop/orders/17"),
        ("GET", "/events/shop%2Forders%2F17", ""),
        ("GET", "/events/shop/orders/17", ""),
        ("GET", "/events/%00", ""),
        ("GET", "/events/", ""),
        ("GET", f"/events/{'x' * 300}", ""),
    )
    assert sent.headers["location"] == "/events/shop%2Forders%2F17"
    assert [answer.status_code for answer in asked] == [200, 200, 404, 404, 404]


def test_a_decision_is_told_though_the_id_was_used_again(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "results.db") as connection:
        for table in ("answers", "failures"):
            connection.execute(f"CREATE TABLE {table} (id TEXT, text TEXT)")
            connection.execute(f"INSERT INTO {table} VALUES ('o-1', '{table}')")
    connection.close()
    (answer,) = ask(told_by(f"sqlite:///{tmp_path}/results.db"), ("GET", "/events/o-1", ""))
    assert answer.json()["status"] == "decided"


def test_failures_may_be_named_by_their_events(database: str) -> None:
    door = Door(EVENTS, MemoryStore(), OPEN, TableResults(database, {"named": "failed"}), Limits())
    found, other = ask(door, ("GET", "/events/o-2", ""), ("GET", "/events/o-1", ""))
    assert (found.json()["status"], found.json()["result"]["reason"], other.status_code) == ("failed", "as I say", 404)


@pytest.mark.parametrize("seconds", ["0", "1ms", "20ms"])
def test_who_waits_too_short_is_told_that_it_is_stored(database: str, seconds: str) -> None:
    sent, looked = ask(
        told_by(database), ("POST", f"/events?wait={seconds}", "o-3"), ("GET", f"/events/o-3?wait={seconds}", "")
    )
    assert (sent.status_code, sent.json()["id"], looked.status_code) == (202, "o-3", 404)


def test_nobody_waits_longer_than_the_server_lets(database: str) -> None:
    (answer,) = ask(told_by(database, max_wait=0.01), ("POST", "/events?wait=100000s", "o-3"))
    assert answer.status_code == 202


@pytest.mark.parametrize("wait", ["soon", "-1", "5m", "1234567", ""])
def test_a_time_that_is_none_is_refused(database: str, wait: str) -> None:
    assert [answer.status_code for answer in ask(told_by(database), ("POST", f"/events?wait={wait}", "o-3"))] == [400]


def test_a_result_that_comes_while_one_waits_is_told(tmp_path: Path) -> None:
    file = tmp_path / "later.db"
    door = told_by(f"sqlite:///{file}")

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(door.application())
        headers = {"content-type": "application/json", "prefer": "respond-async, wait=60"}
        async with door.opened(), httpx.AsyncClient(transport=transport, base_url="http://door") as client:
            waiting = [
                asyncio.create_task(
                    client.post("/events", content='{"customer": "ada"}', headers={**headers, "idempotency-key": id})
                )
                for id in ("o-1", "o-2", "o-1")
            ]
            await asyncio.sleep(0.05)
            with sqlite3.connect(file) as connection:
                connection.execute("CREATE TABLE answers (key TEXT, id TEXT, text TEXT, raw BLOB, number REAL)")
                rows = [("ada", id, f"of {id}", b"\xff", float("inf")) for id in ("o-1", "o-2")]
                connection.executemany("INSERT INTO answers VALUES (?, ?, ?, ?, ?)", rows)
            connection.close()
            return list(await asyncio.gather(*waiting))

    answers = asyncio.run(run())
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert [answer.json()["result"]["text"] for answer in answers] == ["of o-1", "of o-2", "of o-1"]
    assert (answers[0].json()["result"]["raw"], answers[0].json()["result"]["number"]) == ("_w==", "Infinity")


def test_a_database_that_is_none_is_a_503_for_who_asks_and_a_202_for_who_sends(tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_bytes(b"this is no database" * 100)
    door = told_by(f"sqlite:///{tmp_path}/broken.db")
    asked, sent = ask(door, ("GET", "/events/o-1", ""), ("POST", "/events?wait=20ms", "o-1"))
    assert (asked.status_code, asked.headers["retry-after"], sent.status_code) == (503, "1", 202)


def test_an_address_or_a_name_that_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be a name of plain letters"):
        TableResults("sqlite:///x.db", {'a"; DROP TABLE b': "decided"})
    with pytest.raises(ConfigurationError, match="results are in 'sqlite:///FILE'"):
        asyncio.run(TableResults("mysql://x", {"a": "decided"}).open())
