"""`ReadLines`: the lines of files that grow, as an unbounded stream whose ids are the same after any replay."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.io.filesystem import BeamIOError
from apache_beam.options.pipeline_options import DebugOptions
from apache_beam.pvalue import PCollection, TaggedOutput
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner, SwitchingDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.prism_runner import PrismRunner
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import TimestampedValue
from apache_beam.typehints.native_type_compatibility import convert_to_beam_type
from apache_beam.utils.timestamp import Timestamp
from pydantic import BaseModel, ConfigDict

from beam_agents.errors import ConfigurationError
from beam_agents.events import FailureReason, RunFailure
from beam_agents.io.tail import Found, Place, Position, Refused, read_piece
from beam_agents.stored import Stored
from beam_agents.transforms.coders import register
from beam_agents.transforms.winder import HOURLY, Winder

_LOG = logging.getLogger(__name__)

_BAD: Final = "bad"
_LINES: Final = "lines"

BUSY_SECONDS: Final = 0.05
"""Between two looks after one that found something."""
IDLE_SECONDS: Final = 0.5
"""The most between two looks; while nothing comes, the time doubles up to it."""


class Line(BaseModel):
    """A line of a file."""

    model_config = ConfigDict(frozen=True)

    id: str
    """The file's name and the byte at which the line begins, as `payments-01.jsonl:4096`."""
    text: str
    """Without the line's end."""


class LinesRead(NamedTuple):
    """The outputs of `ReadLines`."""

    lines: PCollection[Line]
    bad: PCollection[tuple[None, RunFailure[Any]]]
    """(None, `RunFailure`) with the reason `INVALID_EVENT`, to be flattened with an agent's `failures`: lines that are
    not UTF-8, and files that are not read any further."""


