"""The record that a call of `publish` or `request` writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from beam_agents.codec import canonical_json, to_json_value
from beam_agents.toolkit.declared import Context, as_text


class Published(BaseModel):
    """Where a published event stands."""

    model_config = ConfigDict(frozen=True)

    topic: str
    partition: int
    offset: int


class Record(NamedTuple):
    """What is written."""

    topic: str
    key: bytes | None
    value: bytes
    headers: list[tuple[str, str | bytes | None]]


@dataclass(frozen=True)
class Event:
    """How a call's arguments become a record."""

    topic: str
    key: str | None
    """The parameter that is the key; `None` for the run's key."""
    parameters: tuple[str, ...]
    body: str | None
    """The parameter whose value is all of it."""

    def record(self, ctx: Context, values: dict[str, Any], **headers: str) -> Record:
        """The record of one call, the same in each of its attempts."""
        fields = {name: to_json_value(values[name]) for name in self.parameters}
        value = canonical_json(fields[self.body] if self.body is not None else fields)
        key = ctx.key if self.key is None else values[self.key]
        raw = key if key is None or isinstance(key, bytes) else as_text(key).encode()
        named = {"id": ctx.idempotency_key, "run_id": ctx.run_id, **headers}
        return Record(self.topic, raw, value.encode(), list(named.items()))
