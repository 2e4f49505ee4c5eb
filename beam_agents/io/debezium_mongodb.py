"""MongoDB's documents as JSON that pydantic reads, from its extended JSON."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001
_UUID: Final = 4


def document(text: str) -> Any:
    """A document or a part of one: ids and decimals as texts, times in ISO 8601 and UTC, bytes in base64.

    Types that JSON has no likeness of (`$timestamp`, `$regularExpression`, `$minKey`) stay as they are.

    Args:
        text: Extended JSON, canonical, relaxed, or strict as of old.

    Raises:
        ValueError: It is none.
    """
    return _plain(json.loads(text))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    for name, read in _TYPES.items():
        if name in value:
            try:
                return read(value[name], value)
            except (TypeError, KeyError, AttributeError, OverflowError) as error:
                raise ValueError(f"{json.dumps(value)} is no {name}: {error}") from error
    return {key: _plain(item) for key, item in value.items()}


def _as_it_is(value: Any, _: Mapping[str, Any]) -> Any:
    return value


def _integer(value: Any, _: Mapping[str, Any]) -> int:
    return int(value)


def _double(value: Any, _: Mapping[str, Any]) -> float:
    return float(value)


def _time(value: Any, _: Mapping[str, Any]) -> str:
    if isinstance(value, str):
        return value
    milliseconds = int(value["$numberLong"] if isinstance(value, dict) else value)
    return (_EPOCH + timedelta(milliseconds=milliseconds)).isoformat() + "Z"


def _binary(value: Any, whole: Mapping[str, Any]) -> str:
    if isinstance(value, dict):
        data, kind = value["base64"], value["subType"]
    else:
        data, kind = value, whole["$type"]
    if int(kind, 16) == _UUID:
        return str(uuid.UUID(bytes=base64.b64decode(data)))
    return str(data)


def _nothing(_: Any, __: Mapping[str, Any]) -> None:
    return None


_TYPES: Final[Mapping[str, Callable[[Any, Mapping[str, Any]], Any]]] = {
    "$oid": _as_it_is,
    "$uuid": _as_it_is,
    "$symbol": _as_it_is,
    "$numberDecimal": _as_it_is,
    "$numberInt": _integer,
    "$numberLong": _integer,
    "$numberDouble": _double,
    "$date": _time,
    "$binary": _binary,
    "$undefined": _nothing,
}
