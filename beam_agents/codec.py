"""Canonical JSON and digests: the one way in which values are compared across processes and years.

Never pickle and never `hash`: both differ between processes, and a recorded answer would be missed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any, cast

from pydantic import BaseModel, JsonValue, RootModel, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: Any) -> str:
    """`value` as JSON with sorted keys and no spaces; equal values give equal text in every process.

    Raises:
        ValueError: The value holds something that JSON cannot (its message says what).
    """
    return _plain_and_text(value)[1]


def to_json_value(value: Any) -> Any:
    """`value` as plain JSON data (dicts, lists, str, numbers, bool, None); sets are sorted.

    Raises:
        ValueError: The value holds something that JSON cannot, such as half of a surrogate pair.
    """
    return _plain_and_text(value)[0]


def json_text(value: Any) -> str | None:
    """`canonical_json` of a value that is JSON data already; `None` of another."""
    try:
        plain, text = _plain_and_text(value)
    except ValueError:
        return None
    return text if plain == value else None


def _plain_and_text(value: Any) -> tuple[Any, str]:
    try:
        if _is_flat(value):
            text = _CANONICAL.encode(value)
            text.encode()
            return dict(value) if type(value) is dict else value, text
        plain = to_jsonable_python(_sort_sets(value), bytes_mode="base64", inf_nan_mode="constants")
        text = _CANONICAL.encode(plain)
        text.encode()  # refuses half surrogate pairs: neither pydantic nor databases read them back
    except Exception as error:
        raise ValueError(f"{type(value).__name__} cannot be held by JSON: {error}") from error
    return plain, text


_SCALARS = frozenset({str, int, bool, type(None)})


def _is_flat(value: Any) -> bool:
    """Whether it is JSON data as it is, seen at a glance: most values are, and the long way is a slow one."""
    if type(value) is dict:
        return all(type(name) is str and type(item) in _SCALARS for name, item in value.items())
    return type(value) in _SCALARS


def _sort_sets(value: Any) -> Any:
    """`value` with lists for sets, whose order differs between processes."""
    if isinstance(value, (str, int, float, type(None))):
        return value
    if isinstance(value, (set, frozenset)):
        return sorted(map(_sort_sets, value), key=canonical_json)
    if isinstance(value, dict):
        return {key: _sort_sets(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_sort_sets(item) for item in value]
    if isinstance(value, BaseModel) or is_dataclass(value):
        dumped = adapter(Any).dump_python(value)
        return _sort_sets(dumped) if _holds_set(dumped) else value
    return value


def _holds_set(value: Any) -> bool:
    if isinstance(value, (set, frozenset)):
        return True
    if isinstance(value, dict):
        return any(map(_holds_set, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_holds_set, value))


def dump(type_: Any, value: Any) -> JsonValue:
    """A value of a type as the plain JSON data that `load` reads back: fields under their own names, sets sorted.

    Raises:
        ValueError: JSON cannot hold the value (infinity, NaN, bytes that are not UTF-8, half a surrogate pair), or
            the value does not keep its type.
    """
    try:
        written = adapter(type_).dump_json(value, by_alias=False, round_trip=True)
        return cast(JsonValue, _settled(value, json.loads(written)))
    except Exception as error:
        raise ValueError(f"{type(value).__name__} cannot be held by JSON: {error}") from error


def load(type_: Any, text: str | bytes) -> Any:
    """The value of JSON that `dump` made, or that names fields by their aliases.

    Raises:
        ValueError: It is not JSON, or does not fit the type (`pydantic.ValidationError`).
    """
    return adapter(type_).validate_json(text, by_alias=True, by_name=True)


def recall(type_: Any, text: str | bytes, whole: str) -> Any:
    """`load` for a record, which a release with another form of the type may have written.

    Args:
        type_: The type.
        text: What `dump` made.
        whole: What to call the value when all of it is wrong.

    Raises:
        ValueError: It does not fit the type, or has fields that the type would drop without a word; the message names
            the type and the fields. Whatever the type's validators raise comes as this, too.
    """
    name = getattr(type_, "__name__", None) or str(type_)
    try:
        value = load(type_, text)
        plain = json.loads(text)
        again = json.loads(adapter(type_).dump_json(value, by_alias=False, round_trip=True, warnings=False))
        dropped = [] if again == plain else list(_dropped(value, plain, again))
    except BaseException as error:
        why = explain(error, whole) if isinstance(error, ValidationError) else named(error)
        raise ValueError(f"{name}: {why}") from error
    if dropped:
        raise ValueError(
            f"{name}: it has {', '.join(map(repr, dropped))}, which would be lost, since the type has no such field; "
            "keep the field, or let model_config = ConfigDict(extra='ignore') say that it may go"
        )
    return value


def _dropped(value: Any, plain: Any, again: Any, path: str = "") -> Iterator[str]:
    """The fields of `plain` that `value`, which was read from it, lacks; `again` is the JSON data of `value`."""
    if isinstance(value, RootModel):
        yield from _dropped(value.root, plain, again, path)
    elif isinstance(plain, dict) and isinstance(again, dict):
        config: Any = getattr(value, "model_config", None) or getattr(value, "__pydantic_config__", None) or {}
        if (isinstance(value, BaseModel) or is_dataclass(value)) and config.get("extra") != "ignore":
            yield from (path + name for name in plain if name not in again)
        for name, part in _parts(value, again).items():
            if name in plain and name in again:
                yield from _dropped(part, plain[name], again[name], f"{path}{name}.")
    elif isinstance(value, (list, tuple, deque)) and isinstance(plain, list) and isinstance(again, list):
        for index, (part, old, new) in enumerate(zip(value, plain, again, strict=False)):
            yield from _dropped(part, old, new, f"{path}{index}.")


def _settled(value: Any, plain: Any) -> Any:
    """`plain`, the JSON data of `value`, with its sets sorted.

    Raises:
        ValueError: A number of `value` is infinite or NaN, of which pydantic may have made null.
    """
    if isinstance(value, float):
        if not math.isfinite(value) and not isinstance(plain, str):
            raise ValueError(f"{value} is not a number that JSON has; use None or a text for it")
        return plain
    if isinstance(value, RootModel):
        return _settled(value.root, plain)
    if isinstance(plain, dict):
        parts = _parts(value, plain)
        return {name: _settled(parts[name], item) if name in parts else item for name, item in plain.items()}
    if isinstance(plain, list) and isinstance(value, (list, tuple, set, frozenset, deque)) and len(plain) == len(value):
        items = list(map(_settled, value, plain))
        return sorted(items, key=canonical_json) if isinstance(value, (set, frozenset)) else items
    return plain


def _parts(value: Any, plain: dict[str, Any]) -> dict[str, Any]:
    """What each name of `plain` was written from."""
    if isinstance(value, Mapping):
        return dict(zip(plain, value.values(), strict=True)) if len(plain) == len(value) else {}
    if isinstance(value, BaseModel):
        return {**value.__dict__, **(value.__pydantic_extra__ or {})}
    return vars(value) if is_dataclass(value) and hasattr(value, "__dict__") else {}


def explain(error: ValidationError, whole: str) -> str:
    """What does not fit, in one line, for models and dead letters.

    Args:
        error: The error.
        whole: What to call the value when the error is about all of it.
    """
    return printable("; ".join(f"{'.'.join(map(str, item['loc'])) or whole}: {item['msg']}" for item in error.errors()))


def printable(text: str) -> str:
    """`text` with half surrogate pairs, which neither JSON nor databases hold, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def told(error: BaseException) -> str:
    """What an error says, fit to be recorded whatever its `__str__` does."""
    try:
        return printable(str(error))
    except BaseException as broken:
        return f"(its text cannot be had: {type(broken).__name__})"


