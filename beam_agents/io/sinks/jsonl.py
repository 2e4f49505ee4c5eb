"""`WriteJsonLines`: results as lines of files, each in one file, also after a restart."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.pvalue import PCollection, TaggedOutput
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, AfterWatermark
from apache_beam.transforms.window import FixedWindows, GlobalWindows, IntervalWindow

from beam_agents.codec import canonical_json, key_text
from beam_agents.errors import ConfigurationError
from beam_agents.io.files import shard_of
from beam_agents.io.sinks.outgoing import UNDELIVERED, identify, pair_of, typed_undelivered, undelivered

_LINES: Final = "lines"

Line = Callable[[Any, Any], Any]
"""A function of key and value: what stands in the line, as JSON."""


class WriteJsonLines(beam.PTransform[Any, Any]):
    """Writes the values of a PCollection of (key, value) to files in a folder, a line of JSON each.

    On unbounded input there is a file for each span of event time and each shard, written when the watermark has passed
    the span. Its name says the span, and it always has all lines of it: when a job is restored to a checkpoint or
    values come late, the file is replaced as a whole, so that no value stands twice. A file appears at once and
    complete. Bounded input makes one file for each shard.

    Args:
        folder: Made if it is missing. Local paths are made absolute; `gs://` works where Beam has it installed.
        every: The span of event time of a file; for unbounded input.
        lateness: How late a value may be. Lines are kept in the runner's state for so long, later values are dropped.
        shards: Over how many files, and workers, the keys of a span are spread. All lines of a file are in memory
            while it is written.
        prefix: How names of files begin.
        line: What stands in a line: a function of key and value. By default an object with `key`, `value` and, for
            outputs of `RunAgent`, `id` and `kind`.

    Returns:
        (key, `Undelivered`) for each value that is no JSON.

    Raises:
        ConfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every: timedelta = timedelta(minutes=1),
        lateness: timedelta = timedelta(hours=1),
        shards: int = 1,
        prefix: str = "results",
        line: Line | None = None,
    ) -> None:
        super().__init__()
        if every < timedelta(seconds=1) or every % timedelta(seconds=1):
            raise ConfigurationError(f"WriteJsonLines(every={every!r}) must be whole seconds, one or more")
        if lateness < timedelta(0):
            raise ConfigurationError(f"WriteJsonLines(lateness={lateness!r}) must not be negative")
        if shards < 1:
            raise ConfigurationError(f"WriteJsonLines(shards={shards!r}) must be 1 or more")
        if not prefix or "/" in prefix or prefix.startswith("."):
            raise ConfigurationError(f"WriteJsonLines(prefix={prefix!r}) must be the beginning of a file's name")
        if line is not None and not callable(line):
            raise ConfigurationError(f"WriteJsonLines(line={line!r}) must be a function of key and value")
        text = str(folder)
        self._folder = text if "://" in text else str(Path(text).absolute())
        self._every = every.total_seconds()
        self._lateness = lateness.total_seconds()
        self._shards = shards
        self._prefix = prefix
        self._line = line or _default_line

    def display_data(self) -> dict[str, Any]:
        """What a runner shows of the transform."""
        return {"folder": self._folder, "every": self._every, "shards": self._shards}

    def expand(self, pcoll: PCollection[Any]) -> PCollection[Any]:
        """Builds the stages."""
        encoded = pcoll | "Encode" >> beam.ParDo(_Encode(self._line, self._shards)).with_outputs(
            UNDELIVERED, main=_LINES
        )
        undelivered = typed_undelivered(encoded[UNDELIVERED])
        lines = encoded[_LINES]
        lines.element_type = beam.typehints.Tuple[int, beam.typehints.Tuple[int, str]]
        if pcoll.is_bounded:
            windowing = beam.WindowInto(GlobalWindows())
        else:
            windowing = beam.WindowInto(
                FixedWindows(self._every),
                trigger=AfterWatermark(late=AfterCount(1)),
                accumulation_mode=AccumulationMode.ACCUMULATING,
                allowed_lateness=self._lateness,
            )
        (
            lines
            | "Span" >> windowing
            | "Group" >> beam.GroupByKey()
            | "Write" >> beam.ParDo(_WriteFile(self._folder, self._prefix, self._shards))
        )
        return undelivered


class _Encode(beam.DoFn):
    """From (key, value) to (shard, (microseconds since 1970, line))."""

    def __init__(self, line: Line, shards: int) -> None:
        self._line = line
        self._shards = shards

    def process(self, element: Any, timestamp: Any = beam.DoFn.TimestampParam) -> Iterable[Any]:
        """Emits it, or what was wrong."""
        key, value = pair_of(element, "WriteJsonLines")
        try:
            text = canonical_json(self._line(key, value))
            shard = shard_of(key_text(key), self._shards)
        except Exception as error:  # the user's function may raise anything, and the stream has to go on
            yield TaggedOutput(UNDELIVERED, (key, undelivered(value, error)))
        else:
            yield shard, (timestamp.micros, text)


class _WriteFile(beam.DoFn):
    """Writes the lines of a span and shard, in the order of their time."""

    def __init__(self, folder: str, prefix: str, shards: int) -> None:
        self._folder = folder
        self._prefix = prefix
        self._shards = shards

    def process(self, element: tuple[int, Iterable[tuple[int, str]]], window: Any = beam.DoFn.WindowParam) -> None:
        """Replaces the file."""
        shard, lines = element
        name = "-".join([self._prefix, *_span(window), f"{shard:03d}-of-{self._shards:03d}.jsonl"])
        path = FileSystems.join(self._folder, name)
        scratch = FileSystems.join(self._folder, f".{name}.{uuid.uuid4().hex}")
        if not FileSystems.exists(self._folder):
            _make(self._folder)
        with FileSystems.create(scratch, "application/jsonl", CompressionTypes.UNCOMPRESSED) as file:
            for _, line in sorted(lines):
                file.write(line.encode() + b"\n")
        FileSystems.rename([scratch], [path])


def _make(folder: str) -> None:
    if "://" not in folder:
        Path(folder).mkdir(parents=True, exist_ok=True)


def _span(window: Any) -> list[str]:
    if not isinstance(window, IntervalWindow):
        return []
    return [datetime.fromtimestamp(float(end), UTC).strftime("%Y%m%dT%H%M%SZ") for end in (window.start, window.end)]


def _default_line(key: Any, value: Any) -> Any:
    try:
        identity = identify(value, None)
    except ValueError:
        return {"key": key, "value": value}
    return {"key": key, "id": identity.id, "kind": identity.kind, "value": value}
