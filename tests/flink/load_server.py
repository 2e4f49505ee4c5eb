"""The outside world of the load: a server that does what agents ask of it and writes down every request.

    python -m tests.flink.load_server --log outside.db

It is a process of its own that nobody kills. Like many real systems it makes a `once` call each time it is asked, so
that a doubled call shows; an `idempotent` one it makes once for each idempotency key. A request whose asker has died
takes effect all the same. The log is a SQLite file that may be read while the server runs. A connection has one
request, a line of JSON, and one answer.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 30.0

_TABLES = """
CREATE TABLE calls (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, run TEXT NOT NULL, step TEXT NOT NULL,
    idempotency_key TEXT NOT NULL, attempt INTEGER NOT NULL, pid INTEGER NOT NULL,
    received REAL NOT NULL, answered REAL
);
CREATE INDEX calls_by_time ON calls (received);
CREATE INDEX calls_by_run ON calls (run);
CREATE TABLE applied (
    receipt INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, run TEXT NOT NULL,
    idempotency_key TEXT NOT NULL, attempt INTEGER NOT NULL, at REAL NOT NULL
);
CREATE INDEX applied_by_key ON applied (idempotency_key);
CREATE TABLE cancelled (idempotency_key TEXT, attempt INTEGER, PRIMARY KEY (idempotency_key, attempt));
"""


class Call(BaseModel):
    """What an agent asks."""

    model_config = ConfigDict(frozen=True)

    kind: str
    """`model`, `pure`, `idempotent`, `once` or `reconcile`: what is wanted, whatever the tool declares."""
    name: str
    """Of the model or the tool."""
    run: str
    step: str = ""
    """The digest of a model's request, the name of a tool: the same again is the same call made again."""
    key: str = ""
    """The idempotency key; empty for models."""
    attempt: int = 0
    pid: int
    """The worker process that asks."""


class Answer(BaseModel):
    """What it is told."""

    receipt: int | None = None
    """Number of the effect; `None` where there is none."""
    cancelled: bool = False
    """The request was turned away, because its asker's heir had cancelled it."""


class Outside:
    """Handles the requests.

    Args:
        log: The SQLite file to make.
        fastest: Seconds that the quickest request takes.
        slowest: Seconds that the slowest request takes.
    """

    def __init__(self, log: Path, fastest: float, slowest: float) -> None:
        self._fastest, self._slowest = fastest, slowest
        self._database = sqlite3.connect(log, isolation_level=None)
        # The machine does not go down in these tests, only processes do.
        self._database.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;" + _TABLES)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request, after a time that depends on what is asked alone."""
        line = await reader.readline()
        if line:
            answer = await self._answer(Call.model_validate_json(line))
            writer.write(answer.model_dump_json().encode() + b"\n")
        writer.close()

    async def _answer(self, call: Call) -> Answer:
        logged = self._database.execute(
            "INSERT INTO calls (kind, name, run, step, idempotency_key, attempt, pid, received) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (call.kind, call.name, call.run, call.step, call.key, call.attempt, call.pid, time.time()),
        ).lastrowid
        pause = self._seconds(call) / 2
        await asyncio.sleep(pause)
        answer = self._carry_out(call)
        await asyncio.sleep(pause)
        self._database.execute("UPDATE calls SET answered = ? WHERE id = ?", (time.time(), logged))
        return answer

    def _seconds(self, call: Call) -> float:
        digest = hashlib.sha256(f"{call.kind} {call.name} {call.run} {call.step}".encode()).digest()
        return self._fastest + (self._slowest - self._fastest) * int.from_bytes(digest[:4], "big") / 2**32

    def _carry_out(self, call: Call) -> Answer:
        match call.kind:
            case "once":
                if self._row("SELECT 1 FROM cancelled WHERE idempotency_key = :key AND attempt = :attempt", call):
                    return Answer(cancelled=True)
                return Answer(receipt=self._apply(call))
            case "idempotent":
                return Answer(receipt=self._receipt(call) or self._apply(call))
            case "reconcile":
                receipt = self._receipt(call)
                if receipt is None:
                    self._database.execute("INSERT OR IGNORE INTO cancelled VALUES (?, ?)", (call.key, call.attempt))
                return Answer(receipt=receipt)
            case _:
                return Answer()

    def _receipt(self, call: Call) -> int | None:
        return self._row("SELECT min(receipt) FROM applied WHERE idempotency_key = :key", call)

    def _apply(self, call: Call) -> int | None:
        return self._database.execute(
            "INSERT INTO applied (kind, name, run, idempotency_key, attempt, at) VALUES (?, ?, ?, ?, ?, ?)",
            (call.kind, call.name, call.run, call.key, call.attempt, time.time()),
        ).lastrowid

    def _row(self, query: str, call: Call) -> int | None:
        row = self._database.execute(query, {"key": call.key, "attempt": call.attempt}).fetchone()
        return row[0] if row else None


@contextmanager
def serving(folder: Path, *, fastest: float = 0.05, slowest: float = 0.5) -> Iterator[str]:
    """Runs a server beside the block.

    Args:
        folder: Where its log and its own output are written.
        fastest: As for `Outside`.
        slowest: As for `Outside`.

    Yields:
        Its address.

    Raises:
        RuntimeError: It did not start.
    """
    log, said = folder / "outside.db", folder / "outside.log"
    command = [sys.executable, "-m", "tests.flink.load_server", f"--log={log}"]
    with (
        said.open("w") as stderr,
        subprocess.Popen(
            [*command, f"--fastest={fastest}", f"--slowest={slowest}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()  # the first, or the end of a server that failed
            if not line:
                raise RuntimeError(f"the server did not start:\n{said.read_text()}")
            yield line.strip()
        finally:
            process.terminate()
            process.wait(_START_SECONDS)


async def ask(address: str, call: Call) -> Answer:
    """Asks the server.

    Args:
        address: Of the server, as `host:port`.
        call: The request.

    Raises:
        OSError: There is no answer.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(call.model_dump_json().encode() + b"\n")
        line = await reader.readline()
    finally:
        writer.close()
    if not line:
        raise ConnectionError(f"the server at {address} did not answer {call!r}")
    return Answer.model_validate_json(line)


async def _serve(outside: Outside) -> None:
    server = await asyncio.start_server(outside.handle, "127.0.0.1", 0, backlog=1000)
    host, port = server.sockets[0].getsockname()
    print(f"{host}:{port}", flush=True)
    await server.serve_forever()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; prints the address and serves until it is ended."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--log", metavar="FILE", type=Path, required=True, help="SQLite file, made anew")
    made.add_argument("--fastest", metavar="SECONDS", type=float, default=0.05, help="(%(default)s)")
    made.add_argument("--slowest", metavar="SECONDS", type=float, default=0.5, help="(%(default)s)")
    arguments = made.parse_args(argv)
    asyncio.run(_serve(Outside(arguments.log, arguments.fastest, arguments.slowest)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
