"""Debezium's values as JSON that pydantic reads: what the schema of a column says of them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Context
from typing import Any, Final

_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001
_DAY: Final = 86_400_000_000
_EXACT: Final = Context(prec=131_072 + 16_383)
"""As many digits as a number of PostgreSQL may have."""

_Parameters = Mapping[str, Any]


def plain(schema: Mapping[str, Any], value: Any, *, text: bool = False) -> Any:
    """A value as JSON that pydantic reads: times in ISO 8601, decimals as texts of digits, bytes in base64.

    Args:
        schema: Its schema, as Kafka Connect's JSON converter writes it.
        value: The value, as the converter writes it.
        text: JSON documents and sets stay the texts that they are.

    Raises:
        ValueError: The value is not what its schema says, or, as with the date `infinity`, none that Python has.
    """
    if value is None:
        return None
    name, kind = schema.get("name"), schema.get("type")
    try:
        if name in _TEXTS:
            return value if text else _TEXTS[name](value)
        if name in _LOGICAL:
            return _LOGICAL[name](value, schema.get("parameters") or {})
        if kind == "struct":
            return {field["field"]: plain(field, value.get(field["field"])) for field in schema["fields"]}
        if kind == "array":
            return [plain(schema["items"], item) for item in value]
        if kind == "map" and isinstance(value, dict):
            return {key: plain(schema["values"], item) for key, item in value.items()}
    except (OverflowError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{value!r} cannot be read as {name or kind}: {error}") from error
    return value


def _decimal(value: str, parameters: _Parameters) -> str:
    return _scaled(value, int(parameters["scale"]))


def _variable_decimal(value: Mapping[str, Any], _: _Parameters) -> str:
    return _scaled(value["value"], value["scale"])


def _scaled(value: str, scale: int) -> str:
    unscaled = int.from_bytes(base64.b64decode(value, validate=True), "big", signed=True)
    return format(_EXACT.scaleb(_EXACT.create_decimal(unscaled), -scale), "f")


def _date(days: int, _: _Parameters) -> str:
    return date.fromordinal(_EPOCH.toordinal() + days).isoformat()


def _timestamp(micros: int) -> str:
    return (_EPOCH + timedelta(microseconds=micros)).isoformat()


def _time(micros: int) -> str:
    if not 0 <= micros < _DAY:  # MySQL's TIME is a length of time too
        return _duration(micros)
    return (_EPOCH + timedelta(microseconds=micros)).time().isoformat()


def _duration(micros: int) -> str:
    seconds, rest = divmod(abs(micros), 1_000_000)
    return f"{'-' if micros < 0 else ''}PT{seconds}.{rest:06d}S"


def _iso_date(value: str, _: _Parameters) -> str:
    return value.removesuffix("Z")


def _iso_time(value: str, _: _Parameters) -> str:
    return time.fromisoformat(value).replace(tzinfo=None).isoformat()


def _iso_timestamp(value: str, _: _Parameters) -> str:
    return datetime.fromisoformat(value).replace(tzinfo=None).isoformat()


def _bits(value: str, _: _Parameters) -> int:
    return int.from_bytes(base64.b64decode(value, validate=True), "little")


def _of(read: Callable[[int], str], numerator: int, denominator: int = 1) -> Callable[[int, _Parameters], str]:
    return lambda value, _: read(value * numerator // denominator)


_LOGICAL: Final[Mapping[str | None, Callable[[Any, _Parameters], Any]]] = {
    "org.apache.kafka.connect.data.Decimal": _decimal,
    "io.debezium.data.VariableScaleDecimal": _variable_decimal,
    "io.debezium.time.Date": _date,
    "org.apache.kafka.connect.data.Date": _date,
    "io.debezium.time.Time": _of(_time, 1000),
    "org.apache.kafka.connect.data.Time": _of(_time, 1000),
    "io.debezium.time.MicroTime": _of(_time, 1),
    "io.debezium.time.NanoTime": _of(_time, 1, 1000),
    "io.debezium.time.Timestamp": _of(_timestamp, 1000),
    "org.apache.kafka.connect.data.Timestamp": _of(_timestamp, 1000),
    "io.debezium.time.MicroTimestamp": _of(_timestamp, 1),
    "io.debezium.time.NanoTimestamp": _of(_timestamp, 1, 1000),
    "io.debezium.time.MicroDuration": _of(_duration, 1),
    "io.debezium.time.NanoDuration": _of(_duration, 1, 1000),
    "io.debezium.time.IsoDate": _iso_date,
    "io.debezium.time.IsoTime": _iso_time,
    "io.debezium.time.IsoTimestamp": _iso_timestamp,
    "io.debezium.data.Bits": _bits,
}
_TEXTS: Final[Mapping[str | None, Callable[[str], Any]]] = {
    "io.debezium.data.Json": json.loads,
    "io.debezium.data.EnumSet": lambda value: value.split(",") if value else [],
}
