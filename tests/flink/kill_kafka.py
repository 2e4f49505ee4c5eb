"""Kills parts of a job that reads from Kafka and writes to Kafka, and counts raw records in the end.

    python -m tests.flink.kill_kafka --kind worker task-manager broker --kills 20 --events 10000 --out kills
    python -m tests.flink.kill_kafka --kind none --events 2000 --rate 200 --out latency

One job (`kafka_job`) for each kind. Events are produced at a steady rate, also while something is dead, as many as were
asked for and on until the last kill is over; the kills, all SIGKILLs, are spread over that time. In the end a plain
`read_committed` consumer reads the topics of results and of failures from their beginnings: an event without a record
is lost, one with more than one came twice. Latency is from the moment an event is given to its producer until a
consumer has its result, without the first third of the events.
"""

from __future__ import annotations

import argparse
import itertools
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

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from pydantic import BaseModel

from runners.flink.cluster import FlinkCluster
from runners.flink.rest import TERMINAL
from runners.kafka import KafkaServer
from tests.flink.kill_cluster import cluster_in
from tests.flink.load_server import ROOT
from tests.kafka_kit import make_topic

PARTITIONS = 4
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
    seconds: float
    to_result: list[float]
    """For each kill, seconds until the next result."""
    latency_ms_p50: float
    latency_ms_p99: float

    def wrong(self) -> bool:
        """Whether a promise was broken."""
        return bool(self.lost or self.twice or self.failures)


