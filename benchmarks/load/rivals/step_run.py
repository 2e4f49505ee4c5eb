"""What the rivals' programs for durable steps share. Only the standard library: it runs in their environments.

Such a program is started as `python -m benchmarks.load.rivals.NAME --file FILE --steps N` and prints a `StepRun`.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

RESULT = "y" * 200
"""What each step gives."""

WARM_STEPS = 20
"""In a run before the one that is measured, which makes tables and fills caches."""


@dataclass(frozen=True)
class StepRun:
    """What steps took."""

    seconds: float
    stored_bytes: int
    """By which the database has grown."""


def measured(file: Path, run: Callable[[], None]) -> StepRun:
    """Measures something that writes to an SQLite database that is there."""
    before = stored_bytes(file)
    started = time.perf_counter()
    run()
    return StepRun(time.perf_counter() - started, stored_bytes(file) - before)


def stored_bytes(file: Path) -> int:
    """The size of an SQLite database, with what is only in its log yet."""
    with closing(sqlite3.connect(file)) as connection:
        pages: int = connection.execute("PRAGMA page_count").fetchone()[0]
        size: int = connection.execute("PRAGMA page_size").fetchone()[0]
        return pages * size


def main(program: Callable[[Path, int], StepRun]) -> None:
    """The command line of a program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--file", type=Path, required=True, help="the database, not there yet")
    parser.add_argument("--steps", type=int, required=True)
    given = parser.parse_args()
    print(json.dumps(asdict(program(given.file, given.steps))))
