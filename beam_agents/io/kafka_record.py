"""A record of Kafka, and the keyed event that is made of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from beam_agents.codec import explain, named, told
from beam_agents.errors import ConfigurationError
from beam_agents.events import FailureReason, Identified, RunFailure
from beam_agents.template import field_names, members

_LATEST_MILLISECONDS = 253_402_300_799_999
"""The end of the year 9999, the last that Python has."""


class KafkaRecord(BaseModel):
    """A record as it stands in a topic."""

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    topic: str
    partition: int
    offset: int
    timestamp: datetime
    """When it was made, or came to the broker: what the topic's `message.timestamp.type` says. In UTC."""
    key: bytes | None = None
    value: bytes | None = None
    """`None` is a tombstone."""
    headers: tuple[tuple[str, bytes | None], ...] = ()

    @property
    def id(self) -> str:
        """Topic, partition and offset, as `payments-3-1042`: unique in a cluster, and the same whenever it is read."""
        return f"{self.topic}-{self.partition}-{self.offset}"

    def header(self, name: str) -> bytes | None:
        """The last header of a name."""
        return next((value for key, value in reversed(self.headers) if key == name), None)


@dataclass(frozen=True)
class Header:
    """The header that has a record's id.

    Args:
        name: The header's name; its value is UTF-8.
    """

    name: str


Part = str | Callable[[Any], Any]
"""A field of the value, or a function of it."""


@dataclass(frozen=True)
class Reading:
    """What a `RecordFormat` reads from a record."""

    value: Any
    """The event."""
    field: Callable[[str], Any]
    """Looks up what `key=` and `event_id=` name; raises `ValueError` if the record does not tell it."""
    key: str | bytes | None
    """The event's key when nothing else is said, bytes in UTF-8."""
    id: str | None
    """The event's id when nothing else is said; `None` for the record's coordinates."""


class RecordFormat(ABC):
    """A form of records that holds an event together with what is told of it: a `value=` of `ReadKafka`."""

    @property
    @abstractmethod
    def element(self) -> Any:
        """The type of the events."""

    @property
    @abstractmethod
    def rows(self) -> tuple[Any, ...]:
        """The types whose fields `key=` and `event_id=` may name."""

    @abstractmethod
    def read(self, record: KafkaRecord) -> Reading | None:
        """Reads a record; `None` if it is no event and has nothing wrong.

        Raises:
            ValueError: It is not of this form; the message says what to change.
        """


