"""`ReadKafka`: the records of topics as keyed events, whose ids are the same after any replay."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple, get_args

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
from apache_beam.utils.timestamp import Timestamp
from pydantic import Field as PydanticField

from beam_agents.errors import ConfigurationError
from beam_agents.events import FailureReason, Identified, RunFailure
from beam_agents.io.files import BUSY_SECONDS, shard_of
from beam_agents.io.kafka_connection import Kafka
from beam_agents.io.kafka_record import Decoder, Header, KafkaRecord, Part, record_of
from beam_agents.stored import Stored
from beam_agents.transforms.coders import register
from beam_agents.transforms.flink import prepare_for_flink
from beam_agents.transforms.winder import HOURLY, Winder

_BAD: Final = "bad"
_EVENTS: Final = "events"
_IDLE_SECONDS: Final = 0.2
"""The most between two looks; while nothing comes, the time doubles up to it."""
_REFRESH_SECONDS: Final = 30.0
"""Between two looks for new partitions."""
_DISCOVER_SECONDS: Final = 2.0
"""The most that such a look takes: a checkpoint waits for it."""

Start = Literal["earliest", "latest"]


class KafkaRead(NamedTuple):
    """The outputs of `ReadKafka`."""

    events: PCollection[Any]
    """(key, `Identified`), for `RunAgent` without `event_id`."""
    bad: PCollection[Any]
    """(None, `RunFailure`), to be flattened with an agent's `failures`: records that are no events, each with its
    coordinates in `message` and its value in `raw`."""


class ReadKafka(beam.PTransform[Any, Any]):
    """Emits each record of some topics once as a keyed event, and goes on with what comes, for ever.

    Which records were emitted is in the runner's checkpoint, and nowhere else: a restored job goes on behind the last
    record that counted, whatever a consumer group says. Only committed records are read. Partitions that are added
    are found within half a minute, and read from their beginning.

    DirectRunner has no unbounded sources: there it reads what is in the topics when it starts, and ends.

    The time of an element is when it was read, and the watermark follows the clock about a second behind, also while
    partitions are idle; `KafkaRecord.timestamp` has the record's own.

    Args:
        kafka: The brokers.
        topics: One topic, or several.
        value: What a record's value is: `str`, `bytes`, `KafkaRecord` for all of the record, what pydantic reads from
            JSON, or a form such as `Debezium(Order)`, which also has a key and an id for it.
        key: The event's key: by default the record's, as a text; or a field of the value, or a function of it.
        event_id: What names an event for ever: by default topic, partition and offset; or a `Header`, a field of the
            value, or a function of it. An id of the producer's is better: it is the same if he sends the event twice.
        start: Where partitions begin that are there when the job starts for the first time.
        stop_at_end: Ends with what is there at the start; the output is bounded then.
        shards: Over how many keys the partitions are spread. For use of several workers there have to be several times
            as many. A job that is resumed with another number reads partitions that change their shard from `start`.
        max_records: The most that one look at a shard reads, so that bundles stay short.

    Returns:
        A `KafkaRead`.

    Raises:
        ConfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        kafka: Kafka,
        topics: str | Sequence[str],
        *,
        value: Any,
        key: Part | None = None,
        event_id: Header | Part | None = None,
        start: Start = "earliest",
        stop_at_end: bool = False,
        shards: int = 4,
        max_records: int = 500,
    ) -> None:
        super().__init__()
        if importlib.util.find_spec("confluent_kafka") is None:
            raise ConfigurationError("ReadKafka needs confluent-kafka: pip install 'beam-agents[kafka]'")
        if not isinstance(kafka, Kafka):
            raise ConfigurationError(f"ReadKafka takes a Kafka('host:9092'), not {kafka!r}")
        self._topics = (topics,) if isinstance(topics, str) else tuple(topics)
        if not self._topics or not all(isinstance(topic, str) and topic for topic in self._topics):
            raise ConfigurationError(f"ReadKafka(topics={topics!r}) must name at least one topic")
        if start not in get_args(Start):
            raise ConfigurationError(f"ReadKafka(start={start!r}) must be 'earliest' or 'latest'")
        for name, number in (("shards", shards), ("max_records", max_records)):
            if number < 1:
                raise ConfigurationError(f"ReadKafka({name}={number!r}) must be 1 or more")
        self._kafka = kafka
        self._decode = Decoder(value, key, event_id)
        self._start = start
        self._stop_at_end = stop_at_end
        self._shards = shards
        self._max_records = max_records

    def default_label(self) -> str:
        """The topics."""
        return f"ReadKafka({','.join(self._topics)})"

    def display_data(self) -> dict[str, Any]:
        """What a runner shows of the transform."""
        return {"topics": ",".join(self._topics), "servers": self._kafka.servers, "start": self._start}

    def expand(self, begin: Any) -> KafkaRead:
        """Builds the stages."""
        pipeline = begin.pipeline
        identified = Identified[self._decode.element]  # type: ignore[name-defined]
        register(KafkaRecord, RunFailure, identified)
        ends = isinstance(pipeline.runner, (BundleBasedDirectRunner, FnApiRunner, SwitchingDirectRunner))
        read = self._once(pipeline) if ends or self._stop_at_end else self._for_ever(pipeline)
        events, bad = read[_EVENTS], read[_BAD]
        events.element_type = convert_to_beam_type(tuple[str, identified])
        bad.element_type = convert_to_beam_type(tuple[None, RunFailure])  # type: ignore[type-arg]
        return KafkaRead(events, bad)

    def _once(self, pipeline: Any) -> Any:
        from beam_agents.io.kafka_bounded import FindDoFn, SpanDoFn

        return (
            pipeline
            | "Topics" >> beam.Create([self._topics], reshuffle=False)
            | "Find" >> beam.ParDo(FindDoFn(self._kafka, self._start))
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(SpanDoFn(self._kafka, self._decode)).with_outputs(_BAD, main=_EVENTS)
        )

    def _for_ever(self, pipeline: Any) -> Any:
        prepare_for_flink(pipeline, bounded=False, ledger=None)
        # Prism (2.77) lets two bundles of one key run at once when it splits a bundle of a stateful stage, and state
        # is lost then. Other runners do not know the experiment.
        pipeline.options.view_as(DebugOptions).add_experiment("prism_disable_sdf_split")
        # There a timer that sets itself again holds the watermark where it was set first, elsewhere at its last firing.
        winding = _IDLE_SECONDS if isinstance(pipeline.runner, PrismRunner) else HOURLY
        poll = PollDoFn(self._kafka, self._topics, self._shards, self._start, self._decode, self._max_records)
        return (
            pipeline
            | "Wind" >> Winder(self._shards, holds=True, seconds=winding)
            | "Read" >> beam.ParDo(poll).with_outputs(_BAD, main=_EVENTS)
        )


