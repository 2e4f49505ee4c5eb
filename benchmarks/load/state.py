"""What runs of many steps, and sessions without runs, take up in the ledger and in the runner's state.

    python -m benchmarks.load.state --out FOLDER [Beam's options]

is the pipeline: it follows FOLDER/bursts for ever. `ledger_bytes` needs no runner, `OnFlink` a cluster.
"""

from __future__ import annotations

import argparse
import base64
import logging
import random
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from pydantic import BaseModel, ConfigDict

from beam_agents import Agent, Budget, History, RunAgent, RunContext, tool
from beam_agents.codec import canonical_json, digest, key_text
from beam_agents.engine.end import Ended
from beam_agents.engine.task import Task
from beam_agents.engine.worker import Worker
from beam_agents.io import ReadLines
from beam_agents.ledger import ledger_from
from beam_agents.ledger.records import RunKey
from beam_agents.messages import AssistantMessage, ModelRequest, ToolMessage
from beam_agents.models.function import FunctionModel, calls, say
from benchmarks.load.job import append
from benchmarks.load.server import ROOT
from benchmarks.load.stamps import Stamps
from benchmarks.load.workload import Burst, StampResult, stamp_failure
from runners.flink.cluster import FlinkCluster

LENGTHS = (5, 50, 500)
"""Steps of a run: a request of the model and a call of a tool."""
SESSION = 1_000
"""Characters of a session's state, which do not get smaller when they are compressed as text does."""

_LOG = logging.getLogger(__name__)
_RUNS = 10
_BURST = 1_000
_MINUTES = 30
_CHECKPOINTS = 5


class Load(Burst):
    """Events of one kind."""

    steps: int
    """Of the run of each; none for a session that is only kept."""


class Event(BaseModel):
    """An event; each has a key of its own."""

    model_config = ConfigDict(frozen=True)

    id: str
    steps: int


class Note(BaseModel):
    """The state of a session."""

    text: str = ""


class Verdict(BaseModel):
    """What the agent says."""

    ok: bool


@tool(effect="idempotent")
async def look_up(ctx: RunContext[Event, Any, Any], number: int) -> str:
    """Looks a part of the event up.

    Args:
        number: Which.
    """
    return f"part {number:06} of {ctx.key} is as it should be"


def answer(request: ModelRequest) -> AssistantMessage:
    """The model: calls the tool for each step of the event, then answers."""
    done = sum(isinstance(message, ToolMessage) for message in request.messages)
    event = next(message.text for message in request.messages if message.role == "user")
    if done < Event.model_validate_json(event).steps:
        return calls(("look_up", {"number": done}))
    return say(Verdict(ok=True))