class Decoder:
    """Makes (key, `Identified`) of a record, or a `RunFailure` that has its coordinates.

    Args:
        value: What the value is: `bytes`, `str`, `KafkaRecord` for all of the record, a `RecordFormat`, or anything
            that pydantic reads from JSON.
        key: The event's key: by default the record's, as a text; or a part of the value.
        event_id: The event's id: by default the record's coordinates; or a header, or a part of the value.

    Raises:
        ConfigurationError: The value has no such field, or its type cannot be read.
    """

    def __init__(self, value: Any, key: Part | None, event_id: Header | Part | None) -> None:
        self._value = value
        self._key = key
        self._event_id = event_id
        self._adapter: TypeAdapter[Any] | None = None
        for name, part in (("key", key), ("event_id", event_id)):
            if isinstance(part, str):
                self._check_field(name, part)
            elif not (part is None or callable(part) or (name == "event_id" and isinstance(part, Header))):
                raise ConfigurationError(
                    f"ReadKafka({name}={part!r}) must be a field of the value or a function of it"
                    + (", or a Header" if name == "event_id" else "")
                )
        if value is not KafkaRecord and not isinstance(value, RecordFormat):
            try:
                self._read(b"")
            except ValidationError:
                pass  # an empty value is none; the type as such can be read
            except Exception as error:
                raise ConfigurationError(f"ReadKafka(value={value!r}) cannot be read by pydantic: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_adapter": None}

    @property
    def element(self) -> Any:
        """The type of the events."""
        return self._value.element if isinstance(self._value, RecordFormat) else self._value

    def __call__(self, record: KafkaRecord) -> tuple[str, Identified[Any]] | RunFailure[Any] | None:
        """The keyed event; whatever is wrong with the record is told and never raised.

        `None` for a record that by the `RecordFormat` is no event.
        """
        if record.value is None and self._value is not KafkaRecord and not isinstance(self._value, RecordFormat):
            return self._bad(record, FailureReason.INVALID_EVENT, "it is a tombstone: its value is null")
        try:
            reading = self._reading(record)
            if reading is None:
                return None
        except ValidationError as error:
            return self._bad(record, FailureReason.INVALID_EVENT, explain(error, "value"))
        except Exception as error:  # the user's validators may raise anything
            ours = isinstance(error, ValueError) and isinstance(self._value, RecordFormat)
            return self._bad(record, FailureReason.INVALID_EVENT, told(error) if ours else named(error))
        try:
            key = self._key_of(reading)
        except Exception as error:
            return self._bad(record, FailureReason.MISSING_KEY, f"key={self._key!r}: {named(error)}")
        try:
            id = self._id_of(record, reading)
        except Exception as error:
            return self._bad(record, FailureReason.MISSING_ID, f"event_id={self._event_id!r}: {named(error)}")
        return key, Identified(id=id, event=reading.value)

    def _reading(self, record: KafkaRecord) -> Reading | None:
        if isinstance(self._value, RecordFormat):
            return self._value.read(record)
        value = record if self._value is KafkaRecord else self._read(record.value or b"")
        return Reading(value, partial(part_of, value), record.key, None)

    def _read(self, raw: bytes) -> Any:
        if self._value is bytes:
            return raw
        if self._value is str:
            return raw.decode()
        if self._adapter is None:
            self._adapter = TypeAdapter(self._value)
        return self._adapter.validate_json(raw)

    def _key_of(self, reading: Reading) -> str:
        if self._key is not None:
            return text_of(self._key(reading.value) if callable(self._key) else reading.field(self._key))
        if reading.key is None:
            raise ValueError("the record has no key; say with key=... which part of the value it is")
        return reading.key.decode() if isinstance(reading.key, bytes) else reading.key

    def _id_of(self, record: KafkaRecord, reading: Reading) -> str:
        if self._event_id is None:
            return record.id if reading.id is None else reading.id
        if not isinstance(self._event_id, Header):
            part = self._event_id
            return text_of(part(reading.value) if callable(part) else reading.field(part))
        found = record.header(self._event_id.name)
        if not found:
            raise ValueError("the record has no such header, or an empty one")
        return found.decode()

    def _bad(self, record: KafkaRecord, reason: FailureReason, why: str) -> RunFailure[Any]:
        raw = None if record.value is None else record.value.decode("utf-8", "backslashreplace")
        # Who waits for an answer under the id of a header is told that there will be none.
        told = record.header(self._event_id.name) if isinstance(self._event_id, Header) else None
        run_id = told.decode("utf-8", "backslashreplace") if told else None
        return RunFailure(reason=reason, message=f"record {record.id}: {why}", run_id=run_id, raw=raw)

    def _check_field(self, name: str, field: str) -> None:
        rows = self._value.rows if isinstance(self._value, RecordFormat) else (self._value,)
        for member in (member for row in rows for member in members(row)):
            names = [] if member in (bytes, str) else field_names(member)
            if names is not None and field not in names:
                raise ConfigurationError(
                    f"ReadKafka({name}={field!r}): {getattr(member, '__name__', member)} has no such field, it has: "
                    f"{', '.join(names) or 'none'}; name one of them, or give a function of the value"
                )


def record_of(message: Any) -> KafkaRecord:
    """A message of confluent-kafka as a record."""
    _, milliseconds = message.timestamp()
    return KafkaRecord.model_construct(
        topic=message.topic(),
        partition=message.partition(),
        offset=message.offset(),
        # Producers may say what they like, such as microseconds.
        timestamp=datetime.fromtimestamp(min(max(0, milliseconds), _LATEST_MILLISECONDS) / 1000, UTC),
        key=message.key(),
        value=message.value(),
        headers=tuple((name, value) for name, value in message.headers() or ()),
    )


def part_of(value: Any, part: Part) -> Any:
    """A field of a value, or what a function says of it."""
    if callable(part):
        return part(value)
    return value.get(part) if isinstance(value, dict) else getattr(value, part, None)


def text_of(found: Any) -> str:
    """What may be a key or an id, as a text.

    Raises:
        Exception: It is missing, or neither a text nor a whole number.
    """
    if found is None or found == "":
        raise ValueError("the value has none")
    if isinstance(found, bool) or not isinstance(found, (str, int)):
        raise TypeError(f"it must be a text or a whole number, not {found!r}")
    return str(found)
