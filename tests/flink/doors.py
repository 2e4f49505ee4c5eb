"""The doors by which events come to a job that is killed: Kafka, PostgreSQL's changes, and HTTP."""

from __future__ import annotations

import itertools
import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psycopg
from confluent_kafka import Producer

from runners.kafka import KafkaServer
from tests.changes_kit import Database, replicating_server
from tests.io.ingress_kit import free_port
from tests.io.kill_ingress import Server
from tests.kafka_kit import make_topic

PARTITIONS = 4
KEYS = 500


class Door(ABC):
    """Where events of one job are written, and how its results tell of which event they are.

    Args:
        broker: Where the job's results go.
        folder: For what the door keeps.
        stack: Closes what the door opens.
    """

    kinds: tuple[str, ...] = ("worker", "task-manager", "broker", "none")
    """What can be killed."""

    def __init__(self, broker: KafkaServer, folder: Path, stack: ExitStack) -> None:
        self.fed: dict[str, float] = {}
        """When each event was given to the door, by the run that it makes."""
        self.enough = threading.Event()
        """Set when no more kills come: the stream ends with the events that were asked for."""
        self.stop = threading.Event()
        """Set when nothing is to be fed any more."""

    @property
    @abstractmethod
    def job(self) -> list[str]:
        """The module of the job, and the arguments that say what it reads."""

    @abstractmethod
    def feed(self, events: int, rate: float) -> None:
        """Gives all events, and notes them in `fed`."""

    @property
    def begun(self) -> bool:
        """Whether the stream begins only after the job's first results and a checkpoint."""
        return False

    def kill(self) -> None:
        """Kills the door's own server, and starts it again."""
        raise NotImplementedError(f"{type(self).__name__} has no server of its own")

    def run_of(self, message: Any) -> str:
        """The run of which a result or a failure is."""
        headers = dict(message.headers())
        return str(headers["run_id"].decode() if headers.get("run_id") else headers["id"].decode())

    def streamed(self) -> Mapping[str, float]:
        """Those of `fed` whose latency counts, in their order."""
        return self.fed

    def figures(self) -> dict[str, float]:
        """What else is worth knowing in the end, by name."""
        return {}

    def due(self, events: int, rate: float) -> Iterator[int]:
        """The numbers of the events, each when its time has come."""
        began = time.monotonic()
        for number in itertools.count():
            while (wait := began + number / rate - time.monotonic()) > 0 and not self.stop.is_set():
                self.idle(min(wait, 0.05))
            if self.stop.is_set() or (number >= events and self.enough.is_set()):
                return
            yield number

    def idle(self, seconds: float) -> None:
        """Waits for the next event."""
        time.sleep(seconds)


class KafkaDoor(Door):
    """Events in a topic of the broker that takes the results."""

    def __init__(self, broker: KafkaServer, folder: Path, stack: ExitStack) -> None:
        super().__init__(broker, folder, stack)
        self._topic = make_topic(broker.servers, PARTITIONS)
        self._producer = Producer(
            {
                "bootstrap.servers": broker.servers,
                "enable.idempotence": True,
                "linger.ms": 0,
                "message.timeout.ms": 300_000,
                "reconnect.backoff.max.ms": 500,
            }
        )

    @property
    def job(self) -> list[str]:
        return ["tests.flink.kafka_job", f"--read={self._topic}"]

    def feed(self, events: int, rate: float) -> None:
        for number in self.due(events, rate):
            given = time.time()

            def delivered(error: Any, message: Any, given: float = given) -> None:
                assert error is None, error
                self.fed[f"{message.topic()}-{message.partition()}-{message.offset()}"] = given

            self._producer.produce(
                self._topic, key=f"card{number % KEYS}", value=f'{{"number":{number}}}', on_delivery=delivered
            )
        self._producer.flush()

    def idle(self, seconds: float) -> None:
        self._producer.poll(seconds)


