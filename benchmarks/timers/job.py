"""The pipeline that is measured: events that wait, and a sink that notes when each outcome came.

    python -m benchmarks.timers.job --events FOLDER --out FOLDER [--budget SECONDS] [--ttl SECONDS] [Beam's options]

reads events (`agents.Event` as JSON) from files that may grow, for ever.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import PCollection
from pydantic import BaseModel, ConfigDict

from beam_agents import RunAgent
from beam_agents.io import ReadLines
from benchmarks.timers.agents import LIMIT, Event, Waited, deadline_agent, wait

LEDGER = "ledger.db"
_SEEN = "seen.jsonl"


class Seen(BaseModel):
    """An outcome as the sink saw it."""

    model_config = ConfigDict(frozen=True)

    id: str
    """Of the event, and so of its run."""
    kind: str
    key: str
    outcome: str
    """`result`, or the reason of a failure."""
    waited: Waited | None
    at: float
    """Seconds since 1970."""
    pid: int
    """Of the worker that has emitted it."""


def note(element: tuple[str, Any], folder: str) -> None:
    """Appends a line for an outcome to a file in a folder."""
    key, value = element
    waited = getattr(value, "output", None)
    seen = Seen(
        id=value.run_id or "",
        kind="" if value.event is None else value.event.kind,
        key=key,
        outcome="result" if waited is not None else value.reason.value,
        waited=waited,
        at=time.time(),
        pid=os.getpid(),
    )
    file = os.open(os.path.join(folder, _SEEN), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(file, seen.model_dump_json().encode() + b"\n")  # in one call, so that lines do not mix
    finally:
        os.close(file)


def read_seen(folder: Path) -> list[Seen]:
    """What the sink has seen so far. After a restore an outcome may stand there again."""
    file = folder / _SEEN
    if not file.exists():
        return []
    lines = file.read_bytes().splitlines(keepends=True)
    return [Seen.model_validate_json(line) for line in lines if line.endswith(b"\n")]


def build(
    events: PCollection[Event], out: Path, *, budget: float = LIMIT, session_ttl: timedelta = timedelta(days=90)
) -> None:
    """Puts the agents behind events, and the sink behind them.

    Args:
        events: What to wait for.
        out: Folder for the sink's file and the ledger.
        budget: Seconds that a run for a `deadline` event has.
        session_ttl: Event time after which a key's session starts anew.
    """
    keyed = events | "Key" >> beam.Map(lambda event: (event.key, event)).with_output_types(tuple[str, Event])
    for agent, mine in (
        (wait, lambda pair: pair[1].kind != "deadline"),
        (deadline_agent(budget), lambda pair: pair[1].kind == "deadline"),
    ):
        own = keyed | f"For {agent.name}" >> beam.Filter(mine)
        done = own | RunAgent(agent, event_id="id", ledger=f"sqlite:///{out / LEDGER}", session_ttl=session_ttl)
        for name, outcomes in (("results", done.results), ("failures", done.failures)):
            # Not flattened: on Prism that would be one more stage before the sink.
            _ = outcomes | f"Note {name} of {agent.name}" >> beam.Map(note, str(out))


def build_stream(pipeline: beam.Pipeline, folder: Path, out: Path, **more: Any) -> None:
    """The same behind the files of a folder."""
    events = pipeline | ReadLines(f"{folder}/")
    parsed = events.lines | "Parse" >> beam.Map(lambda line: Event.model_validate_json(line.text)).with_output_types(
        Event
    )
    build(parsed, out, **more)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; submits the job and waits for its end."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--events", metavar="FOLDER", type=Path, required=True, help="where the files of events appear")
    made.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="for outcomes and the ledger")
    made.add_argument("--budget", metavar="SECONDS", type=float, default=LIMIT, help="of deadline runs (%(default)s)")
    made.add_argument("--ttl", metavar="SECONDS", type=float, default=90 * 86_400.0, help="of sessions (%(default)s)")
    given, options = made.parse_known_args(argv)
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        ttl = timedelta(seconds=given.ttl)
        build_stream(pipeline, given.events.absolute(), given.out.absolute(), budget=given.budget, session_ttl=ttl)
    return 0


if __name__ == "__main__":
    from benchmarks.timers import job  # what is pickled must not be of '__main__'

    sys.exit(job.main())
