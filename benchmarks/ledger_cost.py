"""What an effect costs in a ledger, against the number of effects that its run has already.

    python -m benchmarks.ledger_cost [URL ...] [--out FILE.json]

Without URLs: SQLite in a temporary folder, and a PostgreSQL server that is started for it (see `runners.postgres`),
both with the disk as it is. An effect is an intent and an outcome, each in a transaction of its own, as of a lone run
on an idle worker; writers of many runs share their transactions, which the column `ms in a group` shows.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from beam_agents.ledger import Ledger, ledger_from
from beam_agents.ledger.commands import Close, Intend, Open, Record
from beam_agents.ledger.records import Effect, RunKey
from beam_agents.testing.wire import Wire
from runners.postgres import PostgresServer

LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
RUNS = 100
ARGUMENTS = json.dumps({"account": "4" * 16, "note": "x" * 60})
VALUE = json.dumps({"text": "y" * 400})


@dataclass
class Row:
    """One line of the table; bytes and milliseconds are for an effect."""

    ledger: str
    length: int
    ms: float
    ms_in_group: float | None
    stored_bytes: float | None
    log_bytes: float | None
    round_trips: float | None
    wire_bytes: float | None


def keys(count: int) -> list[RunKey]:
    """Runs of one use, each of a key of its own."""
    scope = uuid.uuid4().hex
    return [RunKey(scope, "bench", 1, f'"card-{number}"', f"txn-{number}") for number in range(count)]


def intend(run: RunKey, path: int) -> Intend:
    return Intend(run, 1, Effect(str(path), 1, "tool", "lookup", "d" * 32, "once", ARGUMENTS))


def record(run: RunKey, path: int) -> Record:
    return Record(run, str(path), 1, "ok", VALUE)


def open_all(ledger: Ledger, runs: Sequence[RunKey]) -> None:
    ledger.apply([Open(run, '{"amount": 1}', "d" * 32, "worker") for run in runs])


def grow(ledger: Ledger, runs: Sequence[RunKey], path: int) -> float:
    """One effect for each run, all in two groups; milliseconds for each."""
    started = time.perf_counter()
    ledger.apply([intend(run, path) for run in runs])
    ledger.apply([record(run, path) for run in runs])
    return (time.perf_counter() - started) / len(runs) * 1000


def measure(url: str, name: str) -> Iterator[Row]:
    ledger = ledger_from(url)
    ledger.open()
    runs, watched = keys(RUNS), keys(10)
    open_all(ledger, runs)
    open_all(ledger, watched)
    with sizes(url) as sizes_now, wired(url) as (watched_ledger, wire):
        length = 0
        for point in LENGTHS:
            grouped = list[float]()
            while length < point - 1:
                length += 1
                grouped.append(grow(ledger, runs, length))
                grow(ledger, watched, length)
            length = point
            before, times = sizes_now(), list[float]()
            for run in runs:
                started = time.perf_counter()
                ledger.apply([intend(run, point)])
                ledger.apply([record(run, point)])
                times.append((time.perf_counter() - started) * 1000)
            grown = [(now - then) / RUNS for then, now in zip(before, sizes_now(), strict=True)]
            stored, log = [*grown, None, None][:2]
            in_group = statistics.median(grouped[-20:]) if grouped else None
            row = Row(name, point, statistics.median(times), in_group, stored, log, None, None)
            trips, seen = (wire.round_trips, wire.bytes) if wire else (0, 0)
            for run in watched:
                watched_ledger.apply([intend(run, point)])
                watched_ledger.apply([record(run, point)])
            if wire:
                trips, seen = wire.round_trips - trips, wire.bytes - seen
                row = replace(row, round_trips=trips / len(watched), wire_bytes=seen / len(watched))
            yield row
    for run in (*runs, *watched):
        ledger.apply([Close(run, 1, "{}", None)])
    ledger.close()


@contextmanager
def wired(url: str) -> Iterator[tuple[Ledger, Wire | None]]:
    """The ledger once more, by a wire that counts, if it has a server that can be reached so."""
    with ExitStack() as stack:
        wire, place = None, urlsplit(url)
        if place.scheme.startswith("postgres") and place.hostname and "," not in place.netloc:
            wire = stack.enter_context(Wire(place.hostname, place.port or 5432))
            user = place.netloc.rpartition("@")[0]
            url = urlunsplit(place._replace(netloc=f"{user}@127.0.0.1:{wire.port}"))
        ledger = ledger_from(url)
        ledger.open()
        if wire:  # statements are prepared once for each connection
            warm = keys(1)
            open_all(ledger, warm)
            grow(ledger, warm, 1)
            ledger.apply([Close(warm[0], 1, "{}", None)])
        stack.callback(ledger.close)
        yield ledger, wire


@contextmanager
def sizes(url: str) -> Iterator[Callable[[], tuple[int, ...]]]:
    """What gives the bytes of the tables, and those of the log that was written for them, where they are known."""
    if url.startswith("sqlite:///"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            page = file.execute("PRAGMA page_size").fetchone()[0]

            def of_file() -> tuple[int, ...]:
                return (file.execute("PRAGMA page_count").fetchone()[0] * page,)

            yield of_file
    elif url.startswith("postgres"):
        import psycopg

        place = urlsplit(url)
        schema = dict(part.split("=") for part in place.query.split("&") if part).get("schema", "beam_agents")
        with psycopg.connect(urlunsplit(place._replace(query="")), autocommit=True) as connection:
            asked = (
                "SELECT (SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n "
                "ON n.oid = relnamespace WHERE nspname = %s AND relkind = 'r'), pg_current_wal_insert_lsn() - '0/0'"
            )

            def of_schema() -> tuple[int, ...]:
                ((stored, log),) = connection.execute(asked, (schema,)).fetchall()
                return int(stored), int(log)

            yield of_schema
    else:
        yield lambda: ()


def cell(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="*", help="a ledger's URL")
    parser.add_argument("--out", type=Path, help="where to write the rows as JSON, too")
    arguments = parser.parse_args()
    rows = []
    with ExitStack() as stack:
        urls = {ledger_from(url).url: url for url in arguments.url}
        if not urls:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            server = PostgresServer()
            stack.callback(server.remove)
            server.start()
            urls = {"sqlite": f"sqlite:///{folder}/ledger.db", "postgresql": server.url()}
        print(
            f"{'ledger':12} {'effects':>8} {'ms':>7} {'ms in a group':>14} {'bytes stored':>13} {'bytes of log':>13} "
            f"{'round trips':>12} {'bytes on wire':>14}"
        )
        for name, url in urls.items():
            for row in measure(url, name):
                rows.append(asdict(row))
                sizes_of_row = f"{cell(row.stored_bytes):>13} {cell(row.log_bytes):>13}"
                network = f"{cell(row.round_trips, 1):>12} {cell(row.wire_bytes):>14}"
                print(f"{name:12} {row.length:8} {row.ms:7.2f} {cell(row.ms_in_group, 3):>14} {sizes_of_row} {network}")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
