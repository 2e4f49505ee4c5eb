"""What a durable step costs, on the disk as it is: this engine, bare SQLite, and the rivals that are installed.

    python -m benchmarks.load.steps --out FOLDER

A step is a tool call of a workflow: pure, asynchronous, in the process, with a result of 200 characters. Nobody goes on
before it is on the disk. The rivals run in their own environments (`python -m benchmarks.crash.rivals install`).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import BaseModel

from beam_agents import Budget, RunContext, tool, workflow
from beam_agents.codec import digest, key_text
from beam_agents.engine.end import Ended
from beam_agents.engine.host import Host
from beam_agents.engine.task import Task
from beam_agents.engine.worker import Worker
from beam_agents.ledger import SqliteLedger
from beam_agents.ledger.records import RunKey
from benchmarks.crash.rivals.install import folder, python_of
from benchmarks.load.parts import LOG, Figures, in_turn
from benchmarks.load.rivals.step_run import RESULT, WARM_STEPS, StepRun, measured

STEPS = 500
"""Of a run alone."""
RUNS = 100
"""That run together."""
STEPS_TOGETHER = 50
"""Of each of them."""
REPEATS = 5

_ROOT = Path(__file__).resolve().parents[2]
_ENVIRONMENT = "agents"
_RIVALS = {"langgraph": "steps_langgraph", "dbos": "steps_dbos"}
_QUIET = {"LANGSMITH_TRACING": "false", "PYTHONWARNINGS": "ignore"}
_RIVAL_SECONDS = 300
_RUN_SECONDS = 300
_SCOPE = "steps"


class Wanted(BaseModel):
    """An event."""

    id: str
    steps: int


@tool(effect="pure")
async def look_up(number: int) -> str:
    """The step.

    Args:
        number: Of the step.
    """
    return RESULT


@workflow(name="steps", budget=Budget(tool_calls=1_000_000, wall_clock=timedelta(hours=1)), tools=[look_up])
async def look_all_up(ctx: RunContext[Wanted, Any, Any], event: Wanted) -> int:
    """So many steps, one after the other; the characters of their results."""
    characters = 0
    for number in range(event.steps):
        result = await ctx.call(look_up, number=number)
        characters += len(result)
    return characters


def measure(out: Path, *, repeats: int = REPEATS, steps: int = STEPS, runs: int = RUNS) -> Figures:
    """Durable steps, all sides in turn; the figures of rivals that are not installed are `None`.

    Args:
        out: An existing folder, on the disk to be measured.
        repeats: Of each side.
        steps: Of a run alone.
        runs: That run together.

    Returns:
        `..._steps_per_s` and `..._bytes_per_step` are medians, `..._over_...` medians of the ratios of steps per second
        in the same round.
    """
    made = {"bare_sqlite": steps, "one_run": steps, "hundred_runs": runs * STEPS_TOGETHER}
    with tempfile.TemporaryDirectory(dir=out, prefix="steps-") as scratch:
        files = (Path(scratch).absolute() / f"{number}.db" for number in range(sys.maxsize))
        sides: dict[str, Callable[[Path], StepRun]] = {
            "bare_sqlite": lambda file: bare_sqlite(file, steps),
            "one_run": lambda file: ours(file, 1, steps),
            "hundred_runs": lambda file: ours(file, runs, STEPS_TOGETHER),
        }
        for name in _installed():
            made[name] = steps
            sides[name] = partial(rival, name, steps=steps)
        stored: dict[str, list[float]] = {name: [] for name in sides}

        def seconds_of(name: str) -> float:
            ran = sides[name](next(files))
            stored[name].append(ran.stored_bytes / made[name])
            return ran.seconds

        turns = [partial(seconds_of, name) for name in sides]
        seconds = dict(zip(sides, in_turn(repeats, turns), strict=True))
    rates = {name: [made[name] / time for time in times] for name, times in seconds.items()}
    return _figures(rates, stored)


def ours(file: Path, runs: int, steps: int) -> StepRun:
    """Runs of this engine together, each of a key of its own, on a ledger of their own."""
    worker = Worker()
    try:
        host = worker.join(look_all_up, "steps", SqliteLedger(file), _SCOPE)
        _run(host, [Wanted(id="warm", steps=WARM_STEPS)])
        return measured(file, lambda: _run(host, [Wanted(id=f"run-{n}", steps=steps) for n in range(runs)]))
    finally:
        worker.close()


def _run(host: Host, events: Sequence[Wanted]) -> None:
    """Takes events to their end, together."""
    handles = []
    for event in events:
        text = host.agent.event_json(event)
        run = RunKey(_SCOPE, host.agent.name, host.agent.revision, key_text(event.id), event.id)
        handles.append(host.start(Task(run, event.id, text, digest(text))))
    for handle, event in zip(handles, events, strict=True):
        ended = handle.done.result(_RUN_SECONDS)
        if not isinstance(ended, Ended) or ended.end.output != event.steps * len(RESULT):
            raise RuntimeError(f"the run of {event!r} ended as {ended!r}")
        host.forget(handle.run)


def bare_sqlite(file: Path, steps: int) -> StepRun:
    """The least that an intent and an outcome take, each committed by itself."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE steps (run TEXT, path INTEGER, arguments TEXT, value TEXT)")
        connection.execute("CREATE UNIQUE INDEX named ON steps (run, path)")

        def run(name: str, wanted: int) -> None:
            for number in range(wanted):
                arguments = json.dumps({"number": number})
                connection.execute("INSERT INTO steps VALUES (?, ?, ?, NULL)", (name, number, arguments))
                connection.execute("UPDATE steps SET value = ? WHERE run = ? AND path = ?", (RESULT, name, number))

        run("warm", WARM_STEPS)
        return measured(file, lambda: run("measured", steps))