class Stream:
    """The topics of a job: events that are fed at a rate, and results as they come."""

    def __init__(self, servers: str) -> None:
        self.servers = servers
        self.read = make_topic(servers, PARTITIONS)
        self.results = make_topic(servers, PARTITIONS)
        self.failures = make_topic(servers, PARTITIONS)
        self.fed: dict[str, float] = {}
        """When each event was given to its producer, by its coordinates."""
        self.arrived: dict[str, float] = {}
        self.enough = threading.Event()
        """Set when no more kills come: the stream ends with the events that were asked for."""
        self.all_fed = threading.Event()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def feed(self, events: int, rate: float) -> None:
        """Begins to produce."""
        self._start(self._feed, events, rate)
        self._start(self._follow)

    def stop(self) -> None:
        """Ends what goes on by itself."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def count(self, topic: str) -> Counter[str]:
        """Raw records of a topic by the run that they are of, as a plain consumer sees them."""
        consumer = _consumer(self.servers)
        seen: Counter[str] = Counter()
        consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
        ends: set[int] = set()
        while len(ends) < PARTITIONS:
            for message in consumer.consume(500, 1.0):
                if message.error() is None:
                    seen[_run_of(message)] += 1
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    ends.add(message.partition())
        consumer.close()
        return seen

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        self._threads[-1].start()

    def _feed(self, events: int, rate: float) -> None:
        producer = Producer(
            {
                "bootstrap.servers": self.servers,
                "enable.idempotence": True,
                "linger.ms": 0,
                "message.timeout.ms": 300_000,
                "reconnect.backoff.max.ms": 500,
            }
        )
        began = time.monotonic()
        for number in itertools.count():
            if number >= events and self.enough.is_set():
                break
            while (due := began + number / rate - time.monotonic()) > 0 and not self._stop.is_set():
                producer.poll(min(due, 0.05))
            given = time.time()

            def delivered(error: Any, message: Any, given: float = given) -> None:
                assert error is None, error
                self.fed[f"{message.topic()}-{message.partition()}-{message.offset()}"] = given

            producer.produce(
                self.read, key=f"card{number % 500}", value=f'{{"number":{number}}}', on_delivery=delivered
            )
        producer.flush()
        self.all_fed.set()

    def _follow(self) -> None:
        consumer = _consumer(self.servers)
        consumer.assign([TopicPartition(self.results, number, 0) for number in range(PARTITIONS)])
        while not self._stop.is_set():
            for message in consumer.consume(500, 0.02):
                if message.error() is None:
                    self.arrived.setdefault(_run_of(message), time.time())
        consumer.close()


def _consumer(servers: str) -> Consumer:
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


def _run_of(message: Any) -> str:
    headers = dict(message.headers())
    return str(headers["run_id"].decode() if headers.get("run_id") else headers["id"].decode())


class KafkaTrial:
    """A job under way."""

    def __init__(self, cluster: FlinkCluster, broker: KafkaServer, folder: Path, *, seed: int = 1) -> None:
        self._cluster = cluster
        self._broker = broker
        self._ledger = f"sqlite:///{folder}/runs.db"
        self._random = random.Random(seed)
        self._job = ""
        self.stream = Stream(broker.servers)

    def start(self, events: int, rate: float, parallelism: int, shards: int) -> None:
        """Submits the job, feeds it, and waits for its first result."""
        stream = self.stream
        command = [
            sys.executable,
            "-m",
            "tests.flink.kafka_job",
            f"--servers={stream.servers}",
            f"--ledger={self._ledger}",
        ]
        command += [
            f"--shards={shards}",
            f"--read={stream.read}",
            f"--results={stream.results}",
            f"--failures={stream.failures}",
        ]
        self._job = self._cluster.submit(command, parallelism=parallelism, directory=ROOT)
        stream.feed(events, rate)
        self.wait(lambda: len(stream.arrived) > 0, "the first result", SECONDS)

    def wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        """Waits.

        Raises:
            TimeoutError: It did not come.
            RuntimeError: The job has ended.
        """
        until = time.monotonic() + seconds
        while not condition():
            state = self._cluster.rest.job(self._job).state
            if state in TERMINAL or time.monotonic() > until:
                raise TimeoutError(f"{what} did not come; the job is {state}\n{self._cluster.report()}")
            time.sleep(0.1)

    def kill(self, kind: str) -> float:
        """Kills, and waits for a result that came after it; the seconds until then."""
        self.wait(lambda: self._cluster.rest.job(self._job).runs, "a job with all its tasks running", SECONDS)
        killed = time.time()
        if kind == "worker":
            os.kill(self._random.choice(self._cluster.workers()), signal.SIGKILL)
        elif kind == "task-manager":
            self._random.choice([manager for manager in self._cluster.task_managers if manager.alive()]).kill()
            self._cluster.start_task_manager()
        else:
            self._broker.kill()
            self._broker.restart()
        # A result of an event that was fed after the kill: what follows it is due to a job that works again.
        arrived, fed = self.stream.arrived, self.stream.fed
        self.wait(lambda: any(at > killed and run in arrived for run, at in list(fed.items())), "a new result", SECONDS)
        return time.time() - killed

    def finish(self, kind: str, began: float, to_result: list[float]) -> Trial:
        """Waits until all is decided, and counts."""
        stream = self.stream
        stream.enough.set()
        self.wait(stream.all_fed.is_set, "all events in their topic", 3_600)
        events = len(stream.fed)

        def all_decided() -> bool:
            if len(stream.arrived) >= events:
                return True
            return len(stream.arrived) + len(stream.count(stream.failures)) >= events

        try:
            self.wait(all_decided, "the last result", DRAIN_SECONDS)
        except TimeoutError as error:
            print(error, file=sys.stderr)  # what is missing is counted
        stream.stop()
        results, failures = stream.count(stream.results), stream.count(stream.failures)
        warm = sorted(stream.fed.values())[events // 3]  # what a job does for the first time is not what it costs
        fed = [(run, at) for run, at in stream.fed.items() if at >= warm and run in stream.arrived]
        late = [1000 * (stream.arrived[run] - at) for run, at in fed]
        cuts = statistics.quantiles(late, n=100, method="inclusive")
        return Trial(
            kind=kind,
            events=len(stream.fed),
            kills=len(to_result),
            lost=len(stream.fed.keys() - results.keys() - failures.keys()),
            twice=sum(count > 1 for count in (results + failures).values()),
            failures=dict(failures),
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
    slots = options.parallelism
    cluster_of = cluster_in(folder / "cluster", task_managers=slots, parallelism=slots)
    with KafkaServer() as broker, cluster_of as cluster:
        trial = KafkaTrial(cluster, broker, folder, seed=options.seed)
        trial.start(options.events, options.rate, options.parallelism, options.shards)
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
    made.add_argument("--kind", choices=("worker", "task-manager", "broker", "none"), nargs="+", required=True)
    made.add_argument("--kills", metavar="N", type=int, default=20, help="of a job (%(default)s)")
    made.add_argument("--events", metavar="N", type=int, default=10_000, help="of a job (%(default)s)")
    made.add_argument("--rate", metavar="N", type=float, default=16, help="events a second (%(default)s)")
    made.add_argument(
        "--parallelism", metavar="N", type=int, default=2, help="of a job, with a TaskManager each (%(default)s)"
    )
    made.add_argument("--shards", metavar="N", type=int, default=4, help="of the source and of the sinks (%(default)s)")
    made.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="for logs and figures; must be new")
    made.add_argument("--seed", metavar="N", type=int, default=1, help="of the moments and the victims (%(default)s)")
    options = made.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the cluster is taken down on the way out
    trials = []
    for kind in options.kind:
        trials.append(carry_out(kind, options))
        (options.out / f"{kind}.json").write_text(trials[-1].model_dump_json(indent=2))
        print(trials[-1].model_dump_json(exclude={"to_result"}), flush=True)
    return int(any(trial.wrong() for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
