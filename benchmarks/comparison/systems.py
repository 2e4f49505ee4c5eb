"""The systems: how each is started, killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, Protocol

from benchmarks.comparison.install import python_for
from benchmarks.comparison.lines import lines_of
from benchmarks.comparison.task import Place
from runners.flink.cluster import FlinkCluster
from runners.flink.rest import TERMINAL

ROOT = Path(__file__).resolve().parents[2]
_SUBMIT_SECONDS = 600.0

_QUIET = {
    "LANGSMITH_TRACING": "false",
    "PYTHONWARNINGS": "ignore",
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "CREWAI_TESTING": "true",  # else it asks on the terminal whether traces are to be looked at
    "OTEL_SDK_DISABLED": "true",
}
"""No framework is to call anybody but the two servers here."""


class Running(Protocol):
    """A system at work."""

    def kill(self) -> None:
        """Ends the process that runs the agent by SIGKILL, and sees to it that another goes on at once."""

    def check(self) -> None:
        """Raises RuntimeError if it has ended by itself."""

    def stop(self) -> None:
        """Ends it for good. May be called again."""


class Loop:
    """A program that reads in a loop; whoever killed it starts it again.

    Args:
        command: How it is started.
        folder: For its log, and for what it keeps.
    """

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self._command = list(command)
        self._folder = folder
        self._start()

    def kill(self) -> None:
        """Kills, and starts again."""
        self._process.kill()
        self._process.wait()
        self._start()

    def check(self) -> None:
        """Looks whether it has ended."""
        if (code := self._process.poll()) is not None:
            said = (self._folder / "system.log").read_text(errors="replace")[-3_000:]
            raise RuntimeError(f"{self._command[:3]!r} ended with {code}:\n{said}")

    def stop(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        environment = os.environ | _QUIET | {"XDG_DATA_HOME": str(self._folder)}
        with (self._folder / "system.log").open("a") as log:
            self._process = subprocess.Popen(self._command, cwd=ROOT, env=environment, stdout=log, stderr=log)


class FlinkJob:
    """A pipeline on a Flink cluster of this machine: one TaskManager, one Python worker, which is what is killed.

    Flink starts another worker and goes back to its newest checkpoint.

    Args:
        command: How it is submitted.
        folder: For the cluster.
    """

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        interval = timedelta(seconds=2)
        self._cluster = FlinkCluster(folder / "cluster", slots=1, checkpoint_interval=interval, rest_port=0)
        self._cluster.up()
        try:
            self._job = self._cluster.submit(command, directory=ROOT, timeout=_SUBMIT_SECONDS)
        except BaseException:
            self.stop()
            raise

    def kill(self) -> None:
        """Kills the worker."""
        for worker in self._cluster.workers():
            os.kill(worker, signal.SIGKILL)

    def check(self) -> None:
        """Looks whether the job has ended."""
        state = self._cluster.rest.job(self._job).state
        if state in TERMINAL:
            raise RuntimeError(f"the job is {state}\n{self._cluster.report()}")

    def stop(self) -> None:
        """Takes the cluster down."""
        self._cluster.down()


@dataclass(frozen=True)
class System:
    """How a system is started."""

    name: str
    module: str
    python: Callable[[], Path]
    kind: Callable[[Sequence[str], Path], Running]
    modules: tuple[str, ...]
    """Its code, as names of modules in this package."""
    commits: Literal["each", "auto"] = "each"

    def start(self, place: Place, folder: Path) -> Running:
        """Starts it.

        Args:
            place: Where everything is; which offsets are committed when is the system's own.
            folder: For its logs.
        """
        given = place.model_copy(update={"commits": self.commits}).arguments()
        return self.kind([str(self.python()), "-m", self.module, *given], folder)

    def lines(self) -> int:
        """How many lines of code it has."""
        return sum(map(lines_of, self.modules))


def _loop(name: str, framework: str, commits: Literal["each", "auto"] = "each") -> System:
    module = f"{framework}_loop"

    def python() -> Path:
        return python_for(framework)

    return System(name, f"{__package__}.{module}", python, Loop, (module, "loop"), commits)


SYSTEMS = {
    system.name: system
    for system in (
        System("Beam Agents", f"{__package__}.ours", lambda: Path(sys.executable), FlinkJob, ("ours",)),
        _loop("LangGraph", "langgraph"),
        _loop("CrewAI", "crewai"),
        _loop("AutoGen", "autogen"),
        _loop("LangGraph, auto-commit", "langgraph", "auto"),
    )
}
"""By name, in the table's order."""