class ChangesDoor(Door):
    """Rows of a table: some that are there before the job; then rows are inserted, each in a transaction of its own,
    and of twenty two are updated and one is deleted."""

    kinds = (*Door.kinds, "server")
    _ROWS = 200

    def __init__(self, broker: KafkaServer, folder: Path, stack: ExitStack) -> None:
        super().__init__(broker, folder, stack)
        self._server = stack.enter_context(replicating_server())
        self._database = Database(self._server)
        # A row that is deleted is known by its key alone without it.
        self._database.sql("ALTER TABLE readings REPLICA IDENTITY FULL")
        rows = f"SELECT n, 'd' || n % 50, 0 FROM generate_series(1, {self._ROWS}) n"
        self._database.sql(f"INSERT INTO readings {rows}")
        self.fed |= {f"snapshot {number}": time.time() for number in range(1, self._ROWS + 1)}

    @property
    def job(self) -> list[str]:
        return ["tests.flink.changes_job", f"--database={self._database.url}", f"--slot={self._database.slot}"]

    @property
    def begun(self) -> bool:
        return True  # all that is written from then on is a change and no row of the beginning

    def feed(self, events: int, rate: float) -> None:
        connection: psycopg.Connection[Any] | None = None
        url = self._server.url(self._database.name)
        for number in self.due(events, rate):
            event, statement, check = _change(number)
            doubtful = False
            while not self.stop.is_set():
                try:
                    if connection is None:
                        connection = psycopg.connect(url, autocommit=True, connect_timeout=5)
                    # A commit that nobody heard of is looked for, so that it is not made twice.
                    if not doubtful or connection.execute(check).fetchone() is None:
                        connection.execute(statement)
                    break
                except psycopg.OperationalError:
                    doubtful, connection = True, None
                    time.sleep(0.2)
            self.fed[event] = time.time()
        if connection is not None:
            connection.close()

    def kill(self) -> None:
        self._server.kill()
        self._server.start()

    def run_of(self, message: Any) -> str:
        change = json.loads(message.value())["event"]
        if change is None:
            return f"unknown {message.offset()}"
        return f"{change['operation']} {(change['after'] or change['before'])['id']}"

    def streamed(self) -> Mapping[str, float]:
        return {event: at for event, at in self.fed.items() if not event.startswith("snapshot")}

    def figures(self) -> dict[str, float]:
        """The bytes of its log that the server still keeps for the slot, some time after the last result."""
        time.sleep(30.0)  # so that it is told of the end
        ((end,),) = self._database.sql("SELECT (pg_current_wal_lsn() - '0/0')::bigint")
        return {"kept_bytes": int(end) - self._database.confirmed()}


class HttpDoor(Door):
    """Events that are posted to `beam-agents ingress` in front of a folder, again until it has taken them."""

    kinds = (*Door.kinds, "server")

    def __init__(self, broker: KafkaServer, folder: Path, stack: ExitStack) -> None:
        super().__init__(broker, folder, stack)
        port, self._inbox = free_port(), folder / "inbox"
        self._url = f"http://127.0.0.1:{port}/events"
        arguments = ["--events", "tests.flink.kafka_job:Payment", "--key", "card", "--open", "--port", str(port)]
        self._server = Server([*arguments, "--store", str(self._inbox)])
        stack.callback(self._server.kill)
        self._repeated = 0

    @property
    def job(self) -> list[str]:
        return ["tests.flink.kafka_job", f"--inbox={self._inbox}"]

    def feed(self, events: int, rate: float) -> None:
        with httpx.Client(timeout=30) as client:
            for number in self.due(events, rate):
                id, given = f"payment-{number}", time.time()
                while not self._taken(client, id, {"number": number, "card": f"card{number % KEYS}"}):
                    self._repeated += 1
                    time.sleep(0.05)
                    if self.stop.is_set():
                        return
                self.fed[id] = given

    def _taken(self, client: httpx.Client, id: str, event: Any) -> bool:
        try:
            answer = client.post(self._url, json=event, headers={"Idempotency-Key": id})
        except httpx.TransportError:
            return False
        if answer.status_code not in (202, 503):
            raise RuntimeError(f"{id}: {answer.status_code}: {answer.text}")
        return answer.status_code == 202

    def kill(self) -> None:
        self._server.kill()
        self._server.start()

    def figures(self) -> dict[str, float]:
        """Requests that were made again, because nobody answered."""
        return {"requests_repeated": self._repeated}


def _change(number: int) -> tuple[str, str, str]:
    """An event, the statement that makes it, and one that finds a row when it was made."""
    turn, step = divmod(number, 23)
    base = 1_000 + turn * 20
    if step < 20:
        row = base + step
        made = f"SELECT 1 FROM readings WHERE id = {row}"
        return f"insert {row}", f"INSERT INTO readings VALUES ({row}, 'd{row % 50}', 0)", made
    if step < 22:
        row = base + (step - 20) * 10
        made = f"SELECT 1 FROM readings WHERE id = {row} AND value = 1"
        return f"update {row}", f"UPDATE readings SET value = 1 WHERE id = {row}", made
    row = base + 5
    made = f"SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM readings WHERE id = {row})"
    return f"delete {row}", f"DELETE FROM readings WHERE id = {row}", made


DOORS: dict[str, type[Door]] = {"kafka": KafkaDoor, "changes": ChangesDoor, "http": HttpDoor}
