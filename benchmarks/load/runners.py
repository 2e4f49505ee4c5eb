"""The runners: jobs that stay up, to which bursts are given."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from benchmarks.load.job import METRICS, append
from benchmarks.load.server import ROOT
from benchmarks.load.stamps import Stamps
from benchmarks.load.workload import AGENT, Burst, Side
from runners.flink.cluster import FlinkCluster
from runners.flink.rest import TERMINAL, FlinkRest
from runners.prism import install_prism, prism_options

_POLL = 0.1
_WATCH_SECONDS = 2.0
_START_SECONDS = 240.0
_ROUND_SECONDS = 300.0
_METRICS_SECONDS = 40.0


class JobEnded(RuntimeError):
    """A job is over that should go on; the message has the end of its log."""


class CheckpointsSeen:
    """Follows a Flink job's checkpoints: the JobManager remembers the last ten only.

    Args:
        rest: Of the JobManager.
        flink_id: Of the job.
    """

    def __init__(self, rest: FlinkRest, flink_id: str) -> None:
        self._rest = rest
        self._flink_id = flink_id
        self._seen: dict[int, dict[str, Any]] = {}
        self._after = 0
        self.restarts = 0
        """How often the job was restored."""

    def look(self) -> None:
        """Takes note; at least each tenth checkpoint."""
        told = self._rest.get(f"/jobs/{self._flink_id}/checkpoints")
        self._seen |= {one["id"]: one for one in told["history"]}
        self.restarts = told["counts"]["restored"]

    def begin(self) -> None:
        """Leaves out those until now."""
        self.look()
        self._after = max(self._seen, default=0)

    def with_status(self, status: str) -> list[dict[str, Any]]:
        """Those with a status, `COMPLETED` or `FAILED`, as Flink tells them."""
        self.look()
        return [one for one in self._seen.values() if one["id"] > self._after and one["status"] == status]


@dataclass
class Job:
    """A side's pipeline that waits for bursts."""

    folder: Path
    watch: Callable[[], None]
    """Raises `JobEnded` when it has ended."""
    counters: Callable[[], dict[str, int]]
    """The metrics of the agent, as far as the runner tells now."""
    checkpoints: CheckpointsSeen | None = None
    """On Flink."""
    _bursts: int = 0
    _stamps: Stamps = field(init=False)

    def __post_init__(self) -> None:
        self._stamps = Stamps(self.folder)

    def run(self, events: int, *, seconds: float = _ROUND_SECONDS) -> float:
        """Gives the job a burst and waits until all of it came out.

        Args:
            events: In the burst.
            seconds: The most that is waited.

        Returns:
            Seconds from the first event before the side to the last behind it.

        Raises:
            JobEnded, EventFailed, TimeoutError: It went wrong.
        """
        self._bursts += 1
        burst = f"b{self._bursts:03}"
        append(self.folder, Burst(id=burst, events=events))
        watched = time.monotonic()
        until = watched + seconds
        while len(ended := self._stamps.ended(burst)) < events:
            if time.monotonic() > watched + _WATCH_SECONDS:
                watched = time.monotonic()
                self.watch()
            if time.monotonic() > until:
                raise TimeoutError(f"{len(ended)} of {events} events within {seconds:g} s in {self.folder.name!r}")
            time.sleep(_POLL)
        return max(ended.values()) - self._stamps.begun(burst)

    def settled_counter(self, name: str) -> int | None:
        """A counter of the agent, when it does not change any more; `None` if the runner does not tell."""
        until = time.monotonic() + _METRICS_SECONDS
        last, since = self.counters().get(name), time.monotonic()
        while time.monotonic() < until:
            time.sleep(1.0)
            now = self.counters().get(name)
            if now != last:
                last, since = now, time.monotonic()
            elif last is not None and time.monotonic() - since > _METRICS_SECONDS / 3:
                break
        return last


class Runner(Protocol):
    """Where jobs run."""

    name: str

    def start(self, side: Side, *, server: str | None = None) -> AbstractContextManager[Job]:
        """A job that is warm: it has handled some events."""
        ...