def noted(_: Note, event: Event) -> Note:
    """What a session keeps of its event."""
    return Note(text=base64.b64encode(random.Random(event.id).randbytes(SESSION * 3 // 4)).decode())


def agent() -> Agent[Event, Verdict, Note, Any]:
    """The agent."""
    return Agent(
        "state",
        model=FunctionModel(answer),
        instructions="Look all parts up, then say whether all is well.",
        tools=[look_up],
        event_type=Event,
        output_type=Verdict,
        state_type=Note,
        on_event=noted,
        history=History(max_messages=0),  # it has bounds of its own
        skip=lambda _, event: None if event.steps else Verdict(ok=True),
        budget=Budget(steps=1_000, tool_calls=1_000, wall_clock=timedelta(minutes=_MINUTES)),
    )


# ---- the ledger ----


def ledger_bytes(folder: Path, steps: int, runs: int) -> float:
    """Bytes of a SQLite ledger for each run of so many steps.

    Args:
        folder: For the ledger.
        steps: Of each run.
        runs: How many.
    """
    path = folder / f"ledger-{steps}-{runs}.db"
    worker = Worker()
    try:
        host = worker.join(agent(), "state", ledger_from(f"sqlite:///{path}"), "state")

        def start(number: int) -> Future[Any]:
            event = Event(id=f"event-{number:06}", steps=steps)
            text = canonical_json(event)
            return host.start(
                Task(RunKey("state", "state", 1, key_text(event.id), event.id), event.id, text, digest(text))
            ).done

        started = [start(number) for number in range(runs)]
        wait(started, timeout=60 * _MINUTES)
        for each in started:
            ended = each.result(0)
            if not isinstance(ended, Ended) or ended.end.kind not in ("answer", "skipped"):
                raise RuntimeError(f"a run of {steps} steps ended as {ended!r}")
    finally:
        worker.close()
    return sum(file.stat().st_size for file in folder.glob(f"{path.name}*")) / runs


# ---- the pipeline ----


def spread(load: Load) -> Iterator[tuple[str, Event]]:
    """The events of a burst."""
    for number in range(load.events):
        name = f"{load.id}-{number:06}"
        yield name, Event(id=name, steps=load.steps)


def main(argv: Sequence[str] | None = None) -> int:
    """The pipeline's command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True)
    given, options = parser.parse_known_args(argv)
    out = given.out.absolute()
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        lines = pipeline | ReadLines(f"{out / 'bursts'}/")
        loads = lines.lines | "Parse" >> beam.Map(lambda line: Load.model_validate_json(line.text)).with_output_types(
            Load
        )
        events = loads | "Spread" >> beam.FlatMap(spread).with_output_types(tuple[str, Event])
        done = events | RunAgent(agent(), event_id="id", ledger=f"sqlite:///{out / 'ledger.db'}")
        _ = done.results | "Stamp" >> beam.ParDo(StampResult(out))
        _ = done.failures | "Stamp failures" >> beam.Map(stamp_failure, str(out))
    return 0


class OnFlink:
    """The pipeline on a cluster.

    Args:
        cluster: It is up.
        out: A folder for its input, its stamps and the ledger.
    """

    def __init__(self, cluster: FlinkCluster, out: Path) -> None:
        self._cluster, self._out = cluster, out
        self._stamps = Stamps(out)
        (out / "bursts").mkdir(parents=True)
        self._job = cluster.submit([sys.executable, "-m", "benchmarks.load.state", f"--out={out}"], directory=ROOT)
        self._savepoints = 0

    def run(self, name: str, events: int, steps: int, *, seconds: float) -> None:
        """Gives it a burst, and waits until all of it came out.

        Raises:
            TimeoutError: That took longer than so many seconds.
        """
        append(self._out, Load(id=name, events=events, steps=steps))
        until = time.monotonic() + seconds
        while (came := len(self._stamps.ended(name))) < events:
            if time.monotonic() > until:
                raise TimeoutError(f"{came} of {events} events of {name!r} came out within {seconds:g} s")
            time.sleep(0.2)

    def state_bytes(self) -> int:
        """Of all keys together: the size of a savepoint, which holds each value once."""
        self._savepoints += 1
        folder = self._out / f"savepoint-{self._savepoints}"
        self._cluster.rest.savepoint(self._job, folder)
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    def checkpoints(self, since: int = 0) -> list[dict[str, Any]]:
        """The completed checkpoints that Flink remembers, the newest first.

        Args:
            since: Only with a higher id.
        """
        history = self._cluster.rest.get(f"/jobs/{self._job}/checkpoints")["history"]
        return [
            each
            for each in history
            if each["status"] == "COMPLETED" and not each["is_savepoint"] and each["id"] > since
        ]


def steps_on_flink(job: OnFlink, lengths: Sequence[int] = LENGTHS, runs: int = _RUNS) -> dict[str, float | None]:
    """Bytes that the runner keeps for a run when it has ended, by its number of steps."""
    figures: dict[str, float | None] = {}
    job.run("warm", runs, 1, seconds=300)
    before = job.state_bytes()
    for steps in lengths:
        job.run(f"steps{steps}", runs, steps, seconds=60 * _MINUTES)
        now = job.state_bytes()
        figures[f"state_bytes_per_run_of_{steps}"] = (now - before) / runs
        figures[f"state_bytes_per_step_{steps}"] = (now - before) / runs / steps
        before = now
    return figures


def sessions_on_flink(job: OnFlink, sessions: int) -> dict[str, float | None]:
    """Bytes for each idle session, and how long checkpoints take when all are there.

    Args:
        job: The pipeline.
        sessions: How many keys get a session of `SESSION` characters.
    """
    empty = job.state_bytes()
    began = time.monotonic()
    for nth, start in enumerate(range(0, sessions, _BURST)):
        job.run(f"session{nth:05}", min(_BURST, sessions - start), 0, seconds=600)
        if nth % 50 == 49:
            _LOG.info("%s sessions after %.0f s", start + _BURST, time.monotonic() - began)
    took = time.monotonic() - began
    filling = [each["end_to_end_duration"] for each in job.checkpoints()]
    newest = max((each["id"] for each in job.checkpoints()), default=0)
    while len(idle := job.checkpoints(newest)) < _CHECKPOINTS:
        time.sleep(0.5)
    return {
        "sessions": sessions,
        "sessions_per_s": sessions / took,
        "state_bytes_per_session": (job.state_bytes() - empty) / sessions,
        "checkpointed_bytes_per_session": idle[0]["state_size"] / sessions,
        "checkpoint_ms_with_sessions": median(each["end_to_end_duration"] for each in idle),
        "checkpoint_ms_while_filling": median(filling) if filling else None,
        "checkpoint_ms_while_filling_max": max(filling, default=None),
    }


if __name__ == "__main__":
    from benchmarks.load import state  # what is pickled must not be of '__main__'

    sys.exit(state.main())
