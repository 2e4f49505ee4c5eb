"""JSON schemas in the form that chat servers accept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from beam_agents.messages import OutputSpec

_WRAPPED = "answer"

# What OpenAI documents for `strict`, beside the keywords that are handled one by one below.
_STRICT_KEYWORDS = frozenset(
    [
        *("type", "description", "enum", "const", "$ref", "minItems", "maxItems", "multipleOf"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    ]
)
_STRICT_FORMATS = frozenset(["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"])
_ANNOTATIONS = frozenset({"title", "default", "examples", "discriminator", "deprecated"})


@dataclass(frozen=True)
class AnswerSchema:
    """The schema of an answer as it is sent, and the way back."""

    schema: dict[str, Any]
    strict: bool
    wrapped: bool
    """Servers want an object; any other answer is sent as the only field of one."""

    @staticmethod
    def of(output: OutputSpec) -> AnswerSchema:
        """The schema to send for an output."""
        schema, wrapped = output.json_schema, output.json_schema.get("type") != "object"
        if wrapped:
            inner = {name: value for name, value in schema.items() if name != "$defs"}
            schema = {
                "type": "object",
                "properties": {_WRAPPED: inner},
                "required": [_WRAPPED],
                "additionalProperties": False,
            }
            if "$defs" in output.json_schema:
                schema["$defs"] = output.json_schema["$defs"]
        narrowed = strict_schema(schema, may_require=True)
        return AnswerSchema(narrowed or schema, narrowed is not None, wrapped)

    def read(self, text: str) -> str:
        """The answer's text as the output's own schema has it; text of another form is left alone."""
        if not self.wrapped:
            return text
        try:
            value = json.loads(text)
        except ValueError:
            return text
        if not isinstance(value, dict) or value.keys() != {_WRAPPED}:
            return text
        return json.dumps(value[_WRAPPED], ensure_ascii=False)


def strict_schema(schema: dict[str, Any], *, may_require: bool) -> dict[str, Any] | None:
    """The schema in the subset of OpenAI's `strict`, or `None` where that cannot say the same.

    Whatever fits the returned schema fits `schema`; annotations are lost.

    Args:
        schema: A JSON schema, an object at the top.
        may_require: Whether fields that may be left out may become required.
    """
    try:
        return _strict(schema, may_require)
    except _NotStrict:
        return None


class _NotStrict(Exception):
    """The schema says something that `strict` has no words for."""


def _strict(schema: Any, may_require: bool) -> dict[str, Any]:
    if not isinstance(schema, dict):
        raise _NotStrict
    strict: dict[str, Any] = {}
    for name, value in schema.items():
        if name in _STRICT_KEYWORDS or _strict_text(name, value):
            strict[name] = value
        elif name in ("anyOf", "oneOf"):
            strict["anyOf"] = [_strict(variant, may_require) for variant in value]
        elif name == "items":
            strict[name] = _strict(value, may_require)
        elif name in ("properties", "$defs"):
            strict[name] = {key: _strict(inner, may_require) for key, inner in value.items()}
        elif name == "additionalProperties" and value is False:
            pass
        elif name not in _ANNOTATIONS and name != "required":
            raise _NotStrict
    if "$ref" in strict:
        strict.pop("description", None)  # nothing may stand beside a reference
        if strict.keys() - {"$ref", "$defs"}:
            raise _NotStrict
    elif strict.get("type") == "object":
        properties = strict.get("properties")
        required = schema.get("required", [])
        if properties is None or not (may_require or set(properties) <= set(required)):
            raise _NotStrict
        strict["required"] = list(properties)
        strict["additionalProperties"] = False
    elif not strict.keys() & {"type", "anyOf", "enum", "const"} or (
        strict.get("type") == "array" and "items" not in strict
    ):
        raise _NotStrict
    return strict


def _strict_text(keyword: str, value: Any) -> bool:
    if keyword == "pattern":
        return "(?" not in value  # look-around is refused
    return keyword == "format" and value in _STRICT_FORMATS
