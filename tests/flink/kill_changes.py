"""Kills parts of a job that reads PostgreSQL's changes and writes to Kafka, and counts raw records in the end.

    python -m tests.flink.kill_changes --kind worker server --kills 20 --events 10000 --rate 16 --out kills
    python -m tests.flink.kill_changes --kind none --events 2000 --rate 200 --out latency

One job (`changes_job`) for each kind. It begins with some rows that are there already. Then rows are inserted at a
steady rate, each in a transaction of its own, and of twenty two are updated and one is deleted, also while something is
dead, as many events as were asked for and on until the last kill is over; the kills, all SIGKILLs, are spread over that
time. In the end a plain `read_committed` consumer reads the topics of results and of failures from
their beginnings. Each event must be there once: one that is not there is lost, one with more than one record came
twice. Latency is from the moment a transaction has committed until a consumer has its result, without the first third.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import Consumer, KafkaError, TopicPartition
from pydantic import BaseModel

from runners.flink.cluster import FlinkCluster
from runners.flink.rest import TERMINAL
from runners.kafka import KafkaServer
from runners.postgres import PostgresServer
from tests.changes_kit import Database, replicating_server
from tests.flink.kill_cluster import cluster_in
from tests.flink.load_server import ROOT
from tests.kafka_kit import make_topic

PARTITIONS = 4
ROWS = 200
"""That are there before the job."""
SECONDS = 240.0
"""Deadline for the first result, and for the next one after a kill."""
DRAIN_SECONDS = 300.0


class Trial(BaseModel):
    """One job, and what came of it."""

    kind: str
    events: int
    kills: int
    lost: int
    twice: int
    failures: dict[str, int]
    kept_bytes: int
    """Of its log that the server still keeps for the slot in the end."""
    seconds: float
    to_result: list[float]
    """For each kill, seconds until the result of an event after it."""
    latency_ms_p50: float
    latency_ms_p99: float

    def wrong(self) -> bool:
        """Whether a promise was broken."""
        return bool(self.lost or self.twice or self.failures)


class Stream:
    """Rows that are written at a rate, and results as they come. An event is (operation, row)."""

    def __init__(self, server: PostgresServer, servers: str) -> None:
        self.database = Database(server)
        self.servers = servers
        self.results = make_topic(servers, PARTITIONS)
        self.failures = make_topic(servers, PARTITIONS)
        self.fed: dict[tuple[str, int], float] = {}
        """When each event was committed."""
        self.arrived: dict[tuple[str, int], float] = {}
        self.enough = threading.Event()
        """Set when no more kills come: the stream ends with the events that were asked for."""
        self.all_fed = threading.Event()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        # A row that is deleted is known by its key alone without it.
        self.database.sql("ALTER TABLE readings REPLICA IDENTITY FULL")
        self.database.sql(f"INSERT INTO readings SELECT n, 'd' || n % 50, 0 FROM generate_series(1, {ROWS}) n")
        self.fed |= {("snapshot", number): time.time() for number in range(1, ROWS + 1)}

    def feed(self, events: int, rate: float) -> None:
        """Begins to write."""
        self._start(self._feed, events, rate)

    def follow(self) -> None:
        """Begins to see results."""
        self._start(self._follow)

    def stop(self) -> None:
        """Ends what goes on by itself."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def count(self, topic: str) -> Counter[Any]:
        """Raw records of a topic by the event that they are of, as a plain consumer sees them."""
        consumer = _consumer(self.servers)
        seen: Counter[Any] = Counter()
        consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
        ends: set[int] = set()
        while len(ends) < PARTITIONS:
            for message in consumer.consume(500, 1.0):
                if message.error() is None:
                    seen[_event_of(message)] += 1
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    ends.add(message.partition())
        consumer.close()
        return seen

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        self._threads[-1].start()

    def _feed(self, events: int, rate: float) -> None:
        began = time.monotonic()
        connection: psycopg.Connection[Any] | None = None
        for number in itertools.count():
            if (number >= events and self.enough.is_set()) or self._stop.is_set():
                break
            while (due := began + number / rate - time.monotonic()) > 0 and not self._stop.is_set():
                time.sleep(min(due, 0.05))
            event, statement, check = _nth(number)
            doubtful = False
            while not self._stop.is_set():
                try:
                    if connection is None:
                        connection = psycopg.connect(
                            self.database.server.url(self.database.name), autocommit=True, connect_timeout=5
                        )
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
        self.all_fed.set()

    def _follow(self) -> None:
        consumer = _consumer(self.servers)
        consumer.assign([TopicPartition(self.results, number, 0) for number in range(PARTITIONS)])
        while not self._stop.is_set():
            for message in consumer.consume(500, 0.02):
                if message.error() is None:
                    self.arrived.setdefault(_event_of(message), time.time())
        consumer.close()


