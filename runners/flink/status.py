"""What is to be seen of a Flink cluster and its jobs: for people at night, and as JSON for monitors."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runners.flink.rest import TERMINAL

_ENDED_SHOWN = 3
_LONGEST_CAUSE = 300
_PYTHON = "Traceback (most recent call last):"


@dataclass(frozen=True)
class PartStatus:
    """A process of the cluster."""

    name: str
    pid: int
    alive: bool


@dataclass(frozen=True)
class CheckpointStatus:
    """The checkpoints of a job."""

    completed: int
    failed: int
    """Those declined while the job starts count too."""
    last_age: float | None
    """Seconds since the last one was completed; `None` if there is none."""
    last_bytes: int | None
    """Of its whole state, also what it shares with earlier ones."""
    last_path: str | None


@dataclass(frozen=True)
class JobStatus:
    """A job, in whatever state."""

    id: str
    name: str
    state: str
    uptime: float
    """Seconds since its start, or from there to its end."""
    restarts: int
    checkpoints: CheckpointStatus
    error: str | None
    """The cause of the newest exception, in one line."""
    error_age: float | None
    """Seconds since then."""


@dataclass(frozen=True)
class ClusterStatus:
    """A cluster and its jobs, newest first."""

    folder: str
    web: str
    parts: list[PartStatus]
    slots: int
    slots_free: int
    jobs: list[JobStatus]


def job_status(
    job: Mapping[str, Any], *, restarts: int, checkpoints: Mapping[str, Any], exceptions: Mapping[str, Any]
) -> JobStatus:
    """What Flink's REST answers about a job come to.

    Args:
        job: From `/jobs/overview`.
        restarts: The metric `numRestarts`.
        checkpoints: From `/jobs/ID/checkpoints`.
        exceptions: From `/jobs/ID/exceptions`.
    """
    now = time.time()
    last = checkpoints.get("latest", {}).get("completed")
    counts = checkpoints.get("counts", {})
    history = exceptions.get("exceptionHistory", {}).get("entries", [])
    newest = max(history, key=lambda entry: int(entry["timestamp"]), default=None)
    return JobStatus(
        id=job["jid"],
        name=job["name"],
        state=job["state"],
        uptime=job["duration"] / 1000,
        restarts=restarts,
        checkpoints=CheckpointStatus(
            completed=counts.get("completed", 0),
            failed=counts.get("failed", 0),
            last_age=None if last is None else max(0.0, now - last["latest_ack_timestamp"] / 1000),
            last_bytes=None if last is None else last["state_size"],
            last_path=None if last is None else last.get("external_path"),
        ),
        error=None if newest is None else root_cause(newest["stacktrace"]),
        error_age=None if newest is None else max(0.0, now - newest["timestamp"] / 1000),
    )


def root_cause(stacktrace: str) -> str:
    """The last cause in a Java stack trace in one line; if Python raised it, what Python said."""
    cause = stacktrace.split("\nCaused by: ")[-1]
    _, _, python = cause.partition(_PYTHON)
    if not python:
        return _one_line(cause.splitlines()[0] if cause else "")
    said = [line for line in python.splitlines() if line and not line[0].isspace() and line != _PYTHON]
    raised = [line for line in said if re.match(r"[\w.]+(:|$)", line)]
    return _one_line((raised or said or [cause])[-1])


def lines(status: ClusterStatus) -> Iterator[str]:
    """The status for people."""
    yield f"Flink in {status.folder}: {status.web}, {status.slots_free} of {status.slots} slots free"
    for part in status.parts:
        yield f"  {part.name:<16} {part.pid:>8}  {'alive' if part.alive else 'DEAD'}"
    if not status.jobs:
        yield "no jobs"
    ended = [job for job in status.jobs if job.state in TERMINAL]
    for job in status.jobs:
        if job in ended[_ENDED_SHOWN:]:
            continue
        time_word = "after" if job.state in TERMINAL else "for"
        yield f"job {job.id} {job.name!r}: {job.state} {time_word} {_duration(job.uptime)}, restarts {job.restarts}"
        last = job.checkpoints
        if last.last_age is None or last.last_bytes is None:
            newest = "none yet"
        else:
            newest = f"the last {_duration(last.last_age)} ago, {_size(last.last_bytes)}"
        yield f"  checkpoints      {last.completed} completed, {last.failed} failed or declined; {newest}"
        if job.error is not None and job.error_age is not None:
            yield f"  newest error     {_duration(job.error_age)} ago: {job.error}"


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_CAUSE else text[: _LONGEST_CAUSE - 3] + "..."


def _duration(seconds: float) -> str:
    whole = round(seconds)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1_000 or unit == "GB":
            break
        count /= 1_000
    return f"{count:.0f} {unit}"
