"""Records what Debezium's PostgreSQL connector writes: `python -m tests.io.debezium_recorder`, with Java 17 and Maven.

It writes the files `postgresql*.json` of `tests/io/fixtures_cdc`.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2

from runners.postgres import PostgresServer

_HERE = Path(__file__).parent
_FIXTURES = _HERE.parent / "fixtures_cdc"
_CONNECTOR = "Debezium 2.7.4.Final, PostgreSQL connector"

_TABLES = """
CREATE TYPE mood AS ENUM ('calm', 'cross');
CREATE TABLE orders (
    id bigint PRIMARY KEY, customer text NOT NULL, amount numeric(12, 2) NOT NULL, rate numeric, ordered date,
    packed timestamp, sent timestamp(3), seen timestamptz, alarm time, span interval, ref uuid, detail jsonb,
    photo bytea, tags text[], levels int[], mood mood, paid boolean NOT NULL DEFAULT false, weight double precision,
    bits bit(8), note text
);
ALTER TABLE orders ALTER COLUMN note SET STORAGE EXTERNAL;
CREATE TABLE accounts (owner text, number int, balance numeric(10, 2), note text, PRIMARY KEY (owner, number));
ALTER TABLE accounts REPLICA IDENTITY FULL;
ALTER TABLE accounts ALTER COLUMN note SET STORAGE EXTERNAL;
CREATE TABLE log (line text);
CREATE TABLE done (id int PRIMARY KEY);
INSERT INTO orders (id, customer, amount) VALUES (1, 'anna', 1.50), (2, 'ben', 2.25);
"""
_FULL = """
INSERT INTO orders VALUES (3, 'carla', -1234567890.12, 0.000123, '2024-02-29', '2024-02-29 23:59:59.123456',
    '2024-02-29 23:59:59.123', '2024-02-29 23:59:59.123456+02', '13:14:15.123456',
    '1 year 2 months 3 days 4 hours 5 minutes 6.5 seconds', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
    '{"lines": [{"sku": "x", "count": 2}]}', '\\xff00fe', '{a,"b c",NULL}', '{1,-2}', 'cross', true, 0.1, '10100101',
    'short');
