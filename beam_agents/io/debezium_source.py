"""What Debezium tells of where a change comes from."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from beam_agents.codec import canonical_json, digest

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_POSTGRESQL: Final = "postgresql"
_MYSQL: Final = ("mysql", "mariadb")
_MONGODB: Final = "mongodb"

Fields = Mapping[str, Any]


def is_mongodb(source: Fields) -> bool:
    """Whether rows are documents."""
    return source.get("connector") == _MONGODB


def is_postgresql(source: Fields) -> bool:
    """Whether deleted rows may have their key alone."""
    return source.get("connector") == _POSTGRESQL


def table_of(source: Fields) -> str:
    """The table with its schema, or the database where there are no schemas.

    Raises:
        ValueError: The source names none.
    """
    name = source.get("table") or source.get("collection")
    within = source.get("schema") or source.get("db")
    if not name or not within:
        raise ValueError("its 'source' names no table; a transform of the connector must not take fields out of it")
    return f"{within}.{name}"


def position_of(source: Fields) -> str | None:
    """Where the change stands in the database's log; `None` for connectors that are not known here."""
    connector = source.get("connector")
    if connector == _POSTGRESQL and isinstance(lsn := source.get("lsn"), int):
        return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
    if connector in _MYSQL and source.get("file"):
        return f"{source['file']}:{source.get('pos')}:{source.get('row') or 0}"
    if connector == _MONGODB and isinstance(milliseconds := source.get("ts_ms"), int):
        return f"{milliseconds // 1000}:{source.get('ord')}"
    return None


def transaction_of(payload: Fields, source: Fields) -> str | None:
    """The database's own name for the transaction; else the connector's."""
    told = source.get("txId") or source.get("gtid")
    if not told and source.get("txnNumber") is not None:
        told = f"{source.get('lsid')}:{source['txnNumber']}"
    if not told:
        told = (payload.get("transaction") or {}).get("id")
    return None if not told else str(told)


def committed_of(source: Fields) -> datetime | None:
    """When the change was committed, as exactly as it is told."""
    for name, divisor in (("ts_us", 1), ("ts_ns", 1000)):
        if isinstance(told := source.get(name), int) and told > 0:
            return _EPOCH + timedelta(microseconds=told // divisor)
    told = source.get("ts_ms")
    return _EPOCH + timedelta(milliseconds=told) if isinstance(told, int) and told > 0 else None


def id_of(payload: Fields, source: Fields, table: str, key: Any) -> str | None:
    """An id that is the same when the connector sends the change again; `None` where nothing in it can promise that.

    PostgreSQL: rows of one COPY share a place in the log, so the key and the row are in the id. MySQL: a row has a
    place of its own. MongoDB: a document changes once at one time of the log, except within a transaction.

    Args:
        payload: The envelope.
        source: Its `source`.
        table: The table.
        key: The record's key, as JSON data; `None` if it has none.
    """
    position, operation = position_of(source), payload["op"]
    if position is None or operation == "r":
        return None
    told: tuple[Any, ...] = (source.get("name"), source.get("db"), table, position, operation, source.get("ts_ms"))
    connector = source.get("connector")
    if connector == _POSTGRESQL:
        if key is None and operation != "t":
            return None
        told += (source.get("txId"), key, payload.get("before"), payload.get("after"))
    elif connector in _MYSQL:
        told += (source.get("server_id"), source.get("gtid"))
    else:
        if key is None or source.get("txnNumber") is not None:
            return None
        told += (key,)
    return f"{table}-{position}-{digest(canonical_json(told))[:16]}"
