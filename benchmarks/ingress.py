"""Requests a second of the HTTP door, beside a bare Starlette application that reads the same bodies and keeps nothing.

    python -m benchmarks.ingress [--rounds N] [--seconds S] [--kafka] [--out FILE.json]

They are processes of their own with the same server settings and the same client, which takes turns; 64 requests are
under way at any time. The door checks each event and answers when the disk has it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runners.kafka import KafkaServer

CONNECTIONS = 64
EVENT = {"customer": "c-1", "amount": 12.5, "items": ["a book", "a pen"], "note": "x" * 200}


class Order(BaseModel):
    """What the door takes."""

    customer: str
    amount: float
    items: list[str]
    note: str


async def echo(request: Request) -> Response:
    """Answers with what it was sent."""
    return JSONResponse(json.loads(await request.body()), 202)


def serve_bare() -> None:
    """Runs the bare application on a free port, with the door's settings."""
    config = uvicorn.Config(
        Starlette(routes=[Route("/events", echo, methods=["POST"])]),
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        port=0,
    )
    listening = config.bind_socket()
    listening.listen(config.backlog)
    print(f"listening on http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listening])


@contextmanager
def serving(arguments: Sequence[str]) -> Iterator[tuple[str, int]]:
    """A server in a process of its own; its URL and the process's id."""
    with subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = re.fullmatch(r"listening on (http://\S+)\n", process.stdout.readline())
            if told is None:
                raise RuntimeError(f"{arguments!r} did not start")
            yield told[1], process.pid
        finally:
            process.terminate()


def processor_seconds(process: int) -> float:
    """What a process has used of the processors so far, which a busy machine changes little; Linux only."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def drive(url: str, seconds: float, round_: int) -> tuple[int, float]:
    """Keeps 64 requests under way: how many were answered, and in how many seconds.

    Raises:
        RuntimeError: An event was not taken.
    """
    answered, began = 0, time.monotonic()

    async def client(number: int) -> None:
        nonlocal answered
        mine = 0
        while time.monotonic() < began + seconds:
            headers = {"Idempotency-Key": f"{round_}-{number}-{mine}"}
            mine += 1
            async with session.post(f"{url}/events", json=EVENT, headers=headers) as answer:
                await answer.read()
                if answer.status != 202:
                    raise RuntimeError(f"{url}: {answer.status}")
            answered += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS)) as session:
        await asyncio.gather(*(client(number) for number in range(CONNECTIONS)))
    return answered, time.monotonic() - began


def measure(rounds: int, seconds: float, kafka: bool) -> dict[str, Any]:
    """The figures: requests a second and milliseconds of a processor by server, and the median of rounds' ratios."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        door = ["beam_agents.io.ingress.cli", "--events", "benchmarks.ingress:Order", "--key", "customer", "--open"]
        servers = {
            "bare": stack.enter_context(serving(["benchmarks.ingress", "--serve-bare"])),
            "door": stack.enter_context(serving([*door, "--store", folder, "--port", "0"])),
        }
        if kafka:
            brokers = stack.enter_context(KafkaServer()).servers
            admin = AdminClient({"bootstrap.servers": brokers, "log_level": 2})  # it outlives the broker
            admin.create_topics([NewTopic("orders", 4)])["orders"].result()
            servers["door on Kafka"] = stack.enter_context(
                serving([*door, "--kafka", brokers, "--topic", "orders", "--port", "0"])
            )
        rates: dict[str, list[float]] = {name: [] for name in servers}
        costs: dict[str, list[float]] = {name: [] for name in servers}
        for round_ in range(rounds + 1):
            for name, (url, process) in sorted(servers.items(), reverse=bool(round_ % 2)):
                before = processor_seconds(process)
                answered, took = asyncio.run(drive(url, seconds, round_))
                if round_:  # the first one warms up
                    rates[name].append(answered / took)
                    costs[name].append((processor_seconds(process) - before) * 1000 / answered)
    ratios = {
        name: statistics.median(mine / bare for mine, bare in zip(rates[name], rates["bare"], strict=True))
        for name in servers
    }
    return {
        "requests_per_second": {name: round(statistics.median(rates[name]), 1) for name in servers},
        "processor_ms_per_request": {name: round(statistics.median(costs[name]), 3) for name in servers},
        "of_bare": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "rounds": {name: [round(rate, 1) for rate in rates[name]] for name in servers},
        "load_average": os.getloadavg(),
        "processors": os.cpu_count(),
    }


def main() -> None:
    """Measures, and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--kafka", action="store_true", help="also with Kafka, which is started for it")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve-bare", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve_bare:
        serve_bare()
        return
    text = json.dumps(measure(chosen.rounds, chosen.seconds, chosen.kafka), indent=2)
    print(text)
    if chosen.out:
        chosen.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
