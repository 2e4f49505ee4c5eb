"""Kills parts of a job that reads what a door takes and writes to Kafka, and counts raw records in the end.

    python -m tests.flink.kill_stream --door kafka --kind worker task-manager broker --kills 20 --out kills
    python -m tests.flink.kill_stream --door changes http --kind worker server --parallelism 1 --out kills
    python -m tests.flink.kill_stream --door kafka --kind none --events 2000 --rate 200 --out latency

One job for each door and kind; `doors` says what comes in, and which server of its own a door has. Events are given to
the door at a steady rate, also while something is dead, as many as were asked for and on until the last kill is over;
the kills, all SIGKILLs, are spread over that time. In the end a plain `read_committed` consumer reads the topics of
results and of failures from their beginnings: an event without a record is lost, one with more than one came twice.
Latency is from the moment an event is given to the door until a consumer has its result, without the first third.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, TopicPartition
from pydantic import BaseModel

from runners.flink.cluster import FlinkCluster
from runners.flink.rest import TERMINAL
from runners.kafka import KafkaServer
from tests.flink.doors import DOORS, PARTITIONS, Door
from tests.flink.kill_cluster import cluster_in
from tests.flink.load_server import ROOT
from tests.kafka_kit import make_topic

SECONDS = 240.0
"""Deadline for the first result, and for the next one after a kill."""
DRAIN_SECONDS = 300.0


class Trial(BaseModel):
    """One job, and what came of it."""

    door: str
    kind: str
    events: int
    kills: int
    lost: int
    twice: int
    unknown: int
    """Results of what nobody fed."""
    failures: dict[str, int]
    seconds: float
    to_result: list[float]
    """For each kill, seconds until the result of an event after it."""
    latency_ms_p50: float
    latency_ms_p99: float
    of_the_door: dict[str, float]

    def wrong(self) -> bool:
        """Whether a promise was broken."""
        return bool(self.lost or self.twice or self.unknown or self.failures)


class Job:
    """A job under way, what is fed to it, and results as they come."""

    def __init__(self, cluster: FlinkCluster, broker: KafkaServer, door: Door, *, seed: int) -> None:
        self._cluster = cluster
        self._broker = broker
        self._door = door
        self._random = random.Random(seed)
        self._id = ""
        self._results = make_topic(broker.servers, PARTITIONS)
        self._failures = make_topic(broker.servers, PARTITIONS)
        self._arrived: dict[str, float] = {}
        self._ended = threading.Event()
        self._follows = threading.Thread(target=self._follow, daemon=True)

    def start(self, options: argparse.Namespace, ledger: str) -> None:
        """Submits the job, feeds it, and waits for its first result."""
        command = [sys.executable, "-m", *self._door.job, f"--ledger={ledger}", f"--shards={options.shards}"]
        command += [f"--servers={self._broker.servers}", f"--results={self._results}", f"--failures={self._failures}"]
        self._id = self._cluster.submit(command, parallelism=options.parallelism, directory=ROOT)
        self._follows.start()
        self._feeds = threading.Thread(target=self._door.feed, args=(options.events, options.rate), daemon=True)
        if self._door.begun:
            self.wait(lambda: len(self._arrived) > 0, "the first result", SECONDS)
            first = self._cluster.newest_checkpoint(self._id)
            self.wait(lambda: self._cluster.newest_checkpoint(self._id) not in (None, first), "a checkpoint", SECONDS)
        self._feeds.start()
        self.wait(lambda: len(self._arrived) > 0, "the first result", SECONDS)

    def wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        """Waits.

        Raises:
            TimeoutError: It did not come, or the job has ended.
        """
        until = time.monotonic() + seconds
        while not condition():
            state = self._cluster.rest.job(self._id).state
            if state in TERMINAL or time.monotonic() > until:
                raise TimeoutError(f"{what} did not come; the job is {state}\n{self._cluster.report()}")
            time.sleep(0.1)

    def kill(self, kind: str) -> float:
        """Kills, and waits for a result of what was fed after it; the seconds until then."""
        self.wait(lambda: self._cluster.rest.job(self._id).runs, "a job with all its tasks running", SECONDS)
        killed = time.time()
        if kind == "worker":
            os.kill(self._random.choice(self._cluster.workers()), signal.SIGKILL)
        elif kind == "task-manager":
            self._random.choice([manager for manager in self._cluster.task_managers if manager.alive()]).kill()
            self._cluster.start_task_manager()
        elif kind == "broker":
            self._broker.kill()
            self._broker.restart()
        else:
            self._door.kill()
        arrived, fed = self._arrived, self._door.fed
        self.wait(lambda: any(at > killed and run in arrived for run, at in list(fed.items())), "a new result", SECONDS)
        return time.time() - killed

    def finish(self) -> None:
        """Waits until all is decided, or nothing comes any more: what is missing then is counted."""
        self._door.enough.set()
        try:
            self.wait(lambda: not self._feeds.is_alive(), "the end of the stream", 3_600)
            fed = self._door.fed.keys()
            self.wait(
                lambda: fed <= self._arrived.keys() or fed <= self._arrived.keys() | self._count(self._failures).keys(),
                "the last result",
                DRAIN_SECONDS,
            )
        except TimeoutError as error:
            print(error, file=sys.stderr)

    def end(self) -> None:
        """Ends what goes on by itself."""
        self._door.stop.set()
        self._ended.set()
        for thread in (self._follows, self._feeds):
            thread.join()

    def counted(self) -> dict[str, Any]:
        """What raw records say."""
        results, failures, fed = self._count(self._results), self._count(self._failures), self._door.fed
        streamed = sorted(self._door.streamed().items(), key=lambda pair: pair[1])
        warm = streamed[len(streamed) // 3 :]  # what a job does for the first time is not what it costs
        late = [1000 * (self._arrived[run] - at) for run, at in warm if run in self._arrived]
        cuts = statistics.quantiles(late, n=100, method="inclusive")
        return {
            "events": len(fed),
            "lost": len(fed.keys() - results.keys() - failures.keys()),
            "twice": sum(count > 1 for count in (results + failures).values()),
            "unknown": len(results.keys() - fed.keys()),
            "failures": dict(failures),
            "latency_ms_p50": cuts[49],
            "latency_ms_p99": cuts[98],
        }

    def _count(self, topic: str) -> Counter[str]:
        """Raw records of a topic by the run that they are of, as a plain consumer sees them."""
        consumer = _consumer(self._broker.servers, topic)
        seen: Counter[str] = Counter()
        ends: set[int] = set()
        while len(ends) < PARTITIONS:
            for message in consumer.consume(500, 1.0):
                if message.error() is None:
                    seen[self._door.run_of(message)] += 1
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    ends.add(message.partition())
        consumer.close()
        return seen

    def _follow(self) -> None:
        consumer = _consumer(self._broker.servers, self._results)
        while not self._ended.is_set():
            for message in consumer.consume(500, 0.02):
                if message.error() is None:
                    self._arrived.setdefault(self._door.run_of(message), time.time())
        consumer.close()


def _consumer(servers: str, topic: str) -> Any:
    consumer: Consumer[bytes, bytes] = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "counts",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 20,
        }
    )
    consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    return consumer


def carry_out(name: str, kind: str, options: argparse.Namespace) -> Trial:
    """One job of one kind."""
    folder = options.out.absolute() / f"{name}-{kind}"
    folder.mkdir(parents=True)
    moments = random.Random(options.seed)
    kills, slots = 0 if kind == "none" else options.kills, options.parallelism
    with ExitStack() as stack:
        broker = stack.enter_context(KafkaServer())
        door = DOORS[name](broker, folder, stack)
        cluster = stack.enter_context(cluster_in(folder / "cluster", task_managers=slots, parallelism=slots))
        job = Job(cluster, broker, door, seed=options.seed)
        job.start(options, f"sqlite:///{folder}/runs.db")
        began = time.monotonic()
        pause = options.events / options.rate / max(1, kills)
        to_result: list[float] = []
        for nth in range(kills):
            due = began + (nth + moments.random()) * pause
            time.sleep(max(0.0, due - time.monotonic()))
            to_result.append(job.kill(kind))
            print(f"  {nth + 1:>3} {kind}: the next result after {to_result[-1]:.1f} s", flush=True)
        job.finish()
        seconds, of_the_door = time.monotonic() - began, door.figures()
        job.end()
        return Trial(
            door=name,
            kind=kind,
            kills=len(to_result),
            seconds=seconds,
            to_result=to_result,
            of_the_door=of_the_door,
            **job.counted(),
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 if nothing was lost and nothing came twice."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = dict.fromkeys(kind for door in DOORS.values() for kind in door.kinds)
    made.add_argument("--door", choices=DOORS, nargs="+", required=True, help="by which events come")
    made.add_argument("--kind", choices=every, nargs="+", required=True, help="of what is killed")
    made.add_argument("--kills", metavar="N", type=int, default=20, help="of a job (%(default)s)")
    made.add_argument("--events", metavar="N", type=int, default=10_000, help="of a job (%(default)s)")
    made.add_argument("--rate", metavar="N", type=float, default=16, help="events a second (%(default)s)")
    made.add_argument(
        "--parallelism", metavar="N", type=int, default=2, help="of a job, with a TaskManager each (%(default)s)"
    )
    made.add_argument("--shards", metavar="N", type=int, default=4, help="of Kafka's ends of the job (%(default)s)")
    made.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="for logs and figures; must be new")
    made.add_argument("--seed", metavar="N", type=int, default=1, help="of the moments and the victims (%(default)s)")
    options = made.parse_args(argv)
    for name in options.door:
        if wrong := set(options.kind) - set(DOORS[name].kinds):
            made.error(f"--door={name} has none of --kind={', '.join(wrong)}; it has {', '.join(DOORS[name].kinds)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what runs is taken down on the way out
    trials = []
    for name in options.door:
        for kind in options.kind:
            trials.append(carry_out(name, kind, options))
            (options.out / f"{name}-{kind}.json").write_text(trials[-1].model_dump_json(indent=2))
            print(trials[-1].model_dump_json(exclude={"to_result"}), flush=True)
    return int(any(trial.wrong() for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