class LocalRunner:
    """Prism, or Beam's in-process runner: a process for each job, in which the Python code runs.

    Args:
        name: As in the results.
        options: Of the pipelines.
        folder: For jobs.
    """

    def __init__(self, name: str, options: Sequence[str], folder: Path) -> None:
        self.name = name
        self._options = options
        self._folder = folder

    @contextmanager
    def start(self, side: Side, *, server: str | None = None) -> Iterator[Job]:
        """A job that is warm."""
        out = _new_folder(self._folder, side)
        log = out / "log.txt"
        with log.open("wb") as file:
            # A session of its own, with the runner's binary in it.
            process = subprocess.Popen(
                _command(side, out, server, self._options),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

        def watch() -> None:
            if process.poll() is not None:
                raise JobEnded(f"the job of {side!r} ended:\n{log.read_text(errors='replace')[-4_000:]}")

        def counters() -> dict[str, int]:
            path = out / METRICS
            return json.loads(path.read_text()) if path.exists() else {}

        try:
            yield _warm(Job(out, watch, counters))
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class FlinkOnThisMachine:
    """A Flink cluster of its own.

    Args:
        cluster: It is up.
        folder: For jobs.
        options: More of the pipelines.
    """

    name = "flink"

    def __init__(self, cluster: FlinkCluster, folder: Path, options: Sequence[str]) -> None:
        self.cluster = cluster
        self._folder = folder
        self._options = options

    @contextmanager
    def start(self, side: Side, *, server: str | None = None) -> Iterator[Job]:
        """A job that is warm."""
        out = _new_folder(self._folder, side)
        rest = self.cluster.rest
        command = _command(side, out, server, self._options)
        flink_id = self.cluster.submit(command, directory=ROOT)

        checkpoints = CheckpointsSeen(rest, flink_id)

        def watch() -> None:
            state = rest.job(flink_id).state
            if state in TERMINAL:
                raise JobEnded(f"the job of {side!r} is {state}")
            checkpoints.look()

        try:
            job = _warm(Job(out, watch, lambda: self._counters(flink_id), checkpoints))
            checkpoints.begin()
            yield job
        except Exception as error:
            error.add_note(self.cluster.report())
            raise
        finally:
            rest.cancel(flink_id)

    def _counters(self, flink_id: str) -> dict[str, int]:
        rest, found = self.cluster.rest, dict[str, int]()
        for task in rest.job(flink_id).tasks:
            path = f"/jobs/{flink_id}/vertices/{task.id}/subtasks/metrics"
            for metric in rest.get(path):
                _, ours, name = metric["id"].rpartition(f".beam_agents_{AGENT}_")
                if ours:
                    told = rest.get(f"{path}?get={quote(metric['id'], safe='')}")
                    found[name] = found.get(name, 0) + sum(int(float(each["sum"])) for each in told)
        return found


@contextmanager
def flink(
    folder: Path, options: Sequence[str] = (), *, parallelism: int = 1, slots: int = 2
) -> Iterator[FlinkOnThisMachine]:
    """A cluster with a TaskManager for each instance of a job, RocksDB, and checkpoints every two seconds.

    Args:
        folder: For its files and those of the jobs.
        options: More of the pipelines.
        parallelism: Of the jobs.
        slots: How many jobs can run at one time.
    """
    cluster = FlinkCluster(
        Path(tempfile.mkdtemp(prefix="cluster-", dir=folder)),
        task_managers=parallelism,
        slots=slots,
        parallelism=parallelism,
        rest_port=0,
    )
    try:
        cluster.up()
        yield FlinkOnThisMachine(cluster, folder, options)
    finally:
        cluster.down()


@contextmanager
def prism(folder: Path, options: Sequence[str] = ()) -> Iterator[LocalRunner]:
    """Prism, as one process for each job."""
    yield LocalRunner("prism", [*prism_options(install_prism()), *options], folder)


@contextmanager
def direct(folder: Path, options: Sequence[str] = ()) -> Iterator[LocalRunner]:
    """Beam's in-process runner (FnApiRunner), with bounded input."""
    yield LocalRunner("direct", ["--runner=FnApiRunner", *options], folder)


RUNNERS: dict[str, Callable[[Path, Sequence[str]], AbstractContextManager[Runner]]] = {
    "flink": flink,
    "prism": prism,
    "direct": direct,
}
"""By name: a context in which the runner is there."""


def _new_folder(folder: Path, side: Side) -> Path:
    out = Path(tempfile.mkdtemp(prefix=f"{side}-", dir=folder))
    (out / "bursts").mkdir()
    return out


def _command(side: Side, out: Path, server: str | None, options: Sequence[str]) -> list[str]:
    server_option = [f"--server={server}"] if server else []
    return [sys.executable, "-m", "benchmarks.load.job", f"--side={side}", f"--out={out}", *server_option, *options]


def _warm(job: Job) -> Job:
    for events in (1, 300):
        job.run(events, seconds=_START_SECONDS)
    return job
