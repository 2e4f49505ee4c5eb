"""Example values for JSON schemas: the same value every time, small, and valid."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from beam_agents.errors import ConfigurationError
from beam_agents.testing.patterns import text_for

_FORMATS = {
    "date-time": "2026-01-02T03:04:05Z",
    "date": "2026-01-02",
    "time": "03:04:05Z",
    "duration": "PT1M",
    "email": "someone@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "00000000-0000-4000-8000-000000000001",
    "uri": "https://example.com/",
    "binary": "",
    "json-string": "{}",
}


def example(schema: dict[str, Any]) -> Any:
    """A value that fits a JSON schema: required fields only, the first variant, numbers near 1.

    Raises:
        ConfigurationError: The schema asks for something that is not known here, or for nothing that can be.
    """
    try:
        return _Examples(schema).of(schema, 0, ())
    except _Endless as error:
        raise ConfigurationError(f"no example: the schema refers to itself without end at {error}") from None


class _Endless(Exception):
    """A reference leads back to itself, so this variant has no finite value."""


class _Examples:
    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._makers: dict[str, Callable[[dict[str, Any], int, tuple[str, ...]], Any]] = {
            "object": self._object,
            "array": self._array,
            "string": _string,
            "integer": _number,
            "number": _number,
            "boolean": lambda schema, index, path: index % 2 == 0,
            "null": lambda schema, index, path: None,
        }

    def of(self, schema: Any, index: int, path: tuple[str, ...]) -> Any:
        """A value for a schema; another `index` gives another value where there is one. `path` has open references."""
        if schema is True or schema == {}:
            return "example"
        if "$ref" in schema:
            return self._referred(schema, index, path)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return schema["enum"][index % len(schema["enum"])]
        for variants in ("anyOf", "oneOf"):
            if variants in schema:
                return self._first(schema[variants], index, path)
        if "allOf" in schema:
            merged = {name: value for name, value in schema.items() if name != "allOf"}
            for part in schema["allOf"]:
                merged = _merge(merged, self._resolve(part["$ref"]) if "$ref" in part else part)
            return self.of(merged, index, path)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            return self._first([schema | {"type": one} for one in kind], index, path)
        if kind not in self._makers:
            raise ConfigurationError(f"no example: the type {kind!r} in {schema!r} is not known")
        return self._makers[kind](schema, index, path)

    def _referred(self, schema: dict[str, Any], index: int, path: tuple[str, ...]) -> Any:
        reference = schema["$ref"]
        if reference in path:
            raise _Endless(reference)
        return self.of(self._resolve(reference), index, (*path, reference))

    def _resolve(self, reference: str) -> dict[str, Any]:
        found: Any = self._root
        for part in reference.removeprefix("#").strip("/").split("/") if reference != "#" else ():
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            raise ConfigurationError(f"no example: the reference {reference!r} leads nowhere in the schema")
        return found

    def _first(self, variants: list[Any], index: int, path: tuple[str, ...]) -> Any:
        for variant in variants:
            try:
                return self.of(variant, index, path)
            except _Endless as error:
                endless = error
        raise endless

    def _object(self, schema: dict[str, Any], index: int, path: tuple[str, ...]) -> dict[str, Any]:
        properties = schema.get("properties", {})
        made = {name: self.of(properties.get(name, True), index, path) for name in schema.get("required", ())}
        other = schema.get("additionalProperties", True)
        for number in range(schema.get("minProperties", 0) - len(made)):
            made[f"key{number + 1}"] = self.of(other, index + number, path)
        return made

    def _array(self, schema: dict[str, Any], index: int, path: tuple[str, ...]) -> list[Any]:
        made = [self.of(item, index, path) for item in schema.get("prefixItems", ())]
        items = schema.get("items", not made)
        fewest = schema.get("minItems", 0)
        wanted = max(fewest, min(1, schema.get("maxItems", 1))) if items else len(made)
        try:
            made.extend(self.of(items, index + number, path) for number in range(len(made), wanted))
        except _Endless:
            if fewest > len(made):
                raise
        return made


def _string(schema: dict[str, Any], index: int, path: tuple[str, ...]) -> str:
    if "pattern" in schema:
        return text_for(schema["pattern"], at_least=schema.get("minLength", 0))
    if schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]]
    text = f"example{index + 1}" if index else "example"
    longest = schema.get("maxLength", math.inf)
    if len(text) > longest:
        text = text[len(text) - int(longest) :]  # the end differs
    return text.ljust(schema.get("minLength", 0), "x")


def _number(schema: dict[str, Any], index: int, path: tuple[str, ...]) -> int | float:
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    above, below = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
    floor, ceiling = max(low, above), min(high, below)
    step = schema.get("multipleOf", 1)
    nearest = math.floor(min(max(1, floor), ceiling) / step)
    offsets = sorted(range(-index - 2, index + 3), key=lambda offset: (abs(offset), -offset))
    candidates: list[int | float] = [(nearest + offset) * step for offset in offsets]
    if schema["type"] == "number" and "multipleOf" not in schema and math.isfinite(floor + ceiling):
        candidates.append((floor + ceiling) / 2)
    fitting = [value for value in candidates if low <= value <= high and above < value < below]
    if not fitting:
        raise ConfigurationError(f"no example: no number is known for {schema!r}")
    return fitting[index % len(fitting)]


def _merge(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    merged = one | other
    if "properties" in one and "properties" in other:
        merged["properties"] = one["properties"] | other["properties"]
    if "required" in one and "required" in other:
        merged["required"] = list(dict.fromkeys([*one["required"], *other["required"]]))
    return merged
