"""How far off the timers were: from what the sink saw and what the ledger recorded."""

from __future__ import annotations

import sqlite3
import statistics
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from benchmarks.timers.agents import LIMIT, Event
from benchmarks.timers.job import LEDGER, Seen, read_seen


class Figure(BaseModel):
    """How some errors are spread, in milliseconds; above zero is too late."""

    count: int
    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Figure:
        """The figure of errors in seconds; there must be some."""
        cuts = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else [*seconds] * 99
        return cls(count=len(seconds), p50=round(1_000 * cuts[49], 1), p99=round(1_000 * cuts[98], 1))


class Figures(BaseModel):
    """What was measured on a runner."""

    runner: str
    sleep: Figure
    """A clock around `ctx.sleep`, less what was asked for."""
    step: Figure
    """A clock around a call of a tool that hangs, less the tool's timeout."""
    deadline: Figure
    """From a run's open to its end by its budget of time, less the budget; by the ledger's record."""
    deadline_seen: Figure
    """From a run's open until the sink has its failure, less the budget."""
    emission: Figure
    """From the recorded end of a run, of any kind, until the sink has its outcome."""
    idle_cores: dict[str, float] = {}
    """Processor time for each second without events, by process."""


class Times(NamedTuple):
    """Of a run's record, in seconds since 1970."""

    opened: float
    closed: float | None


def read_times(folder: Path) -> dict[str, Times]:
    """When each run was opened and closed, by its id."""
    with closing(sqlite3.connect(f"file:{folder / LEDGER}?mode=ro", uri=True, timeout=10)) as ledger:
        rows = ledger.execute("SELECT run_id, opened_at, closed_at FROM runs").fetchall()
    return {run: Times(opened / 1e6, closed and closed / 1e6) for run, opened, closed in rows}


def measure(runner: str, events: Iterable[Event], folder: Path, idle_cores: dict[str, float] | None = None) -> Figures:
    """The figures of a job.

    Args:
        runner: Its name.
        events: What it was given; all must have an outcome.
        folder: Of the sink's file and the ledger.
        idle_cores: As in `Figures`.

    Raises:
        ValueError: An event has the wrong outcome.
    """
    times = read_times(folder)
    first: dict[str, Seen] = {}
    for seen in read_seen(folder):
        first.setdefault(seen.id, seen)
    errors: dict[str, list[float]] = {"sleep": [], "step": [], "deadline": [], "deadline_seen": [], "emission": []}
    for event in events:
        seen, (opened, closed) = first[event.id], times[event.id]
        expected = "deadline" if event.kind == "deadline" else "result"
        if seen.outcome != expected or closed is None:
            raise ValueError(f"event {event.id!r} ended as {seen.outcome!r} instead of {expected!r}")
        if event.kind == "deadline":
            errors["deadline"].append(closed - opened - LIMIT)
            errors["deadline_seen"].append(seen.at - opened - LIMIT)
        elif seen.waited is not None:
            errors[event.kind].append(seen.waited.seconds - (event.seconds if event.kind == "sleep" else LIMIT))
        errors["emission"].append(seen.at - closed)
    return Figures(
        runner=runner,
        idle_cores=idle_cores or {},
        **{name: Figure.of(seconds) for name, seconds in errors.items()},
    )


_COLUMNS = {
    "sleep": "sleep",
    "step": "step",
    "deadline": "deadline",
    "deadline_seen": "deadline seen",
    "emission": "end to sink",
}


def table(measured: Iterable[Figures]) -> str:
    """The figures as text, a line for each runner: p50 / p99 in milliseconds."""
    lines = [f"{'ms, p50 / p99':<14} {'runs':>5}" + "".join(f" {name:>17}" for name in _COLUMNS.values())]
    for figures in measured:
        cells = [getattr(figures, name) for name in _COLUMNS]
        line = f"{figures.runner:<14} {figures.emission.count:>5}"
        lines.append(line + "".join(f" {f'{cell.p50:.0f} / {cell.p99:.0f}':>17}" for cell in cells))
        if figures.idle_cores:
            cores = ", ".join(f"{name} {used:.2f}" for name, used in figures.idle_cores.items())
            lines.append(f"{'':<14} cores when idle: {cores}")
    return "\n".join(lines)