"""
_CHANGES = [
    _FULL,
    "UPDATE orders SET amount = 12.00, rate = 98765432109876543210.5 WHERE id = 3",
    "INSERT INTO orders (id, customer, amount, note) VALUES (4, 'dora', 4, repeat('long ', 1000))",
    "UPDATE orders SET amount = 5 WHERE id = 4",
    "UPDATE orders SET id = 5, note = 'short' WHERE id = 4",
    "DELETE FROM orders WHERE id = 3",
    "INSERT INTO accounts VALUES ('anna', 1, 10.00, repeat('long ', 1000)), ('anna', 2, 20.00, NULL)",
    "UPDATE accounts SET balance = balance + 1",
    "DELETE FROM accounts WHERE number = 2",
    "INSERT INTO log VALUES ('without a key')",
    "TRUNCATE log",
    "SELECT pg_logical_emit_message(true, 'note', 'a logical message')",
]
_COPIED = ((6, "emil", "6.00"), (7, "emil", "7.00"), (8, "fritz", "8.00"))


class Program:
    """The recorder and its libraries.

    Args:
        folder: For its files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        output = f"-Dmdep.outputFile={folder / 'classpath'}"
        pom = ["--file", str(_HERE / "pom.xml")]
        subprocess.run(["mvn", "--batch-mode", "--quiet", *pom, "dependency:build-classpath", output], check=True)
        self._classpath = (folder / "classpath").read_text().strip()

    @contextmanager
    def running(self, settings: Mapping[str, str]) -> Iterator[Iterator[dict[str, str | None]]]:
        """The records that a connector with these settings writes."""
        properties = self._folder / "connector.properties"
        properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        command = ["java", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp", self._classpath]
        with subprocess.Popen(
            [*command, str(_HERE / "Recorder.java"), str(properties)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                yield map(json.loads, process.stdout)
            finally:
                process.stdin.close()
                process.wait(60)


def record(program: Program, server: PostgresServer, name: str, more: Mapping[str, str]) -> None:
    """Records the changes of a database of its own under a name, and once more as a connector that starts again."""
    connection = psycopg2.connect(server.url())
    connection.autocommit = True
    connection.cursor().execute(f"CREATE DATABASE {name}")
    connection.close()
    connection = psycopg2.connect(server.url(name))
    connection.autocommit = True
    cursor = connection.cursor()
    cursor.execute(_TABLES)
    settings = _settings(server, name) | more
    with program.running(settings) as records:
        found = list(_until(records, ".orders", 2))
        for change in _CHANGES if "transforms" not in more else _CHANGES[:1]:
            cursor.execute(change)
        _copy(cursor)
        cursor.execute("INSERT INTO done VALUES (1)")
        found += _until(records, ".done", 1)
    _write(name, found, more)
    if "provide.transaction.metadata" in more:
        with program.running(settings | {"snapshot.mode": "never"}) as records:
            _write(f"{name}_again", list(_until(records, ".done", 1)), more)
    connection.close()


def _settings(server: PostgresServer, name: str) -> dict[str, str]:
    return {
        "name": name,
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "offset.storage": "org.apache.kafka.connect.storage.MemoryOffsetBackingStore",
        "database.hostname": "127.0.0.1",
        "database.port": str(server.port),
        "database.user": "postgres",
        "database.password": server.password,
        "database.dbname": name,
        "topic.prefix": "shop",
        "plugin.name": "pgoutput",
        "slot.name": name,
        "publication.name": name,
        "skipped.operations": "none",
        "flush.lsn.source": "false",
        "heartbeat.interval.ms": "500",
    }


def _copy(cursor: Any) -> None:
    rows = "".join("\t".join(map(str, row)) + "\n" for row in _COPIED)
    cursor.copy_expert("COPY orders (id, customer, amount) FROM STDIN", io.StringIO(rows))


def _until(records: Iterator[dict[str, str | None]], topic: str, count: int) -> Iterator[dict[str, str | None]]:
    for record in records:
        yield record
        count -= (record["topic"] or "").endswith(topic)
        if count == 0:
            return


def _write(name: str, records: list[dict[str, str | None]], settings: Mapping[str, str]) -> None:
    """Writes each schema once, and one heartbeat of many."""
    schemas: list[Any] = []

    def shortened(text: str | None) -> Any:
        told = None if text is None else json.loads(text)
        if isinstance(told, dict) and told.keys() == {"schema", "payload"}:
            if told["schema"] not in schemas:
                schemas.append(told["schema"])
            told["schema"] = schemas.index(told["schema"])
        return told

    kept, heartbeats = [], 0
    for record in records:
        if (record["topic"] or "").startswith("__debezium-heartbeat"):
            heartbeats += 1
            if heartbeats > 1:
                continue
        kept.append({part: shortened(text) if part != "topic" else text for part, text in record.items()})
    lines = {
        "from": json.dumps(_CONNECTOR),
        "settings": json.dumps(dict(settings)),
        "schemas": _listed(schemas),
        "records": _listed(kept),
    }
    text = "{" + ",\n".join(f'"{key}": {value}' for key, value in lines.items()) + "}\n"
    (_FIXTURES / f"{name}.json").write_text(text)
    print(f"{name}: {len(kept)} records")


def _listed(items: list[Any]) -> str:
    return "[\n" + ",\n".join(json.dumps(item, ensure_ascii=False, separators=(",", ":")) for item in items) + "\n]"


_VARIANTS = {
    "postgresql": {"provide.transaction.metadata": "true", "interval.handling.mode": "string"},
    "postgresql_plain": {"converter.schemas.enable": "false", "decimal.handling.mode": "string"},
    "postgresql_connect": {"time.precision.mode": "connect", "decimal.handling.mode": "double"},
    "postgresql_flat": {
        "converter.schemas.enable": "false",
        "transforms": "unwrap",
        "transforms.unwrap.type": "io.debezium.transforms.ExtractNewRecordState",
    },
}


def main() -> int:
    """Records all variants."""
    server = PostgresServer(wal_level="logical", max_replication_slots="10", max_wal_senders="10")
    try:
        server.start()
        with tempfile.TemporaryDirectory() as folder:
            program = Program(Path(folder))
            for name, more in _VARIANTS.items():
                record(program, server, name, more)
    finally:
        server.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
