"""What runs that wait, steps, and idle sessions take up.

    python -m benchmarks.load.memory --out FILE.json [--runs 10000] [--sessions 50000] [--no-flink]

Runs wait in a process with the engine and no runner, for a chat server on this machine: in a pipeline, all that a
worker holds of a run that waits is what it holds here. State is measured on Flink, see `state`.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from beam_agents import Agent, Budget, Model, RunContext, tool
from beam_agents.codec import canonical_json, digest, key_text
from beam_agents.engine.task import Task
from beam_agents.engine.worker import Worker
from beam_agents.ledger import ledger_from
from beam_agents.ledger.records import RunKey
from beam_agents.messages import ModelRequest, ModelResponse, ModelSettings, ToolMessage
from beam_agents.models.function import calls, offline_response
from beam_agents.models.openai_chat import OpenAIModel
from benchmarks.load.runners import flink
from benchmarks.load.server import ROOT, ChatServer, running_server
from benchmarks.load.state import LENGTHS, OnFlink, ledger_bytes, sessions_on_flink, steps_on_flink

RUNS = 10_000
TRANSCRIPT = 20_000
"""Characters that were said in a run when it waits, about."""

_AT_ONCE = 500
_STEPS, _RUNS = 2_000, 10
"""Steps, about, for one length of run, and at least so many runs."""
_MINUTES = 30


class Event(BaseModel):
    """Something to read up."""

    id: str


class Verdict(BaseModel):
    """What the agent says."""

    ok: bool


@tool(effect="pure")
async def read_up(ctx: RunContext[Event, Any, Any]) -> str:
    """Reads what is known."""
    line = f"{ctx.key} is mentioned here. "
    return line * (TRANSCRIPT // len(line))


class ReadsFirst(Model):
    """Has the tool called first, and then asks a server.

    Args:
        server: Its base URL.
    """

    def __init__(self, server: str) -> None:
        self._behind = OpenAIModel("mock", base_url=server)

    @property
    def name(self) -> str:
        return self._behind.name

    async def connect(self) -> None:
        await self._behind.connect()

    async def close(self) -> None:
        await self._behind.close()

    async def request(self, request: ModelRequest) -> ModelResponse:
        """Asks the server when the tool was called."""
        if isinstance(request.messages[-1], ToolMessage):
            return await self._behind.request(request)
        return offline_response(calls(("read_up", {})), request, self)


def reader(server: str) -> Agent[Event, Verdict, Any, Any]:
    """The agent."""
    return Agent(
        "memory",
        model=ReadsFirst(server),
        instructions="Read up what is known of the event, then say whether all is well.",
        tools=[read_up],
        event_type=Event,
        output_type=Verdict,
        settings=ModelSettings(timeout=60.0 * _MINUTES),
        budget=Budget(steps=4, wall_clock=timedelta(minutes=_MINUTES)),
    )


# ---- the process in which runs wait ----


def rss(pid: int | str = "self") -> float:
    """The resident memory of a process, in MiB."""
    for line in Path("/proc", str(pid), "status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(f"process {pid!r} has no memory: it has ended")


def hold(server: ChatServer, folder: Path, runs: int, *, top: int = 0) -> dict[str, float]:
    """Has runs wait for the server, in this process; memory before and then.

    Args:
        server: Answers later than this takes.
        folder: For the ledger.
        runs: How many.
        top: How many lines of code are printed that allocated the most; that makes it slow.
    """
    worker = Worker()
    host = worker.join(reader(server.base_url), "memory", ledger_from(f"sqlite:///{folder / 'ledger.db'}"), "memory")

    def start(name: str) -> None:
        event = canonical_json({"id": name})
        run = RunKey("memory", "memory", 1, key_text(name), name)
        host.start(Task(run, name, event, digest(event)))

    start("first")
    _until(server, 1)
    gc.collect()
    idle = rss()
    if top:
        tracemalloc.start(1)
    for number in range(runs):
        start(f"event-{number:06}")
        if number % _AT_ONCE == 0:
            _until(server, number - _AT_ONCE)
    _until(server, runs + 1)
    waiting = rss()
    if top:
        traced = tracemalloc.take_snapshot()
        print(f"traced {tracemalloc.get_traced_memory()[0] / 2**20:.0f} MiB", file=sys.stderr)
        for line in traced.statistics("lineno")[:top]:
            print(line, f"{line.size / runs:.0f} B a run", file=sys.stderr)
    gc.collect()
    return {"idle": idle, "waiting": waiting, "collected": rss()}


def _until(server: ChatServer, in_flight: int) -> None:
    until = time.monotonic() + 300
    while (now := server.stats().in_flight) < in_flight:
        if time.monotonic() > until:
            raise TimeoutError(f"{now} of {in_flight} requests arrived")
        time.sleep(0.05)


def waiting_runs(out: Path, runs: int = RUNS) -> dict[str, float | None]:
    """What runs that wait take up in a worker.

    Args:
        out: Folder for the ledger.
        runs: How many wait.
    """
    with running_server() as server:
        server.reset(60.0 * _MINUTES)
        command = [sys.executable, "-m", "benchmarks.load.memory", "--hold", server.base_url, "--runs", str(runs)]
        done = subprocess.run(
            [*command, "--out", str(out)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=60 * _MINUTES,
        )
    memory = json.loads(done.stdout)
    more = memory["waiting"] - memory["idle"]
    return {
        f"mib_for_{runs}_waiting_runs": more,
        "kib_for_a_waiting_run": 1_024 * more / runs,
        "mib_of_the_idle_process": memory["idle"],
    }


def ledger_steps(out: Path) -> dict[str, float | None]:
    """Bytes of the ledger for each step of runs of some lengths, without those of a run that has none.

    Args:
        out: Folder for ledgers.
    """
    figures: dict[str, float | None] = {}
    for steps in LENGTHS:
        runs = max(_RUNS, _STEPS // steps)
        none = ledger_bytes(out, 0, runs)
        figures[f"ledger_bytes_per_step_{steps}"] = (ledger_bytes(out, steps, runs) - none) / steps
    return figures


def measure(out: Path, *, runs: int = RUNS, sessions: int = 50_000, on_flink: bool = True) -> dict[str, float | None]:
    """What is held of runs that wait, of steps, and of sessions.

    Args:
        out: Folder for what is left over.
        runs: How many wait.
        sessions: How many are idle; a million takes long.
        on_flink: Whether what needs a cluster is measured, too.
    """
    out = out.absolute()
    figures = waiting_runs(out, runs) | ledger_steps(out)
    if on_flink:
        with flink(out, slots=1) as runner:
            job = OnFlink(runner.cluster, out / "state")
            try:
                figures |= steps_on_flink(job) | sessions_on_flink(job, sessions)
            except Exception as error:
                error.add_note(runner.cluster.report())
                raise
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="FILE.json", type=Path, required=True, help="for the figures")
    parser.add_argument("--runs", type=int, default=RUNS, help="that wait (%(default)s)")
    parser.add_argument("--sessions", type=int, default=50_000, help="that are idle (%(default)s)")
    parser.add_argument("--no-flink", action="store_true", help="without what needs a cluster")
    parser.add_argument("--hold", metavar="URL", help="be only the process in which runs wait; --out is its folder")
    parser.add_argument("--top", type=int, default=0, help="with --hold: lines that allocated the most")
    given = parser.parse_args(argv)
    if given.hold:
        print(json.dumps(hold(ChatServer(given.hold), given.out, given.runs, top=given.top)), flush=True)
        os._exit(0)  # the runs that wait are of no use any more
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("benchmarks.load").setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as scratch:
        measured = measure(Path(scratch), runs=given.runs, sessions=given.sessions, on_flink=not given.no_flink)
    written = json.dumps(measured, indent=1)
    given.out.write_text(written + "\n")
    print(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
