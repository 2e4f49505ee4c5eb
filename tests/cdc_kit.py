"""The recorded change events of `tests/io/fixtures_cdc`, as records of Kafka."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from beam_agents.io import KafkaRecord

_FIXTURES = Path(__file__).parent / "io" / "fixtures_cdc"
_READ = datetime(2024, 3, 1, tzinfo=UTC)


def recorded(name: str) -> list[KafkaRecord]:
    """The records of a file, one after the other in partition 0."""
    told = json.loads((_FIXTURES / f"{name}.json").read_text())
    return [
        KafkaRecord(
            topic=record["topic"],
            partition=0,
            offset=offset,
            timestamp=_READ,
            key=_raw(record["key"], told["schemas"]),
            value=_raw(record["value"], told["schemas"]),
        )
        for offset, record in enumerate(told["records"])
    ]


def record(value: Any, key: Any = None) -> KafkaRecord:
    """A record of JSON data."""
    return KafkaRecord(topic="t", partition=0, offset=0, timestamp=_READ, key=_raw(key, []), value=_raw(value, []))


def _raw(told: Any, schemas: list[Any]) -> bytes | None:
    if told is None:
        return None
    if isinstance(told, dict) and schemas and told.keys() == {"schema", "payload"}:
        told = told | {"schema": schemas[told["schema"]]}
    return json.dumps(told).encode()
