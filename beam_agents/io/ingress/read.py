"""`ReadIngress`: the events that `beam-agents ingress` has stored in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import apache_beam as beam
from apache_beam.pvalue import PCollection, TaggedOutput
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner, SwitchingDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.typehints.native_type_compatibility import convert_to_beam_type
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from beam_agents.codec import explain, named
from beam_agents.errors import ConfigurationError
from beam_agents.events import FailureReason, Identified, RunFailure
from beam_agents.io.files import Line, ReadLines
from beam_agents.transforms.coders import register

_BAD: Final = "bad"
_EVENTS: Final = "events"
PATTERN: Final = "events-*.jsonl"


class IngressRead(NamedTuple):
    """The outputs of `ReadIngress`."""

    events: PCollection[Any]
    """(key, `Identified`), for `RunAgent` without `event_id`."""
    bad: PCollection[Any]
    """(None, `RunFailure`), to be flattened with an agent's `failures`: what does not fit `value` any more, and files
    that are damaged."""


class ReadIngress(beam.PTransform[Any, Any]):
    """Emits each event that an HTTP door has stored in a folder once, under the id that its sender gave it, and goes on
    with what comes, for ever. `ReadLines` says what that means for files and time.

    An event that was sent twice stands there twice with one id; `RunAgent` decides it once.

    DirectRunner has no unbounded sources: there it reads what is in the folder when it starts, and ends.

    Args:
        folder: The `--store` of `beam-agents ingress`.
        value: What an event is: what pydantic reads from JSON.
        shards: As for `ReadLines`.

    Returns:
        An `IngressRead`.

    Raises:
        ConfigurationError: An argument cannot work.
    """

    def __init__(self, folder: str | Path, *, value: Any, shards: int = 1) -> None:
        super().__init__()
        try:
            TypeAdapter(value)
        except Exception as error:
            raise ConfigurationError(f"ReadIngress(value={value!r}) cannot be read by pydantic: {error}") from error
        self._folder = Path(folder).absolute()
        self._value = value
        self._lines = ReadLines(self._folder / PATTERN, shards=shards)

    def expand(self, begin: Any) -> IngressRead:
        """Builds the stages."""
        pipeline = begin.pipeline
        identified = Identified[self._value]  # type: ignore[name-defined]
        register(Line, RunFailure, identified)
        lines_bad = None
        if isinstance(pipeline.runner, (BundleBasedDirectRunner, FnApiRunner, SwitchingDirectRunner)):
            lines = pipeline | beam.Create([str(self._folder)], reshuffle=False) | "Lines" >> beam.ParDo(_LinesDoFn())
            lines.element_type = Line
        else:
            lines, lines_bad = pipeline | "Lines" >> self._lines
        read = lines | "Decode" >> beam.ParDo(_DecodeDoFn(self._value)).with_outputs(_BAD, main=_EVENTS)
        events, bad = read[_EVENTS], read[_BAD]
        events.element_type = convert_to_beam_type(tuple[str, identified])
        bad.element_type = convert_to_beam_type(tuple[None, RunFailure])  # type: ignore[type-arg]
        if lines_bad is not None:
            bad = (bad, lines_bad) | "Bad" >> beam.Flatten()
        return IngressRead(events, bad)


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: str
    key: str
    event: str


class _LinesDoFn(beam.DoFn):
    def process(self, folder: str) -> Iterator[Line]:
        for path in sorted(Path(folder).glob(PATTERN)):
            offset = 0
            with path.open("rb") as file:
                for raw in file:
                    if raw.endswith(b"\n"):
                        yield Line(id=f"{path.name}:{offset}", text=raw[:-1].decode("utf-8", "backslashreplace"))
                    offset += len(raw)


class _DecodeDoFn(beam.DoFn):
    def __init__(self, value: Any) -> None:
        self._value = value

    def setup(self) -> None:
        self._adapter: TypeAdapter[Any] = TypeAdapter(self._value)

    def process(self, line: Line) -> Iterator[Any]:
        id: str | None = None
        raw = line.text
        try:
            stored = _Stored.model_validate_json(line.text)
            id, raw = stored.id, stored.event
            yield stored.key, Identified(id=id, event=self._adapter.validate_json(stored.event))
        except ValidationError as error:
            yield self._bad(line, explain(error, "event"), id, raw)
        except Exception as error:  # the user's validators may raise anything
            yield self._bad(line, named(error), id, raw)

    def _bad(self, line: Line, why: str, id: str | None, raw: str) -> TaggedOutput:
        message = f"{line.id}: {why}"
        failure: RunFailure[Any] = RunFailure(reason=FailureReason.INVALID_EVENT, message=message, run_id=id, raw=raw)
        return TaggedOutput(_BAD, (None, failure))
