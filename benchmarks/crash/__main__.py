"""What is done twice when processes die: conversations of a public benchmark, crashed at each of their boundaries.

    python -m benchmarks.crash --out FOLDER [--scenarios N] [--systems ours,no-ledger] [--jobs N]

The scenarios are those of the Berkeley Function Calling Leaderboard, multi-turn (pip install --no-deps bfcl-eval
mpmath), the rivals those of `python -m benchmarks.crash.rivals install`. For each system, scenario and fault point the
process that has the agent's loop dies at each of its boundaries once; the simulators of the tools live in one that
survives. In the end their state is compared with the one that the ground truth leaves. It prints a table and writes
`crash.json`.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from beam_agents.testing import FAULT_POINTS
from benchmarks.crash.client import Server, running_server
from benchmarks.crash.passes import Pass
from benchmarks.crash.rivals.systems import RIVALS
from benchmarks.crash.systems import MOST_SCENARIOS, SYSTEMS, installed
from benchmarks.crash.tables import Row, as_json, as_text, summed

UNDISTURBED = "none"
"""In the place of a fault point: nothing crashes."""

APART_SECONDS = 0.2
"""Between the answers to calls side by side, where that is the matter: one is recorded while the others have been made
and are not back."""

_Task = tuple[str, str, str]
"""System, fault point, scenario."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Compares.

    Args:
        arguments: The command line; that of the process by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.crash", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for crash.json")
    parser.add_argument("--scenarios", type=int, default=200, help="how many, spread; 200 by default, which are all")
    parser.add_argument(
        "--systems", default=",".join(installed()), help=f"of {', '.join(SYSTEMS)}; by default all that are installed"
    )
    parser.add_argument("--jobs", type=int, default=1, help="scenarios at once")
    given = parser.parse_args(arguments)
    systems = given.systems.split(",")
    if unknown := [name for name in systems if name not in SYSTEMS]:
        parser.error(f"there is no system {unknown[0]!r}; there is: {', '.join(SYSTEMS)}")
    given.out.mkdir(parents=True, exist_ok=True)
    with running_server() as server:
        names = spread(server.get("/scenarios"), given.scenarios)
        rows = compare(server, systems, names, given.jobs)
    (given.out / "crash.json").write_text(json.dumps(as_json(rows), indent=1) + "\n")
    print(as_text(rows))


def spread(names: Sequence[str], count: int) -> list[str]:
    """So many of the names, from all parts of them: neighbours have the same tools."""
    count = min(count, len(names))
    return [names[at * len(names) // count] for at in range(count)]


def compare(server: Server, systems: Sequence[str], scenarios: Sequence[str], jobs: int = 1) -> list[Row]:
    """Takes each system through the scenarios, undisturbed and with each fault point.

    Args:
        server: The other side.
        systems: Names of `SYSTEMS`.
        scenarios: Names.
        jobs: How many scenarios at once.

    Raises:
        Exception: A pass could not be made.
    """
    tasks = [
        (system, point, name)
        for system in systems
        for point in (UNDISTURBED, *FAULT_POINTS)
        for name in spread(scenarios, MOST_SCENARIOS.get(system, len(scenarios)))
    ]
    gc.freeze()  # forked children share what is here, as long as nobody touches it
    try:
        return summed(_progress(_made(partial(_take, server.url), tasks, jobs), len(tasks)))
    finally:
        gc.unfreeze()
        for rival in RIVALS.values():
            rival.close()


def _made(take: partial[Row], tasks: Sequence[_Task], jobs: int) -> Iterator[Row]:
    if jobs == 1:
        yield from map(take, tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        yield from pool.map(take, tasks)


def _progress(rows: Iterable[Row], of: int) -> Iterator[Row]:
    started = shown = time.monotonic()
    for number, row in enumerate(rows, 1):
        yield row
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            print(f"{number:,} of {of:,} passes, {shown - started:.0f} s: {row.system}, {row.fault_point}", flush=True)


def _take(url: str, task: _Task) -> Row:
    system, point, scenario = task
    server = Server(f"{url}/{system}/{point}")  # a place of its own: other passes of the scenario may be under way
    server.post("/begin", scenario=scenario, apart=APART_SECONDS if point == "in_parallel" else 0.0)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crash-") as folder:
        passed = SYSTEMS[system](Pass(server.url, scenario, point, Path(folder)))
    seconds = time.monotonic() - started
    return Row.of(system, point, passed, server.get("/verdict", scenario=scenario), seconds)


if __name__ == "__main__":
    main()
