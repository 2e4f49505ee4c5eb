"""`ReadPostgresChanges`: the rows of tables and what becomes of them, as keyed events."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.options.pipeline_options import DebugOptions
from apache_beam.pvalue import PCollection, TaggedOutput
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner, SwitchingDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.prism_runner import PrismRunner
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import TimestampedValue
from apache_beam.typehints.native_type_compatibility import convert_to_beam_type
from apache_beam.utils.shared import Shared
from apache_beam.utils.timestamp import Timestamp

from beam_agents.errors import ConfigurationError
from beam_agents.events import RunFailure
from beam_agents.io.files import BUSY_SECONDS
from beam_agents.io.kafka_record import Part
from beam_agents.io.postgres.acknowledge import AcknowledgeDoFn, Holder
from beam_agents.io.postgres.place import ChangesPosition
from beam_agents.io.postgres.rows import RowDecoder, register_changes
from beam_agents.io.postgres.source import Source
from beam_agents.io.postgres.transactions import TableChange
from beam_agents.secrets import Secret
from beam_agents.transforms.coders import register
from beam_agents.transforms.flink import prepare_for_flink
from beam_agents.transforms.winder import HOURLY, Winder

_BAD: Final = "bad"
_EVENTS: Final = "events"
_TICKETS: Final = "tickets"
_IDLE_SECONDS: Final = 0.2
"""The most between two looks; while nothing comes, the time doubles up to it."""


class ChangesRead(NamedTuple):
    """The outputs of `ReadPostgresChanges`."""

    events: PCollection[Any]
    """(key, `Identified[Change[...]]`), for `RunAgent` without `event_id`."""
    bad: PCollection[Any]
    """(None, `RunFailure`), to be flattened with an agent's `failures`: changes that are no events, each with its id in
    `message` and its row in `raw`."""


class ReadPostgresChanges(beam.PTransform[Any, Any]):
    """Emits the rows of some tables once as keyed events, and then each change of them in the order of their commits.

    Which changes were emitted is in the runner's checkpoint, and the server is told only after it what it may forget.
    DirectRunner has no unbounded sources: there it reads what there is when it starts, and ends; nothing on the server
    is made or moved then.

    The time of an element is when it was read, and the watermark follows the clock about a second behind, also while
    nothing changes; `Change.committed` has the transaction's own.

    Args:
        url: The database, as `postgresql://user@host:5432/database`, without a password.
        tables: For each table, named with its schema, what its rows are: what pydantic reads from a dict.
        slot: The name of the replication slot, which keeps the changes until they were read. Each job has its own.
        key: The event's key: a field of the row, or a function of the `Change`.
        password: The user's password; by default libpq looks for it in PGPASSWORD and the passfile of the worker.
        publication: The name of the publication, which says of which tables there are changes; by default the slot's.
        create: Makes the publication and the slot if they are not there.
        snapshot: Reads the tables' rows first when a job starts for the first time. Otherwise it begins with the
            changes that the slot has kept.
        max_records: The most that one look reads, so that bundles stay short.

    Returns:
        A `ChangesRead`.

    Raises:
        ConfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        url: str,
        tables: Mapping[str, Any],
        *,
        slot: str,
        key: Part,
        password: Secret | None = None,
        publication: str | None = None,
        create: bool = True,
        snapshot: bool = True,
        max_records: int = 500,
    ) -> None:
        super().__init__()
        if importlib.util.find_spec("psycopg") is None:
            raise ConfigurationError("ReadPostgresChanges needs psycopg: pip install 'beam-agents[changes]'")
        if not isinstance(tables, Mapping):
            raise ConfigurationError(f"ReadPostgresChanges(tables={tables!r}) takes {{'public.readings': Reading}}")
        self._source = Source(url, password, tuple(sorted(tables)), slot, publication or slot, create, snapshot)
        if max_records < 1:
            raise ConfigurationError(f"ReadPostgresChanges(max_records={max_records!r}) must be 1 or more")
        self._decode = RowDecoder(tables, key)
        self._types = dict(tables)
        self._max_records = max_records

    def default_label(self) -> str:
        """The slot."""
        return f"ReadPostgresChanges({self._source.slot})"

    def display_data(self) -> dict[str, Any]:
        """What a runner shows of the transform."""
        source = self._source
        return {"tables": ",".join(source.tables), "server": source.place, "slot": source.slot}

    def expand(self, begin: Any) -> ChangesRead:
        """Builds the stages."""
        pipeline = begin.pipeline
        identified = register_changes(self._types)
        register(RunFailure)
        ends = isinstance(pipeline.runner, (BundleBasedDirectRunner, FnApiRunner, SwitchingDirectRunner))
        read = self._once(pipeline) if ends else self._for_ever(pipeline)
        events, bad = read[_EVENTS], read[_BAD]
        events.element_type = convert_to_beam_type(tuple[str, identified])  # type: ignore[valid-type]
        bad.element_type = convert_to_beam_type(tuple[None, RunFailure])  # type: ignore[type-arg]
        return ChangesRead(events, bad)

    def _once(self, pipeline: Any) -> Any:
        from beam_agents.io.postgres.bounded import ReadNowDoFn

        return (
            pipeline
            | "Start" >> beam.Impulse()
            | "Read" >> beam.ParDo(ReadNowDoFn(self._source, self._decode)).with_outputs(_BAD, main=_EVENTS)
        )

    def _for_ever(self, pipeline: Any) -> Any:
        prepare_for_flink(pipeline, bounded=False, ledger=None)
        # As in ReadKafka: Prism (2.77) may run two bundles of one key at once, and winds timers in another way.
        pipeline.options.view_as(DebugOptions).add_experiment("prism_disable_sdf_split")
        on_prism = isinstance(pipeline.runner, PrismRunner)
        winding = _IDLE_SECONDS if on_prism else HOURLY
        shared = Shared()
        follow = FollowDoFn(self._source, self._decode, self._max_records, shared, checkpoints=not on_prism)
        read = (
            pipeline
            | "Wind" >> Winder(1, holds=True, seconds=winding)
            | "Read" >> beam.ParDo(follow).with_outputs(_BAD, _TICKETS, main=_EVENTS)
        )
        _ = read[_TICKETS] | "Acknowledge" >> beam.ParDo(AcknowledgeDoFn(shared))
        return read