class ReadLines(beam.PTransform[Any, Any]):
    """Emits each complete line of some files once, and goes on with what is appended and with new files, for ever.

    Which lines were emitted is in the runner's checkpoint: after a restore, or from a savepoint, the stream goes on
    behind the last line that counted. A line's id depends on the file alone, so it is the same whenever the line is
    read, also by a new job that begins from the start; use it, or an id in the line, as the `event_id` of an agent.

    Files only grow. The last line waits for its newline. A file that shrank, or in which the bytes before the position
    are others, was replaced: it is left alone and named in `bad`, since its lines would have the ids of other lines;
    under a new name it is read from its beginning. So do not rotate by renaming: begin a new file with a new name.
    Empty lines are emitted like others. Compressed files are refused.

    Within a shard, files are read in the order of their names, each to its end; while the first has more to read, the
    next ones wait. A position is kept for each file that is there: move files away that are finished. (They are listed
    at each look too.) One that is gone for `forget_after` is forgotten; one that comes back later is read again, with
    the same ids.

    An element's time is when it was read, and the watermark follows the clock about a second behind, also while nothing
    comes: windows downstream are on time. An event's own time is in the past, so elements that are given it behind
    `ReadLines` are late, and windows drop them unless they allow it. Agents do not mind.

    Args:
        path: A folder (all files right in it but those whose name begins with a dot), a pattern of Beam's `FileSystems`
            (`/data/*.jsonl`; `**` goes down into folders) or one file. A path that is not there yet must be a pattern
            or end with a slash. Local paths are made absolute and must lead to the same files on each worker; `gs://`
            and the like work where Beam has them installed.
        shards: Over how many keys the files are spread. Each lists all files at each look. For use of several
            workers there have to be several times as many. Kept positions belong to it: a job that is resumed with
            another number reads files again, with the same ids.
        max_lines: The most lines that one look reads, so that bundles stay short.
        max_bytes: The same in bytes.
        forget_after: How long the position in a file that is gone is kept.

    Returns:
        A `LinesRead`.

    Raises:
        ConfigurationError: An argument is out of range, or the runner has no unbounded sources or no real time.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        shards: int = 1,
        max_lines: int = 1_000,
        max_bytes: int = 1_000_000,
        forget_after: timedelta = timedelta(days=1),
    ) -> None:
        super().__init__()
        for name, value in (("shards", shards), ("max_lines", max_lines), ("max_bytes", max_bytes)):
            if value < 1:
                raise ConfigurationError(f"ReadLines({name}={value!r}) must be 1 or more")
        if forget_after < timedelta(0):
            raise ConfigurationError(f"ReadLines(forget_after={forget_after!r}) must not be negative")
        self._shards = shards
        self._place = Place.of(path)
        self._read = ReadDoFn(self._place, shards, max_lines, max_bytes, forget_after.total_seconds())

    def display_data(self) -> dict[str, Any]:
        """What a runner shows of the transform."""
        return {"pattern": self._place.pattern, "shards": self._shards}

    def expand(self, begin: Any) -> LinesRead:
        """Builds the stages."""
        pipeline = begin.pipeline
        if isinstance(pipeline.runner, (BundleBasedDirectRunner, FnApiRunner, SwitchingDirectRunner)):
            raise ConfigurationError(
                f"ReadLines never ends, and {type(pipeline.runner).__name__} has no unbounded sources: use "
                "--runner=PrismRunner or a Flink runner, or read the files once with beam.io.ReadFromText"
            )
        # Prism (2.77) lets two bundles of one key run at once when it splits a bundle of a stateful stage, and state
        # is lost then. Other runners do not know the experiment.
        pipeline.options.view_as(DebugOptions).add_experiment("prism_disable_sdf_split")
        # There a timer that sets itself again holds the watermark where it was set first, elsewhere at its last firing.
        winding = IDLE_SECONDS if isinstance(pipeline.runner, PrismRunner) else HOURLY
        register(Line, RunFailure)
        read = (
            pipeline
            | "Wind" >> Winder(self._shards, holds=True, seconds=winding)
            | "Read" >> beam.ParDo(self._read).with_outputs(_BAD, main=_LINES)
        )
        lines, bad = read[_LINES], read[_BAD]
        lines.element_type = Line
        bad.element_type = convert_to_beam_type(tuple[None, RunFailure])  # type: ignore[type-arg]
        return LinesRead(lines, bad)


class Positions(Stored):
    """What a shard keeps."""

    files: dict[str, Position]
    """By name: each file that is there, or was there not long ago."""


class ReadDoFn(beam.DoFn):
    """Looks for new lines from a processing-time timer that sets itself again; a key is a shard."""

    _POSITIONS = ReadModifyWriteStateSpec("positions", BytesCoder())
    _LOOK = TimerSpec("look", TimeDomain.REAL_TIME)

    def __init__(self, place: Place, shards: int, max_lines: int, max_bytes: int, forget_seconds: float) -> None:
        self._place = place
        self._shards = shards
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._forget_seconds = forget_seconds
        self._pauses: dict[int, float] = {}
        self._troubles: set[str] = set()

    def process(self, element: tuple[int, bytes], look: Any = beam.DoFn.TimerParam(_LOOK)) -> None:
        """Winds the shard up."""
        look.set(time.time())

    @on_timer(_LOOK)
    def look(
        self,
        shard: int = beam.DoFn.KeyParam,
        fired: Any = beam.DoFn.TimestampParam,
        positions: Any = beam.DoFn.StateParam(_POSITIONS),
        look: Any = beam.DoFn.TimerParam(_LOOK),
    ) -> Iterator[Any]:
        """Emits what has come since the last look."""
        raw = positions.read()
        before = Positions.from_json(raw).files if raw else {}
        files, elements, more = dict(before), list[Line | RunFailure[Any]](), False
        there = self._files(shard)
        if there is not None:
            self._note_missing(files, there)
            elements, more = self._read(files, there)
        at = max(fired, Timestamp.now())  # the timer holds the watermark at an earlier firing
        for element in elements:
            if isinstance(element, Line):
                yield TimestampedValue(element, at)
            else:
                yield TaggedOutput(_BAD, TimestampedValue((None, element), at))
        if files != before:
            positions.write(Positions(files=files).to_json())
        pause = BUSY_SECONDS if elements else min(2 * self._pauses.get(shard, BUSY_SECONDS), IDLE_SECONDS)
        self._pauses[shard] = pause
        look.set(time.time() + (0 if more else pause))

    def _files(self, shard: int) -> dict[str, Found] | None:
        """The shard's files, or `None` when they cannot be listed."""
        try:
            files = self._place.files()
        except BeamIOError as error:
            self._trouble(f"{self._place.pattern}: {error}")
            return None
        return {name: file for name, file in files.items() if shard_of(name, self._shards) == shard}

    def _note_missing(self, files: dict[str, Position], there: dict[str, Found]) -> None:
        now = time.time()
        for name, position in list(files.items()):
            if name in there:
                if position.missing_since is not None:
                    files[name] = position._replace(missing_since=None)
            elif position.missing_since is None:
                files[name] = position._replace(missing_since=now)
            elif now - position.missing_since >= self._forget_seconds:
                del files[name]

    def _read(self, files: dict[str, Position], there: dict[str, Found]) -> tuple[list[Line | RunFailure[Any]], bool]:
        """Reads on in the first files that have more, as far as the limits go, and moves their positions.

        Returns:
            What was read, and whether there is more.
        """
        elements: list[Line | RunFailure[Any]] = []
        lines, size = self._max_lines, self._max_bytes
        for name, file in there.items():
            position = files.get(name, Position())
            if position.refused or file.size == position.offset:
                continue
            if lines == 0 or size <= 0:
                return elements, True
            try:
                piece = read_piece(file, position, max_lines=lines, max_bytes=size)
            except Refused as error:
                files[name] = position._replace(refused=True)
                _LOG.error("%s %s", file.path, error)
                elements.append(_bad(f"{name} {error}"))
                continue
            except Exception as error:  # each file system has errors of its own
                self._trouble(f"{file.path}: {error}")
                continue
            if piece.lines:
                elements += [_line(f"{name}:{offset}", line) for offset, line in piece.lines]
                files[name] = piece.position
                lines -= len(piece.lines)
                size -= piece.position.offset - position.offset
            if piece.more:
                return elements, True
        return elements, False

    def _trouble(self, message: str) -> None:
        """Logs, once, what may pass."""
        if message not in self._troubles:
            self._troubles.add(message)
            _LOG.warning("ReadLines tries again: %s", message)


def shard_of(name: str, shards: int) -> int:
    """The shard of a file: the same in every process and for ever."""
    return zlib.crc32(name.encode("utf-8", "surrogateescape")) % shards


def _line(id: str, line: bytes) -> Line | RunFailure[Any]:
    try:
        return Line(id=id, text=line.decode())
    except UnicodeDecodeError as error:
        return _bad(f"line {id} is not UTF-8: {error}", line.decode("utf-8", "backslashreplace"))


def _bad(message: str, raw: str | None = None) -> RunFailure[Any]:
    return RunFailure(reason=FailureReason.INVALID_EVENT, message=message, raw=raw)
