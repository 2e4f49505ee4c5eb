"""A process that writes to Kafka exactly once and is killed in the middle: `servers topic point first last`."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from confluent_kafka import Producer

from beam_agents.codec import digest
from beam_agents.io import Kafka, kafka_write_shard
from beam_agents.io.kafka_write_record import Outgoing
from beam_agents.io.kafka_write_shard import ExactlyOnce, Shards


def settings(servers: str, topic: str, shards: int = 2, **changes: Any) -> ExactlyOnce:
    values = {"markers": f"{topic}.written", "name": "job", "remember": 3600.0, "max_bytes": 1_000_000}
    return ExactlyOnce(Kafka(servers), topic, shards=shards, **(values | changes))


def record(number: int, content: str = "") -> Outgoing:
    return Outgoing(digest(str(number)), "result", f"run{number}", b"key", f"{number} {content}".encode())


class Dying(Producer):
    """Kills the process at a point of its first transaction."""

    point = ""

    def begin_transaction(self) -> None:
        self._die_at("before the transaction")
        super().begin_transaction()

    def commit_transaction(self, timeout: float = -1) -> None:
        self.flush()
        self._die_at("before the commit")
        super().commit_transaction(timeout)
        self._die_at("after the commit")

    def _die_at(self, point: str) -> None:
        if point == self.point:
            os.kill(os.getpid(), signal.SIGKILL)


def main(servers: str, topic: str, point: str, first: str, last: str) -> None:
    Dying.point = point
    kafka_write_shard.Producer = Dying  # type: ignore[misc]
    Shards(settings(servers, topic)).write({0: [record(number) for number in range(int(first), int(last))]})


if __name__ == "__main__":
    main(*sys.argv[1:])
