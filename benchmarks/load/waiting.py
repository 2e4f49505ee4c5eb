"""What waiting costs a processor: runs that wait for a model, and a job without events.

    python -m benchmarks.load.waiting --out FILE.json [--runs 1000] [--windows 3]

On Flink. Measured is the processor time (user and system) of the Python worker and the TaskManager over windows of
half a minute, in percent of one core: of the bare pipeline without events, of the one with the agent, and of that
while its runs wait a minute for each call of the model. The bare pipeline has the options that `RunAgent` sets, and is
measured once more with Beam's own.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from beam_agents.transforms.flink import DEFAULTS
from benchmarks.load.job import append
from benchmarks.load.runners import FlinkOnThisMachine, flink
from benchmarks.load.server import ChatServer, running_server
from benchmarks.load.workload import Burst

LATENCY = 60.0
"""Seconds of a model call."""
SAME_OPTIONS = tuple(
    f"--{default.option}={str(default.value).lower()}" for default in DEFAULTS if "bundle" in default.option
)
"""What `RunAgent` sets by default of the length of bundles; the rest is the cluster's on both sides."""

_LOG = logging.getLogger(__name__)
_CALM_SECONDS = 60.0
"""After a job was busy: its tickers slow down, and the JVM ends compiling."""
_SETTLE_SECONDS = 5.0
"""After runs have begun to wait."""
_ARRIVAL_SECONDS = 300.0


@dataclass(frozen=True)
class Processors:
    """Percent of one core."""

    worker: float
    task_manager: float

    @property
    def both(self) -> float:
        """Together."""
        return self.worker + self.task_manager


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far.

    Raises:
        ProcessLookupError: There is none with this id.
    """
    try:
        fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError as error:
        raise ProcessLookupError(f"process {pid!r} has ended") from error
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def window(runner: FlinkOnThisMachine, seconds: float) -> Processors:
    """What the workers and the TaskManagers of a cluster use from now on.

    Args:
        runner: With one job.
        seconds: For how long.
    """
    workers = runner.cluster.workers()
    managers = [process.pid for process in runner.cluster.task_managers]
    began = time.monotonic()
    before = {pid: processor_seconds(pid) for pid in (*workers, *managers)}
    time.sleep(seconds)
    used = {pid: processor_seconds(pid) - then for pid, then in before.items()}
    percent = 100 / (time.monotonic() - began)
    return Processors(sum(used[pid] for pid in workers) * percent, sum(used[pid] for pid in managers) * percent)


def measure(out: Path, *, runs: int = 1_000, windows: int = 3, seconds: float = 30.0) -> dict[str, float | None]:
    """What idle jobs and waiting runs cost.

    Args:
        out: Folder for what is left over.
        runs: How many wait.
        windows: Of each state, whose median counts; while runs wait there are as many as fit into two calls.
        seconds: Length of a window.
    """
    with flink(out, SAME_OPTIONS, slots=1) as runner, running_server() as server:
        by_default = _idle(FlinkOnThisMachine(runner.cluster, out, ()), "bare job by Beam's defaults", windows, seconds)
        bare = _idle(runner, "bare job", windows, seconds)
        with runner.start("server", server=server.base_url) as job:
            idle = _windows(runner, windows, seconds, "idle job with the agent")
            server.reset(LATENCY)
            append(job.folder, Burst(id="waiting", events=runs))
            waiting = list[Processors]()
            for nth in (1, 2):
                _wait_until_all_wait(server, job.watch, runs, nth)
                fit = max(1, int((LATENCY - _SETTLE_SECONDS) // seconds))
                waiting += _windows(runner, fit, seconds, f"{runs} runs in call {nth}", calm=_SETTLE_SECONDS)
    return figures(by_default, bare, idle, waiting, runs)


def figures(
    by_default: Sequence[Processors],
    bare: Sequence[Processors],
    idle: Sequence[Processors],
    waiting: Sequence[Processors],
    runs: int,
) -> dict[str, float | None]:
    """The figures of what was measured: medians, in percent of one core."""
    states = {"bare_by_default": by_default, "bare": bare, "idle": idle, f"waiting_{runs}": waiting}
    parts = {
        f"{name}_{part}_cpu_percent": median(getattr(each, part) for each in measured)
        for name, measured in states.items()
        for part in ("worker", "task_manager")
    }
    both = {name: median(each.both for each in measured) for name, measured in states.items()}
    return {
        "idle_cpu_percent_over_bare": both["idle"] - both["bare"],
        "idle_cpu_percent_over_bare_by_default": both["idle"] - both["bare_by_default"],
        f"waiting_{runs}_cpu_percent_over_idle": both[f"waiting_{runs}"] - both["idle"],
        **parts,
    }


def _idle(runner: FlinkOnThisMachine, what: str, windows: int, seconds: float) -> list[Processors]:
    with runner.start("bare"):
        return _windows(runner, windows, seconds, what)


def _windows(
    runner: FlinkOnThisMachine, count: int, seconds: float, what: str, *, calm: float = _CALM_SECONDS
) -> list[Processors]:
    time.sleep(calm)
    measured = [window(runner, seconds) for _ in range(count)]
    told = ", ".join(f"{each.worker:.1f} + {each.task_manager:.1f}" for each in measured)
    _LOG.info("%s: worker + TaskManager, %% of a core: %s", what, told)
    return measured


def _wait_until_all_wait(server: ChatServer, watch: Callable[[], None], runs: int, nth: int) -> None:
    """Waits until all runs are in their n-th call."""
    until = time.monotonic() + _ARRIVAL_SECONDS
    while (stats := server.stats()).in_flight < runs or stats.calls < nth * runs:
        watch()
        if time.monotonic() > until:
            raise TimeoutError(f"{stats.in_flight} of {runs} runs wait for call {nth}")
        time.sleep(0.2)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="FILE.json", type=Path, required=True, help="for the figures")
    parser.add_argument("--runs", type=int, default=1_000, help="(%(default)s)")
    parser.add_argument("--windows", type=int, default=3, help="(%(default)s)")
    given = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    _LOG.setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as scratch:
        measured = measure(Path(scratch), runs=given.runs, windows=given.windows)
    given.out.write_text(json.dumps(measured, indent=1) + "\n")
    print(given.out.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