def rival(name: str, file: Path, steps: int) -> StepRun:
    """One run of a rival, in a process in its environment.

    Raises:
        RuntimeError: It failed; the message has what it printed.
    """
    program = f"benchmarks.load.rivals.{_RIVALS[name]}"
    done = subprocess.run(
        [python_of(folder(), _ENVIRONMENT), "-m", program, f"--file={file}", f"--steps={steps}"],
        cwd=_ROOT,
        env=os.environ | _QUIET,
        capture_output=True,
        text=True,
        timeout=_RIVAL_SECONDS,
    )
    if done.returncode:
        raise RuntimeError(f"{name!r} ended with {done.returncode}:\n{done.stderr[-4_000:]}")
    return StepRun(**json.loads(done.stdout.splitlines()[-1]))


def _installed() -> list[str]:
    """The rivals that can be measured."""
    python = python_of(folder(), _ENVIRONMENT)
    if python.exists():
        return list(_RIVALS)
    LOG.warning(
        "no figures of %s: %s is missing; python -m benchmarks.crash.rivals install %s makes it",
        " and ".join(_RIVALS),
        python,
        folder(),
    )
    return []


def _figures(rates: dict[str, list[float]], stored: dict[str, list[float]]) -> Figures:
    """The figures of steps per second and bytes per step, by side."""
    compared = [(side, "bare_sqlite") for side in ("one_run", "hundred_runs")] + [("one_run", name) for name in _RIVALS]
    figures: Figures = {}
    for side, other in compared:
        ratios = [one / two for one, two in zip(rates[side], rates.get(other, ()), strict=False)]
        figures[f"{side}_over_{other}"] = median(ratios) if ratios else None
        figures[f"{side}_over_{other}_all"] = ratios
    for side in ("bare_sqlite", "one_run", "hundred_runs", *_RIVALS):
        figures[f"{side}_steps_per_s"] = median(rates[side]) if side in rates else None
        figures[f"{side}_bytes_per_step"] = median(stored[side]) if side in stored else None
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="on the disk to be measured")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of each side (%(default)s)")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    given.out.mkdir(parents=True, exist_ok=True)
    for name, value in measure(given.out, repeats=given.repeats).items():
        if not isinstance(value, list):
            print(f"{name:36} {'-' if value is None else format(value, ',.2f'):>12}")


if __name__ == "__main__":
    main()