def _nth(number: int) -> tuple[tuple[str, int], str, str]:
    """An event, the statement that makes it, and one that finds a row when it was made."""
    turn, step = divmod(number, 23)
    base = 1_000 + turn * 20
    if step < 20:
        row = base + step
        made = f"SELECT 1 FROM readings WHERE id = {row}"
        return ("insert", row), f"INSERT INTO readings VALUES ({row}, 'd{row % 50}', 0)", made
    if step < 22:
        row = base + (step - 20) * 10
        made = f"SELECT 1 FROM readings WHERE id = {row} AND value = 1"
        return ("update", row), f"UPDATE readings SET value = 1 WHERE id = {row}", made
    row = base + 5
    made = f"SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM readings WHERE id = {row})"
    return ("delete", row), f"DELETE FROM readings WHERE id = {row}", made


def _consumer(servers: str) -> Any:
    return Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "counts",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 20,
        }
    )


def _event_of(message: Any) -> tuple[str, int]:
    change = json.loads(message.value())["event"]
    if change is None:
        return "unknown", message.offset()
    return change["operation"], (change["after"] or change["before"])["id"]


class ChangesTrial:
    """A job under way."""

    def __init__(
        self, cluster: FlinkCluster, server: PostgresServer, broker: KafkaServer, folder: Path, *, seed: int = 1
    ) -> None:
        self._cluster = cluster
        self._server = server
        self._ledger = f"sqlite:///{folder}/runs.db"
        self._random = random.Random(seed)
        self._job = ""
        self.stream = Stream(server, broker.servers)

    def start(self, events: int, rate: float, parallelism: int) -> None:
        """Submits the job, feeds it, and waits for its first result."""
        stream = self.stream
        command = [
            sys.executable,
            "-m",
            "tests.flink.changes_job",
            f"--database={stream.database.url}",
            f"--slot={stream.database.slot}",
            f"--servers={stream.servers}",
            f"--results={stream.results}",
            f"--failures={stream.failures}",
            f"--ledger={self._ledger}",
        ]
        self._job = self._cluster.submit(command, parallelism=parallelism, directory=ROOT)
        stream.follow()
        # All that is written from a checkpoint after the first result on is a change and no row of the beginning.
        self.wait(lambda: len(stream.arrived) > 0, "the first result", SECONDS)
        first = self._cluster.newest_checkpoint(self._job)
        self.wait(lambda: self._cluster.newest_checkpoint(self._job) not in (None, first), "a checkpoint", SECONDS)
        stream.feed(events, rate)

    def wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        """Waits.

        Raises:
            TimeoutError: It did not come, or the job has ended.
        """
        until = time.monotonic() + seconds
        while not condition():
            state = self._cluster.rest.job(self._job).state
            if state in TERMINAL or time.monotonic() > until:
                raise TimeoutError(f"{what} did not come; the job is {state}\n{self._cluster.report()}")
            time.sleep(0.1)

    def kill(self, kind: str) -> float:
        """Kills, and waits for a result of what was written after it; the seconds until then."""
        self.wait(lambda: self._cluster.rest.job(self._job).runs, "a job with all its tasks running", SECONDS)
        killed = time.time()
        if kind == "worker":
            for worker in self._cluster.workers():  # one of them has the slot
                os.kill(worker, signal.SIGKILL)
        elif kind == "task-manager":
            self._random.choice([manager for manager in self._cluster.task_managers if manager.alive()]).kill()
            self._cluster.start_task_manager()
        else:
            self._server.kill()
            self._server.start()
        arrived, fed = self.stream.arrived, self.stream.fed
        self.wait(lambda: any(at > killed and run in arrived for run, at in list(fed.items())), "a new result", SECONDS)
        return time.time() - killed

    def finish(self, kind: str, began: float, to_result: list[float]) -> Trial:
        """Waits until all is decided, and counts."""
        stream = self.stream
        stream.enough.set()
        self.wait(stream.all_fed.is_set, "all events in their table", 3_600)
        events = len(stream.fed)

        def all_decided() -> bool:
            if len(stream.arrived) >= events:
                return True
            return len(stream.arrived) + len(stream.count(stream.failures)) >= events

        try:
            self.wait(all_decided, "the last result", DRAIN_SECONDS)
        except TimeoutError as error:
            print(error, file=sys.stderr)  # what is missing is counted
        time.sleep(30.0)  # so that the server is told of the end
        stream.stop()
        results, failures = stream.count(stream.results), stream.count(stream.failures)
        written = [(event, at) for event, at in stream.fed.items() if event[0] != "snapshot"]
        warm = written[len(written) // 3][1]  # what a job does for the first time is not what it costs
        fed = [(event, at) for event, at in written if at >= warm and event in stream.arrived]
        late = [1000 * (stream.arrived[run] - at) for run, at in fed]
        cuts = statistics.quantiles(late, n=100, method="inclusive")
        ((end,),) = stream.database.sql("SELECT (pg_current_wal_lsn() - '0/0')::bigint")
        return Trial(
            kind=kind,
            events=events,
            kills=len(to_result),
            lost=len(stream.fed.keys() - results.keys() - failures.keys()),
            twice=sum(count > 1 for count in (results + failures).values()) + len(results.keys() - stream.fed.keys()),
            failures={str(event): count for event, count in failures.items()},
            kept_bytes=end - stream.database.confirmed(),
            seconds=time.monotonic() - began,
            to_result=to_result,
            latency_ms_p50=cuts[49],
            latency_ms_p99=cuts[98],
        )


def carry_out(kind: str, options: argparse.Namespace) -> Trial:
    """One job of one kind."""
    folder = options.out.absolute() / kind
    folder.mkdir(parents=True)
    moments = random.Random(options.seed)
    kills = 0 if kind == "none" else options.kills
    with (
        replicating_server() as server,
        KafkaServer() as broker,
        cluster_in(folder / "cluster", task_managers=options.parallelism, parallelism=options.parallelism) as cluster,
    ):
        trial = ChangesTrial(cluster, server, broker, folder, seed=options.seed)
        trial.start(options.events, options.rate, options.parallelism)
        began = time.monotonic()
        pause = options.events / options.rate / max(1, kills)
        to_result: list[float] = []
        for nth in range(kills):
            due = began + (nth + moments.random()) * pause
            time.sleep(max(0.0, due - time.monotonic()))
            to_result.append(trial.kill(kind))
            print(f"  {nth + 1:>3} {kind}: the next result after {to_result[-1]:.1f} s", flush=True)
        return trial.finish(kind, began, to_result)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 if nothing was lost and nothing came twice."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--kind", choices=("worker", "task-manager", "server", "none"), nargs="+", required=True)
    made.add_argument("--kills", metavar="N", type=int, default=20, help="of a job (%(default)s)")
    made.add_argument("--events", metavar="N", type=int, default=10_000, help="of a job (%(default)s)")
    made.add_argument("--rate", metavar="N", type=float, default=16, help="events a second (%(default)s)")
    made.add_argument(
        "--parallelism", metavar="N", type=int, default=2, help="of a job, with a TaskManager each (%(default)s)"
    )
    made.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="for logs and figures; must be new")
    made.add_argument("--seed", metavar="N", type=int, default=1, help="of the moments and the victims (%(default)s)")
    options = made.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers are taken down on the way out
    trials = []
    for kind in options.kind:
        trials.append(carry_out(kind, options))
        (options.out / f"{kind}.json").write_text(trials[-1].model_dump_json(indent=2))
        print(trials[-1].model_dump_json(exclude={"to_result"}), flush=True)
    return int(any(trial.wrong() for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