class Offsets(Stored):
    """What a shard keeps."""

    started: bool = False
    """Whether the partitions that were there at the start are known."""
    next: dict[str, dict[int, int]] = PydanticField(default_factory=dict)
    """The next offset, by topic and partition."""
    shards: int = 0
    """How many shards there were; 0 for those that a release before this field wrote."""


class PollDoFn(beam.DoFn):
    """Looks for new records from a processing-time timer that sets itself again; a key is a shard.

    Reading goes on in the background between two looks, in a consumer for each shard.
    """

    _OFFSETS = ReadModifyWriteStateSpec("offsets", BytesCoder())
    _LOOK = TimerSpec("look", TimeDomain.REAL_TIME)

    def __init__(
        self, kafka: Kafka, topics: Sequence[str], shards: int, start: Start, decode: Decoder, max_records: int
    ) -> None:
        self._kafka = kafka
        self._topics = tuple(topics)
        self._shards = shards
        self._start = start
        self._decode = decode
        self._max_records = max_records
        self._readers: dict[int, Any] = {}
        self._refreshed: dict[int, float] = {}
        self._pauses: dict[int, float] = {}
        self._without_bounds: dict[int, set[tuple[str, int]]] = {}

    def process(self, element: tuple[int, bytes], look: Any = beam.DoFn.TimerParam(_LOOK)) -> None:
        """Winds the shard up."""
        look.set(time.time())

    @on_timer(_LOOK)
    def look(
        self,
        shard: int = beam.DoFn.KeyParam,
        fired: Any = beam.DoFn.TimestampParam,
        offsets: Any = beam.DoFn.StateParam(_OFFSETS),
        look: Any = beam.DoFn.TimerParam(_LOOK),
    ) -> Iterator[Any]:
        """Emits what has come since the last look."""
        if shard >= self._shards:
            return  # of a job that had more; its timer is not set again
        raw = offsets.read()
        before = Offsets.from_json(raw) if raw else Offsets()
        known = {(topic, number): at for topic, of in before.next.items() for number, at in of.items()}
        positions = {place: at for place, at in known.items() if self._reads(shard, place)}
        as_before = before.shards in (0, self._shards)
        # The places of topics that are not read any more are kept, in case they are again.
        aside = {place: at for place, at in known.items() if place[0] not in self._topics and as_before}
        started = self._discover(shard, positions, before.started and as_before)
        found = 0
        at = max(fired, Timestamp.now())  # the timer holds the watermark at an earlier firing
        if positions:
            messages, gone, _ = self._reader(shard).read(positions, records=self._max_records, size=4_000_000)
            found = len(messages)
            for message in messages:
                positions[message.topic(), message.partition()] = message.offset() + 1
                if (decoded := self._decode(record_of(message))) is not None:
                    yield placed(decoded, at)
            for lost in gone:
                positions[lost.place] = lost.next
                if lost.next != lost.first:
                    yield placed(lost_records(lost.place, lost.first, lost.next), at)
        after = Offsets(started=started, shards=self._shards)
        for (topic, number), offset in sorted((aside | positions).items()):
            after.next.setdefault(topic, {})[number] = offset
        if after != before:
            offsets.write(after.to_json())
        pause = BUSY_SECONDS if found else min(2 * self._pauses.get(shard, BUSY_SECONDS), _IDLE_SECONDS)
        self._pauses[shard] = pause
        look.set(time.time() + (0 if found >= self._max_records else pause))

    def teardown(self) -> None:
        """Ends the consumers."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def _reader(self, shard: int) -> Any:
        from beam_agents.io.kafka_consumer import Reader

        if shard not in self._readers:
            self._readers[shard] = Reader(self._kafka)
        return self._readers[shard]

    def _discover(self, shard: int, positions: dict[tuple[str, int], int], started: bool) -> bool:
        """Adds the partitions of the shard that are new; whether those of the start are known."""
        from confluent_kafka import KafkaException

        now = time.monotonic()
        pause = _REFRESH_SECONDS if started else 2.0
        if now - self._refreshed.get(shard, -pause) < pause:
            return started
        self._refreshed[shard] = now
        reader = self._reader(shard)
        there = reader.partitions(self._topics)
        if there is None:
            return started
        new = [place for place in there if place not in positions and self._reads(shard, place)]
        without = self._without_bounds.setdefault(shard, set())
        until = now + _DISCOVER_SECONDS
        for place in sorted(new, key=without.__contains__):  # one without a leader must not hide the others
            try:
                first, end = reader.bounds(place, max(0.1, until - time.monotonic()))
            except KafkaException:
                without.add(place)
                if time.monotonic() > until:
                    break
            else:
                without.discard(place)
                positions[place] = end if self._start == "latest" and not started else first
        if not positions.keys() >= set(new):
            return started
        return started or {topic for topic, _ in there} == set(self._topics)

    def _reads(self, shard: int, place: tuple[str, int]) -> bool:
        return place[0] in self._topics and shard_of(f"{place[0]}:{place[1]}", self._shards) == shard


def placed(decoded: tuple[str, Identified[Any]] | RunFailure[Any], at: Any) -> Any:
    """An event, or a bad record with its tag, at a time."""
    if isinstance(decoded, RunFailure):
        return TaggedOutput(_BAD, TimestampedValue((None, decoded), at))
    return TimestampedValue(decoded, at)


def lost_records(place: tuple[str, int], first: int, next: int) -> RunFailure[Any]:
    """What goes to `bad` for records that were not read and are not there any more."""
    topic, partition = place
    what = f"records from {topic}-{partition}-{first} on were deleted before they were read"
    if next < first:
        what = f"{topic}-{partition} ends before {first}: the topic was made anew"
    return RunFailure(
        reason=FailureReason.INVALID_EVENT, message=f"{what}; reading goes on at {topic}-{partition}-{next}"
    )