def named(error: BaseException) -> str:
    """An error with its type, fit to be recorded."""
    return f"{type(error).__name__}: {told(error)}"


def shown(value: Any, limit: int = 200) -> str:
    """The beginning of the `repr` of a value, fit to be recorded whatever its `__repr__` does."""
    try:
        text = repr(value)
    except BaseException as broken:
        text = f"<{type(value).__name__}, whose repr raised {type(broken).__name__}>"
    return printable(text if len(text) <= limit else f"{text[:limit]}...")


def digest(*parts: str) -> str:
    """SHA-256 over the parts, each with its length so that no two lists of parts run together; 32 hex digits."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        hasher.update(len(data).to_bytes(8, "big"))
        hasher.update(data)
    return hasher.hexdigest()[:32]


def key_text(key: Any) -> str:
    """The text under which a Beam key stands in the ledger; keys of different types never share one.

    Raises:
        ValueError: The key holds something that JSON cannot.
    """
    return canonical_json(_mark_bytes(key))


def key_of(text: str) -> Any:
    """The key that `key_text` wrote; a tuple comes back as one, since Beam's keys can be hashed."""
    return _unmark(json.loads(text))


def _mark_bytes(key: Any) -> Any:
    if isinstance(key, bytes):
        return {"bytes": base64.b64encode(key).decode("ascii")}
    if isinstance(key, tuple):
        return [_mark_bytes(part) for part in key]
    if not isinstance(key, (str, int, float, type(None))):
        raise ValueError(f"a key is a text, a number, bytes or a tuple of these, not {key!r}")  # noqa: TRY004
    return key


def _unmark(value: Any) -> Any:
    if isinstance(value, dict):
        return base64.b64decode(value["bytes"])
    return tuple(map(_unmark, value)) if isinstance(value, list) else value


@lru_cache(maxsize=1024)
def _cached_adapter(type_: Any) -> TypeAdapter[Any]:
    return TypeAdapter(type_)


def adapter(type_: Any) -> TypeAdapter[Any]:
    """The pydantic adapter of a type; building one is slow, so they are shared."""
    try:
        return _cached_adapter(type_)
    except TypeError:  # unhashable annotations
        return TypeAdapter(type_)
