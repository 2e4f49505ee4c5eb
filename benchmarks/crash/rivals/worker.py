"""A rival's process: a warm parent that forks a child for each attempt at a scenario, until one gets to the end.

    python -m benchmarks.crash.rivals.worker SYSTEM

Runs in the environment of the rival. Reads the fields of a `Pass` as a line of JSON, and prints one for it: how often
the process died (`crashes`), and why the scenario did not come to its end (`error`, empty if it did).
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from benchmarks.crash.passes import Pass
from benchmarks.crash.rivals.crashing import CRASHED, Faults
from benchmarks.crash.rivals.yardstick import Scenario, Server

Program = Callable[[Scenario, Faults, Path], None]
"""Runs a scenario from where its durable state in the folder says, to its end."""

PROGRAMS = {
    "langgraph-sync": "langgraph_sqlite:run_sync",
    "langgraph-async": "langgraph_sqlite:run_async",
    "dbos": "dbos_sqlite:run",
    "autogen": "autogen_state:run",
    "adk-dofn": "adk_dofn:run",
}

ATTEMPT_SECONDS = 120
"""A child that runs for longer is ended, and its pass counts as failed."""

MOST_CRASHES = 400


def main(system: str) -> None:
    """Makes passes until there are no more."""
    module, _, name = PROGRAMS[system].partition(":")
    program: Program = getattr(importlib.import_module(f"benchmarks.crash.rivals.{module}"), name)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        fields = json.loads(line)
        crashes, error = pass_over(program, Pass(**fields | {"folder": Path(fields["folder"])}))
        print(json.dumps({"crashes": crashes, "error": error}), file=answers, flush=True)


def pass_over(program: Program, made: Pass) -> tuple[int, str]:
    """Starts the scenario again after each crash, until an attempt comes to its end or fails.

    Returns:
        The number of crashes, and why the last attempt failed; empty if it did not.
    """
    for crashes in range(MOST_CRASHES):
        child = os.fork()
        if child == 0:
            _attempt(program, made)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != CRASHED:
            return crashes, "" if code == 0 else _error(made.folder, code)
    return MOST_CRASHES, f"not at its end after {MOST_CRASHES} crashes"


def _attempt(program: Program, made: Pass) -> NoReturn:
    """The child. Leaves without waiting for threads of the framework."""
    signal.alarm(ATTEMPT_SECONDS)
    with (made.folder / "output.txt").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    try:
        program(Scenario(Server(made.url), made.scenario), Faults(made.fault_point, made.folder), made.folder)
    except BaseException:
        (made.folder / "error.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def _error(folder: Path, code: int) -> str:
    error = folder / "error.txt"
    return error.read_text() if error.exists() else f"ended with {code}"


if __name__ == "__main__":
    main(*sys.argv[1:])