class FollowDoFn(beam.DoFn):
    """Looks for changes from a processing-time timer that sets itself again; there is one key.

    Reading goes on in the background between two looks.

    Args:
        source: What is read.
        decode: Makes events.
        max_records: The most changes of one look.
        shared: Where the process's reader is.
        checkpoints: Whether the runner has checkpoints, and finalizers that run after them. Without, what was emitted
            is acknowledged when its bundle has ended.
    """

    _POSITION = ReadModifyWriteStateSpec("position", BytesCoder())
    _LOOK = TimerSpec("look", TimeDomain.REAL_TIME)

    def __init__(
        self, source: Source, decode: RowDecoder, max_records: int, shared: Shared, *, checkpoints: bool
    ) -> None:
        self._source = source
        self._decode = decode
        self._max_records = max_records
        self._shared = shared
        self._checkpoints = checkpoints
        self._holder: Holder | None = None
        self._pause = BUSY_SECONDS

    def setup(self) -> None:
        """Finds the process's reader."""
        self._holder = self._shared.acquire(Holder)
        self._holder.enter()

    def process(self, element: tuple[int, bytes], look: Any = beam.DoFn.TimerParam(_LOOK)) -> None:
        """Winds it up."""
        look.set(time.time())

    @on_timer(_LOOK)
    def look(
        self,
        fired: Any = beam.DoFn.TimestampParam,
        position: Any = beam.DoFn.StateParam(_POSITION),
        look: Any = beam.DoFn.TimerParam(_LOOK),
    ) -> Iterator[Any]:
        """Emits what has come since the last look."""
        assert self._holder is not None
        raw = position.read()
        place = ChangesPosition.from_json(raw).place() if raw else None
        found = 0
        at = max(fired, Timestamp.now())  # the timer holds the watermark at an earlier firing
        feed = self._holder.feed(self._source, place)
        if place is not None and not self._checkpoints:
            feed.acknowledge(place.lsn)
        items = feed.take(self._max_records, 4_000_000)
        for item in items:
            if item.change is not None:
                found += 1
                yield from placed(self._decode, item.change, at)
        if items:
            place = items[-1].place
            position.write(ChangesPosition.of(place).to_json())
        ticket = self._holder.ticket(place) if place is not None and self._checkpoints else None
        if ticket is not None:
            yield TaggedOutput(_TICKETS, TimestampedValue(ticket, at))
        self._pause = BUSY_SECONDS if found else min(2 * self._pause, _IDLE_SECONDS)
        look.set(time.time() + (0 if found >= self._max_records else self._pause))

    def teardown(self) -> None:
        """Ends the reader, unless others use it."""
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.leave()


def placed(decode: RowDecoder, change: TableChange, at: Any) -> Iterator[Any]:
    """The event of a change, or a bad row with its tag, at a time."""
    decoded = decode(change)
    if isinstance(decoded, RunFailure):
        yield TaggedOutput(_BAD, TimestampedValue((None, decoded), at))
    elif decoded is not None:
        yield TimestampedValue(decoded, at)
