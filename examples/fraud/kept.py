"""Where an endless stream leaves what comes out: a SQLite file that equal lines enter once.

What it guarantees: a line that a worker has emitted is in the file when its bundle has ended, and it is there once,
however often a bundle is tried again or a part of the stream is read again after a crash. That works because what an
agent emits for an event is the same each time: its ledger says it. So two events that have equal lines count as one;
results and failures never do, since they name the event. The file serves the processes of one machine.

    sqlite3 demo-out/fraud-stream/outputs.db "select line from outputs where kind = 'failures'"
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam

from beam_agents.codec import digest
from examples.common import Row, json_line

_TABLE = """
CREATE TABLE IF NOT EXISTS outputs (
    number INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, line TEXT NOT NULL
)
"""


class Kept(NamedTuple):
    """A line of the file."""

    number: int
    """Later ones have greater ones."""
    kind: str
    row: Row


class KeepOutputs(beam.PTransform):
    """Writes (key, record) pairs into a SQLite file.

    Args:
        path: The file; made if it is not there.
        kind: What the lines are called there.
    """

    def __init__(self, path: str | Path, kind: str) -> None:
        super().__init__()
        self.path = str(path)
        self.kind = kind

    def expand(self, pairs: beam.PCollection[Any]) -> beam.PCollection[None]:
        return (
            pairs
            | "Lines" >> beam.Map(json_line).with_output_types(str)
            | "Keep" >> beam.ParDo(_KeepDoFn(self.path, self.kind)).with_output_types(type(None))
        )


class _KeepDoFn(beam.DoFn):
    def __init__(self, path: str, kind: str) -> None:
        self.path = path
        self.kind = kind

    def setup(self) -> None:
        self._database = _open(self.path)

    def teardown(self) -> None:
        self._database.close()

    def start_bundle(self) -> None:
        self._lines: list[str] = []

    def process(self, line: str) -> None:
        self._lines.append(line)

    def finish_bundle(self) -> None:
        rows = [(digest(self.kind, line), self.kind, line) for line in self._lines]
        with self._database as transaction:
            transaction.executemany("INSERT OR IGNORE INTO outputs (digest, kind, line) VALUES (?, ?, ?)", rows)


def make_file(path: str | Path) -> None:
    """Makes the file if it is not there. Do it before there are workers: they would get in each other's way."""
    _open(path).close()


def kept_after(path: str | Path, number: int = 0) -> Iterator[Kept]:
    """What was written behind a line of the file, in the order of writing; all by default."""
    with closing(_open(path)) as database:
        query = "SELECT number, kind, line FROM outputs WHERE number > ? ORDER BY number"
        for found, kind, line in database.execute(query, (number,)):
            yield Kept(found, kind, json.loads(line))


def _open(path: str | Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=60, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    with database as transaction:
        transaction.execute(_TABLE)
    return database
