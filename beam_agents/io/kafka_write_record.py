"""A record on its way to Kafka."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from beam_agents.codec import canonical_json, key_text
from beam_agents.io.files import shard_of
from beam_agents.io.sinks.outgoing import UNDELIVERED, Field, field_of, identify, pair_of, undelivered

_OVERHEAD_BYTES = 100
"""What Kafka adds to a record, and more."""


class Outgoing(NamedTuple):
    """A record that is to be written."""

    id: str
    """Unique among all that is written: 32 hex digits."""
    kind: str
    run_id: str | None
    key: bytes | None
    value: bytes | None

    def headers(self) -> list[tuple[str, str | bytes | None]]:
        """What consumers can tell records apart by."""
        headers: list[tuple[str, str | bytes | None]] = [("id", self.id), ("kind", self.kind)]
        return headers if self.run_id is None else [*headers, ("run_id", self.run_id)]

    @property
    def size(self) -> int:
        """Bytes, about as Kafka counts them."""
        names = len(self.id) + 4 * len(self.run_id or "")
        return len(self.key or b"") + len(self.value or b"") + names + _OVERHEAD_BYTES


Payload = Callable[[Any], Any]


class Encode(beam.DoFn):
    """From (key, value) to (shard, record as a plain tuple); what no record can be made of is tagged.

    Args:
        sink: Named in messages.
        id: What identifies a value.
        key: The record's key, if not the element's.
        value: What is written of a value, if not all of it.
        shards: Over how many shards the elements' keys are spread.
        max_bytes: The largest record.
    """

    def __init__(
        self, sink: str, id: Field | None, key: Field | None, value: Payload | None, shards: int, max_bytes: int
    ) -> None:
        self._sink = sink
        self._id = id
        self._key = key
        self._value = value
        self._shards = shards
        self._max_bytes = max_bytes

    def process(self, element: Any) -> Iterator[Any]:
        """Emits one of both."""
        key, value = pair_of(element, self._sink)
        id: str | None = None
        try:
            identity = identify(value, self._id)
            id = identity.digest(key)
            record = Outgoing(id, identity.kind, identity.run_id, self._key_of(key, value), self._value_of(value))
        except Exception as error:  # the user's functions may raise anything, and the stream has to go on
            yield TaggedOutput(UNDELIVERED, (key, undelivered(value, error, id=id)))
            return
        if record.size > self._max_bytes:
            why = f"the record has {record.size} bytes, and {self._sink} has max_bytes={self._max_bytes}"
            yield TaggedOutput(UNDELIVERED, (key, undelivered(value, why, id=id)))
            return
        yield shard_of(key_text(key), self._shards), tuple(record)

    def _key_of(self, key: Any, value: Any) -> bytes | None:
        own = key if self._key is None else field_of(value, self._key)
        return None if own is None else _bytes(own)

    def _value_of(self, value: Any) -> bytes | None:
        own = value if self._value is None else self._value(value)
        return None if own is None else _bytes(own)


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return (value if isinstance(value, str) else canonical_json(value)).encode()
