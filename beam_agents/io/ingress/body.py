"""From a request's body to events that fit the agent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect, Request

from beam_agents.codec import named
from beam_agents.errors import ConfigurationError
from beam_agents.io.ingress.problems import Problem
from beam_agents.template import field_names, members

LONGEST_NAME = 200
"""Characters of an id or a key."""

_BATCHES = ("application/x-ndjson", "application/jsonl")


class Accepted(NamedTuple):
    """An event that is to be stored."""

    id: str
    key: str
    event: str
    """The JSON text as it came: no digit of a number is lost."""


class Events:
    """Reads events, and tells what does not fit.

    Args:
        type: What pydantic reads an event as: the agent's `event_type`.
        key: The event's field that is the agent's key.
        event_id: The field that is the event's id, instead of a header.
        id_header: The header that is.
        max_batch: The most events in one request.

    Raises:
        ConfigurationError: The type has no such field.
    """

    def __init__(self, type: Any, *, key: str, event_id: str | None, id_header: str, max_batch: int) -> None:
        for name, field in (("key", key), ("event_id", event_id)):
            for member in members(type):
                fields = field_names(member)
                if field is not None and fields is not None and field not in fields:
                    raise ConfigurationError(
                        f"{name}={field!r}: {member.__name__} has no such field, it has: {', '.join(fields) or 'none'}"
                    )
        self.adapter: TypeAdapter[Any] = TypeAdapter(type)
        self._key = key
        self._event_id = event_id
        self.id_header = None if event_id else id_header
        """The header with the event's id, if it is no field."""
        self._max_batch = max_batch

    def read(self, request: Request, body: bytes) -> tuple[list[Accepted], bool]:
        """The events of a request, and whether they came as a batch.

        Raises:
            Problem: They cannot be taken; none of them is.
        """
        kind = _kind(request)
        try:
            text = body.decode()
        except UnicodeDecodeError as error:
            raise Problem(400, f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
        if kind in _BATCHES:
            lines = [line.strip("\r") for line in text.split("\n")]
            for number, line in enumerate(lines, 1):
                if line.strip(" \t"):
                    _parse(line, f"line {number}: ")
            texts, batch = [line for line in lines if line.strip(" \t")], True
        elif text.lstrip(" \t\r\n").startswith("["):
            _parse(text, "")
            texts, batch = list(_elements(text)), True
        else:
            _parse(text, "")
            texts, batch = [text.strip(" \t\r\n")], False
        if not texts:
            raise Problem(422, "the batch is empty")
        if len(texts) > self._max_batch:
            raise Problem(413, f"a batch has at most {self._max_batch} events, not {len(texts)}")
        given = self._given(request)
        return self._accepted(texts, given, batch), batch

    def _accepted(self, texts: list[str], given: str | None, batch: bool) -> list[Accepted]:
        errors: list[dict[str, Any]] = []
        found: list[Accepted] = []
        for number, text in enumerate(texts):
            place = [number] if batch else []
            try:
                event = self.adapter.validate_json(text)
            except ValidationError as error:
                told = error.errors(include_url=False, include_context=False, include_input=False)
                errors += [{**one, "loc": [*place, *one["loc"]]} for one in told]
                continue
            except Exception as error:  # the user's validators may raise anything
                errors.append({"loc": place, "msg": named(error), "type": "value_error"})
                continue
            own = f"{given}-{number}" if batch and given else given
            try:
                key = _name(_field(event, self._key), f"field {self._key!r}")
                id = _name(_field(event, self._event_id), f"field {self._event_id!r}") if self._event_id else own
            except ValueError as error:
                errors.append({"loc": place, "msg": str(error), "type": "value_error"})
                continue
            if id is not None:
                found.append(Accepted(id, key, text))
        if errors:
            raise Problem(422, "what was sent does not fit; nothing of it is stored", errors=errors)
        if len(found) < len(texts):
            raise Problem(
                400,
                f"send {self.id_header}: the id of the event, the same if it is sent again. "
                "For a batch, its events are numbered behind it",
            )
        return found

    def _given(self, request: Request) -> str | None:
        if self.id_header is None or not (values := request.headers.getlist(self.id_header)):
            return None
        if len(values) > 1:
            raise Problem(400, f"{self.id_header} was sent {len(values)} times")
        try:
            return _name(values[0], self.id_header)
        except ValueError as error:
            raise Problem(400, str(error)) from error


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body.

    Raises:
        Problem: 413 or 415; before all of it was read.
    """
    _kind(request)
    too_large = Problem(413, f"a request has at most {max_bytes} bytes", headers={"Connection": "close"})
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > max_bytes:
        raise too_large
    parts, size = [], 0
    try:
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            if size > max_bytes:
                raise too_large
    except ClientDisconnect as error:
        raise Problem(400, "the request ended in its middle") from error
    return b"".join(parts)


def _kind(request: Request) -> str:
    kind, *parameters = (part.strip().lower() for part in request.headers.get("content-type", "").split(";"))
    charsets = [value.strip('"') for name, _, value in (p.partition("=") for p in parameters) if name == "charset"]
    if kind not in ("application/json", *_BATCHES) or any(charset not in ("utf-8", "utf8") for charset in charsets):
        raise Problem(415, f"send application/json in UTF-8, or {_BATCHES[0]} for a batch")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Problem(415, "send it without Content-Encoding")
    return kind


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError as error:
        raise Problem(400, f"{where}it is nested too deeply") from error
    except ValueError as error:
        raise Problem(400, f"{where}it is not JSON: {error}") from error


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


_SPACE = re.compile(r"[ \t\r\n]*")


def _elements(text: str) -> Iterator[str]:
    """The texts of the elements of an array that was parsed already."""
    decoder = json.JSONDecoder()
    at = _after_space(text, _after_space(text, 0) + 1)
    while text[at] != "]":
        _, end = decoder.raw_decode(text, at)
        yield text[at:end]
        at = _after_space(text, end)
        if text[at] == ",":
            at = _after_space(text, at + 1)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _field(event: Any, field: str) -> Any:
    return event.get(field) if isinstance(event, dict) else getattr(event, field, None)


def may_be_id(text: str) -> bool:
    """Whether an event can have this id."""
    # The number of an event of a batch stands behind the id that was given.
    return 1 <= len(text) <= LONGEST_NAME + 20 and text.isprintable() and text == text.strip()


def _name(value: Any, what: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"{what} must be a text or a whole number")  # noqa: TRY004
    text = str(value)
    if not 1 <= len(text) <= LONGEST_NAME or not text.isprintable() or text != text.strip():
        raise ValueError(f"{what} must have 1 to {LONGEST_NAME} printable characters, without spaces around them")
    return text
