"""The plant's database in PostgreSQL: devices and readings, what was made of them, and a role for the job."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

import psycopg
from psycopg import sql
from pydantic import BaseModel

from beam_agents.secrets import EnvSecret
from examples.sensors.production.readings import Kind

PLANT = EnvSecret("SENSORS_PLANT_URL")
"""The plant's database, for look-ups and tables: each worker looks the URL up, and no pickle has it."""

ROLE = "sensors"
"""The job's name in PostgreSQL."""
SLOT = "sensors"
"""The name of the replication slot and of the publication."""
READINGS = "public.readings"

# REPLICA IDENTITY FULL: a change tells the row as it was, too.
_TABLES = """
CREATE TABLE devices (
    device TEXT PRIMARY KEY, kind TEXT NOT NULL, place TEXT NOT NULL, "limit" DOUBLE PRECISION, note TEXT NOT NULL
);
CREATE TABLE readings (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, device TEXT NOT NULL REFERENCES devices, kind TEXT NOT NULL,
    value DOUBLE PRECISION NOT NULL, taken TIMESTAMPTZ NOT NULL, version INTEGER NOT NULL DEFAULT 1
);
ALTER TABLE readings REPLICA IDENTITY FULL;
CREATE PUBLICATION sensors FOR TABLE readings;
CREATE TABLE rolling (
    device TEXT, id TEXT, ending TIMESTAMPTZ NOT NULL, readings BIGINT NOT NULL, mean DOUBLE PRECISION,
    std DOUBLE PRECISION, PRIMARY KEY (device, id)
);
CREATE TABLE assessments (
    device TEXT, run_id TEXT, status TEXT NOT NULL, severity TEXT, summary TEXT NOT NULL, decided_by TEXT NOT NULL,
    reading BIGINT NOT NULL, version BIGINT NOT NULL, PRIMARY KEY (device, run_id)
);
CREATE INDEX ON assessments (reading, version);
CREATE TABLE undelivered (
    key TEXT, delivery TEXT, id TEXT, message TEXT NOT NULL, value TEXT NOT NULL, attempts BIGINT NOT NULL,
    status BIGINT, PRIMARY KEY (key, delivery)
);
GRANT SELECT ON devices, readings TO sensors;
GRANT SELECT, INSERT, UPDATE ON rolling, assessments, undelivered TO sensors;
"""


class Device(BaseModel):
    device: str
    kind: Kind
    place: str
    limit: float | None
    """What a reading must not go beyond."""
    note: str


class Neighbour(BaseModel):
    device: str
    limit: float | None
    mean: float | None
    """Of its last minute."""


class Given(NamedTuple):
    """A reading that a device gives."""

    device: str
    kind: Kind
    value: float
    taken: datetime


class Counts(NamedTuple):
    """What stands in the tables."""

    readings: int
    corrections: int
    open: int
    """Readings that are in no assessment as they are now; those that are no readings are among them."""
    statuses: dict[str, int]
    alerts: set[str]
    """The runs that gave one."""
    rolling: int
    undelivered: int


def make_databases(url: str, password: str) -> None:
    """Makes the job's role, its ledger's database `ledger`, and the databases `plant` and `duty`, without tables.

    Args:
        url: Of the server, for its administrator.
        password: The role's.
    """
    with psycopg.connect(url, autocommit=True) as server:
        role = sql.Identifier(ROLE)
        server.execute(sql.SQL("CREATE ROLE {} LOGIN REPLICATION PASSWORD {}").format(role, sql.Literal(password)))
        server.execute(sql.SQL("CREATE DATABASE ledger OWNER {}").format(role))
        server.execute("CREATE DATABASE plant")
        server.execute("CREATE DATABASE duty")


def make_tables(url: str, devices: Iterable[Device], history: Iterable[Given]) -> None:
    """Makes the plant's tables, and enters its devices and what they told before the job is there.

    Args:
        url: Of the database `plant`, for its administrator.
        devices: All of them.
        history: Readings.
    """
    with psycopg.connect(url) as plant:
        plant.execute(_TABLES)
        for device in devices:
            values = (device.device, device.kind, device.place, device.limit, device.note)
            plant.execute("INSERT INTO devices VALUES (%s, %s, %s, %s, %s)", values)
        for given in history:
            put(plant, given)


def put(plant: psycopg.Connection[Any], given: Given) -> int:
    """Enters a reading; its id."""
    statement = "INSERT INTO readings (device, kind, value, taken) VALUES (%s, %s, %s, %s) RETURNING id"
    row = plant.execute(statement, given).fetchone()
    assert row is not None
    return int(row[0])


def written(url: str) -> int:
    """How many readings there are."""
    with psycopg.connect(url, connect_timeout=5) as plant:
        row = plant.execute("SELECT count(*) FROM readings").fetchone()
    assert row is not None
    return int(row[0])


def counts(url: str) -> Counts:
    """Counts."""
    with psycopg.connect(url, connect_timeout=5) as plant:
        one = plant.execute(
            "SELECT count(*), coalesce(sum(version - 1), 0)::bigint, count(*) FILTER (WHERE NOT EXISTS "
            "(SELECT FROM assessments a WHERE a.reading = r.id AND a.version = r.version)), "
            "(SELECT count(*) FROM rolling), (SELECT count(*) FROM undelivered) FROM readings r"
        ).fetchone()
        assert one is not None
        statuses = plant.execute("SELECT status, count(*) FROM assessments GROUP BY 1 ORDER BY 1").fetchall()
        alerts = plant.execute("SELECT run_id FROM assessments WHERE status = 'alert'").fetchall()
    readings, corrections, waiting, rolling, undelivered = one
    return Counts(
        readings, corrections, waiting, dict(statuses), {run_id for (run_id,) in alerts}, rolling, undelivered
    )
