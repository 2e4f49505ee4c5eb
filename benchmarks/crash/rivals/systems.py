"""The rivals as systems of the yardstick: each pass is made by a worker process in the rival's environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.crash.passes import Pass, Passed
from benchmarks.crash.rivals.install import folder, python_of
from benchmarks.crash.rivals.worker import PROGRAMS

_ROOT = Path(__file__).parents[3]
_QUIET = {
    "LANGSMITH_TRACING": "false",
    "PYTHONWARNINGS": "ignore",
}


@dataclass
class Rival:
    """A system that runs in an environment of its own.

    Args:
        name: A key of `PROGRAMS`.
        environment: One of `install.ENVIRONMENTS`.
    """

    name: str
    environment: str
    _workers: dict[tuple[int, int], subprocess.Popen[str]] = field(default_factory=dict)
    """By process and thread: a worker makes one pass at a time, and a fork has workers of its own."""

    def __call__(self, given: Pass) -> Passed:
        """Makes a pass.

        Raises:
            FileNotFoundError: The environments are not installed.
            RuntimeError: The worker is gone.
        """
        worker = self._worker()
        assert worker.stdin is not None
        assert worker.stdout is not None
        print(json.dumps(asdict(given), default=str), file=worker.stdin, flush=True)
        line = worker.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker of {self.name!r} ended with {worker.wait()}: run it by hand to see why")
        passed = json.loads(line)
        if passed["error"]:
            print(f"{self.name}, {given.scenario}, {given.fault_point}: {passed['error']}", file=sys.stderr)
        return Passed(crashes=passed["crashes"], failed=int(passed["error"] != ""))

    def close(self) -> None:
        """Ends the workers of this process."""
        for place in [place for place in self._workers if place[0] == os.getpid()]:
            with self._workers.pop(place) as worker:
                assert worker.stdin is not None
                worker.stdin.close()

    def _worker(self) -> subprocess.Popen[str]:
        place = (os.getpid(), threading.get_ident())
        if place not in self._workers:
            python = python_of(folder(), self.environment)
            if not python.exists():
                raise FileNotFoundError(f"{python} is missing: python -m benchmarks.crash.rivals install {folder()}")
            self._workers[place] = subprocess.Popen(
                [python, "-m", "benchmarks.crash.rivals.worker", self.name],
                cwd=_ROOT,
                env=os.environ | _QUIET,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        return self._workers[place]


RIVALS = {name: Rival(name, "beam" if name == "adk-dofn" else "agents") for name in PROGRAMS}
"""By the name that the table has."""
