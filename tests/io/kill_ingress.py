"""Kills the HTTP door again and again while clients send events, and counts what became of each.

python -m tests.io.kill_ingress --store folder kafka --kills 20 --events 10000 --out FOLDER
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import apache_beam as beam

from beam_agents import Agent, RunAgent
from beam_agents.io import Header, Kafka, ReadIngress, ReadKafka
from beam_agents.io.ingress.cli import main as ingress
from beam_agents.models import FunctionModel, say
from runners.kafka import KafkaServer
from tests.io.ingress_kit import Order, free_port, stored
from tests.kafka_kit import make_topic

CLIENTS = 8
KEYS = 100
_LOADED = [
    "__main__",
    "uvicorn.protocols.http.auto",
    "uvicorn.loops.auto",
    "beam_agents.io.ingress.app",
    "beam_agents.io.ingress.folder_store",
    "beam_agents.io.ingress.kafka_store",
]
"""What servers are forked with, so that one is there again at once."""


class Server:
    """The process of a door, which is killed."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = list(arguments)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_LOADED)
        self.start()

    def start(self) -> None:
        """Starts it, and does not wait."""
        self._process = self._context.Process(target=ingress, args=(self._arguments,), daemon=True)
        self._process.start()

    def kill(self) -> None:
        """Ends it in the middle of whatever it does."""
        self._process.kill()
        self._process.join()


class Sending:
    """Eight clients, each of which repeats an event until it is taken."""

    def __init__(self, url: str, server: Server, events: int, kills: int) -> None:
        self._url = url
        self._server = server
        self._ids = iter(range(events))
        self._kill_at = {events * (number + 1) // (kills + 1) for number in range(kills)}
        self.accepted: set[str] = set()
        self.killed = 0
        self.repeated = 0

    async def run(self) -> None:
        """Sends all, and kills meanwhile."""
        limit = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(timeout=limit) as session, asyncio.TaskGroup() as tasks:
            for _ in range(CLIENTS):
                tasks.create_task(self._client(session))

    async def _client(self, session: aiohttp.ClientSession) -> None:
        for number in self._ids:
            id, event = f"order-{number}", {"customer": f"c{number % KEYS}", "amount": number}
            while not await self._sent(session, id, event):
                self.repeated += 1
                await asyncio.sleep(0.02)
            self.accepted.add(id)
            if len(self.accepted) in self._kill_at:
                await self._kill()

    async def _sent(self, session: aiohttp.ClientSession, id: str, event: Any) -> bool:
        try:
            async with session.post(self._url, json=event, headers={"Idempotency-Key": id}) as answer:
                await answer.read()
        except (aiohttp.ClientError, TimeoutError, ConnectionError):
            return False
        if answer.status not in (202, 503):
            raise RuntimeError(f"{id}: {answer.status}")
        return answer.status == 202

    async def _kill(self) -> None:
        await asyncio.to_thread(self._server.kill)  # the other clients are in the middle of something
        self._server.start()
        self.killed += 1
        print(f"killed {self.killed}, accepted {len(self.accepted)}", file=sys.stderr)


def trial(store: str, events: int, kills: int, out: Path) -> dict[str, Any]:
    """Figures of one store.

    Args:
        store: `folder` or `kafka`.
        events: How many are sent.
        kills: How often the server is killed meanwhile.
        out: A folder for the store, the ledger and the outcomes.
    """
    port, inbox = free_port(), out / "inbox"
    arguments = ["--events", "tests.io.ingress_kit:Order", "--key", "customer", "--open", "--port", str(port)]
    with ExitStack() as stack:
        read: beam.PTransform[Any, Any]
        if store == "folder":
            arguments += ["--store", str(inbox)]
            read = ReadIngress(inbox, value=Order)
        else:
            servers = stack.enter_context(KafkaServer()).servers
            topic = make_topic(servers, 4)
            arguments += ["--kafka", servers, "--topic", topic]
            read = ReadKafka(Kafka(servers), topic, value=Order, event_id=Header("idempotency-key"))
        server = Server(arguments)
        stack.callback(server.kill)
        sending, began = Sending(f"http://127.0.0.1:{port}/events", server, events, kills), time.monotonic()
        asyncio.run(sending.run())
        seconds = time.monotonic() - began
        counted = decide(read, out)
    kept, results = counted["events"], counted["results"]
    return {
        "store": store,
        "events": events,
        "kills": sending.killed,
        "accepted": len(sending.accepted),
        "repeated_requests": sending.repeated,
        "seconds": round(seconds, 1),
        "stored": kept.total(),
        "stored_twice_or_more": sum(number > 1 for number in kept.values()),
        "accepted_not_stored": len(sending.accepted - kept.keys()),
        "accepted_without_result": len(sending.accepted - results.keys()),
        "results_twice": sum(number > 1 for number in results.values()),
        "duplicates": counted["duplicates"].total(),
        "failures": counted["failures"].total() + counted["bad"].total(),
        **({"whole_lines": len(stored(inbox))} if store == "folder" else {}),
    }


def decide(read: beam.PTransform[Any, Any], out: Path) -> dict[str, Counter[str]]:
    """Has an agent decide what is stored: how often each id was read, and came to what."""
    model = FunctionModel(lambda request: say("fine"))
    agent: Agent[Any, Any, Any, Any] = Agent("clerk", model=model, event_type=Order, output_type=str)
    with beam.Pipeline("FnApiRunner") as pipeline:
        events, bad = pipeline | read
        done = events | RunAgent(agent, ledger=f"sqlite:///{out / 'ledger.db'}")
        outcomes = {"results": done.results, "failures": done.failures, "duplicates": done.duplicates, "bad": bad}
        for name, outcome in {"events": events, **outcomes}.items():
            ids = outcome | f"Id{name}" >> beam.Map(partial(_id, "id" if name == "events" else "run_id"))
            ids | f"Write{name}" >> beam.io.WriteToText(str(out / name), shard_name_template="")
    return {
        name: Counter((out / name).read_text().splitlines())
        for name in ("events", "results", "failures", "duplicates", "bad")
    }


def _id(field: str, pair: tuple[Any, Any]) -> str:
    return str(getattr(pair[1], field))


def main() -> int:
    """Runs trials, and returns 1 if anything was lost or done twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", nargs="+", choices=("folder", "kafka"), default=["folder", "kafka"])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    wrong = 0
    for store in chosen.store:
        out = chosen.out / store
        out.mkdir(parents=True)
        figures = trial(store, chosen.events, chosen.kills, out)
        line = json.dumps(figures)
        print(line, flush=True)
        (out / "figures.json").write_text(line + "\n", encoding="utf-8")
        zero = ("accepted_not_stored", "accepted_without_result", "results_twice", "failures")
        wrong += any(figures[name] for name in zero) or figures["accepted"] != chosen.events
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
