"""`WriteKafka`: results into a topic, exactly once for `read_committed` consumers, or at least once."""

from __future__ import annotations

import importlib.util
import re
from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, Final, Protocol

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import DebugOptions
from apache_beam.pvalue import PCollection
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from apache_beam.transforms.window import GlobalWindows

from beam_agents.errors import ConfigurationError
from beam_agents.io.kafka_connection import Kafka
from beam_agents.io.kafka_write_record import Encode, Outgoing
from beam_agents.io.sinks.held import Held
from beam_agents.io.sinks.outgoing import (
    UNDELIVERED,
    Field,
    check_field,
    check_identifiable,
    transforms_of,
    typed_undelivered,
)

_RECORDS: Final = "records"
_FLUSH_RECORDS: Final = 5_000
_FLUSH_BYTES: Final = 16_000_000
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,200}")


class WriteKafka(beam.PTransform[Any, Any]):
    """Writes each value of a PCollection of (key, value) as a record: an output of `RunAgent`, or with `id` anything.

    The record's key is the element's key (a text as it is, others as JSON), so that what belongs to a key stays in
    order in one partition. The value is JSON. Headers: `id`, which is unique among all records, `kind` and `run_id`.

    At least once (`exactly_once=None`): a bundle ends when the brokers have its records. After a crash what came since
    the runner's last checkpoint is written again, with the same `id`: consumers can leave it out.

    Exactly once: consumers with `isolation.level=read_committed` see each value once, whatever dies and is restored.
    What the ledger decided has the same id and the same content for ever, so it is enough to write each id once. A
    bundle's values go in one transaction with a marker of their ids, to another topic; ids that have a marker are left
    out. Values can be read as soon as their bundle ends, without waiting for a checkpoint.

    Args:
        kafka: The brokers.
        topic: The topic. It must be there.
        exactly_once: A name for this use, stable for as long as the job is restored or started again; the marks are
            kept under it, so under another name everything that comes again is written again.
        shards: Over how many transactions keys are spread. It cannot change later under the same `markers`.
        id: A field of the value that is unique among the values of its key, or a function of the value; not needed
            for outputs of `RunAgent`. With `exactly_once`, of values with the same id only the first is written.
        key: The record's key, if it is another: a field of the value, or a function of it.
        value: A function of the value: what is written instead of all of it. Bytes and texts as they are, `None` as a
            tombstone, anything else as JSON.
        markers: The topic of the marks, by default `<topic>.written`. It is made if it is missing.
        remember: How long marks are kept: a job must not be restored to a checkpoint that is older.
        max_bytes: The largest record; those above it are not written. Not above the topic's `max.message.bytes`.

    Returns:
        (key, `Undelivered`) for each value of which no record can be made: without an id, too large, or not JSON.

    Raises:
        ConfigurationError: An argument cannot work, or the input has values that cannot be told apart.
    """

    def __init__(
        self,
        kafka: Kafka,
        topic: str,
        *,
        exactly_once: str | None = None,
        shards: int = 4,
        id: Field | None = None,
        key: Field | None = None,
        value: Callable[[Any], Any] | None = None,
        markers: str | None = None,
        remember: timedelta = timedelta(days=1),
        max_bytes: int = 1_000_000,
    ) -> None:
        super().__init__()
        if importlib.util.find_spec("confluent_kafka") is None:
            raise ConfigurationError("WriteKafka needs confluent-kafka: pip install 'beam-agents[kafka]'")
        if not isinstance(kafka, Kafka):
            raise ConfigurationError(f"WriteKafka takes a Kafka('host:9092'), not {kafka!r}")
        for name, text in (("topic", topic), ("exactly_once", exactly_once), ("markers", markers)):
            if text is not None and (not isinstance(text, str) or not _NAME.fullmatch(text)):
                raise ConfigurationError(f"WriteKafka({name}={text!r}) must be letters, digits, '.', '_' and '-'")
        for name, number in (("shards", shards), ("max_bytes", max_bytes)):
            if number < 1:
                raise ConfigurationError(f"WriteKafka({name}={number!r}) must be 1 or more")
        if remember < timedelta(minutes=1):
            raise ConfigurationError(f"WriteKafka(remember={remember!r}) must be a minute or more")
        for name, field in (("id", id), ("key", key)):
            check_field("WriteKafka", name, field)
        if value is not None and not callable(value):
            raise ConfigurationError(f"WriteKafka(value={value!r}) must be a function of the value")
        self._kafka = kafka
        self._topic = topic
        self._name = exactly_once
        self._shards = shards
        self._id = id
        self._key = key
        self._value = value
        self._markers = markers or f"{topic}.written"
        self._remember = remember
        self._max_bytes = max_bytes

    def default_label(self) -> str:
        """The topic."""
        return f"WriteKafka({self._topic})"

    def display_data(self) -> dict[str, Any]:
        """What a runner shows of the transform."""
        return {"topic": self._topic, "servers": self._kafka.servers, "exactly_once": self._name or "no"}

    def expand(self, pcoll: PCollection[Any]) -> PCollection[Any]:
        """Builds the stages."""
        check_identifiable(pcoll, self.default_label(), self._id, once=self._name is not None)
        encode = Encode(self.default_label(), self._id, self._key, self._value, self._shards, self._max_bytes)
        encoded = pcoll | "Encode" >> beam.ParDo(encode).with_outputs(UNDELIVERED, main=_RECORDS)
        undelivered = typed_undelivered(encoded[UNDELIVERED])
        records = encoded[_RECORDS] | "Global" >> beam.WindowInto(GlobalWindows())
        # Plain tuples of texts and bytes, which Beam codes without pickle.
        records.element_type = beam.typehints.Tuple[int, beam.typehints.Any]
        if self._name is None:
            records | "Write" >> beam.ParDo(WriteDoFn(_plain(self._kafka, self._topic, self._max_bytes), self._topic))
            return undelivered
        self._check_name(pcoll.pipeline, self._name)
        # Prism (2.77) lets two bundles of one key run at once when it splits a bundle of a stateful stage, and one
        # key's records could change places. Other runners do not know the experiment.
        pcoll.pipeline.options.view_as(DebugOptions).add_experiment("prism_disable_sdf_split")
        held = _shards(
            self._kafka,
            self._topic,
            self._markers,
            self._name,
            self._shards,
            self._remember.total_seconds(),
            self._max_bytes,
        )
        records | "Commit" >> beam.ParDo(CommitDoFn(held, self._topic))
        return undelivered

    def _check_name(self, pipeline: beam.Pipeline, name: str) -> None:
        others = [other for other in transforms_of(pipeline, WriteKafka) if other is not self and other._name]
        # Not name and topic by themselves: "a-b" and "c" make the same transactional id as "a" and "b-c".
        if any(f"{other._name}-{other._topic}" == f"{name}-{self._topic}" for other in others):
            raise ConfigurationError(
                f"two WriteKafka in this pipeline have topic {self._topic!r} and exactly_once={name!r}, or another "
                "split of the same, and each would end the other's transactions: flatten their inputs, or give one of "
                "them another name"
            )


class Writer(Protocol):
    """What writes the records of a bundle."""

    def write(self, waiting: dict[int, list[Outgoing]]) -> int:
        """Writes them, by shard; how many were new."""

    def close(self) -> None:
        """Closes the connections."""


class WriteDoFn(beam.DoFn):
    """Writes a bundle before it ends."""

    def __init__(self, held: Held[Writer], topic: str) -> None:
        self._held = held
        self._written = Metrics.counter(f"beam_agents.kafka.{topic}", "written")
        self._left_out = Metrics.counter(f"beam_agents.kafka.{topic}", "left_out")

    def setup(self) -> None:
        """Joins the producers of the process."""
        self._writer = self._held.enter()

    def teardown(self) -> None:
        """Leaves them."""
        self._held.leave()

    def start_bundle(self) -> None:
        """Begins with nothing, also after a bundle that failed."""
        self._waiting: defaultdict[int, list[Outgoing]] = defaultdict(list)
        self._records = self._bytes = 0

    def process(self, element: tuple[int, tuple[Any, ...]]) -> None:
        """Takes a record, and writes what there is when that is much."""
        shard, fields = element
        record = Outgoing(*fields)
        self._waiting[shard].append(record)
        self._records += 1
        self._bytes += record.size
        if self._records >= _FLUSH_RECORDS or self._bytes >= _FLUSH_BYTES:
            self.finish_bundle()
            self.start_bundle()

    def finish_bundle(self) -> None:
        """Writes the rest."""
        if self._waiting:
            new = self._writer.write(self._waiting)
            self._written.inc(new)
            self._left_out.inc(self._records - new)


class CommitDoFn(WriteDoFn):
    """The same with a key, so that the runner gives a shard to one worker at a time."""

    _SHARD = ReadModifyWriteStateSpec("shard", BytesCoder())

    def process(self, element: tuple[int, tuple[Any, ...]], shard: Any = beam.DoFn.StateParam(_SHARD)) -> None:
        """Takes a record."""
        super().process(element)


def _plain(kafka: Kafka, topic: str, max_bytes: int) -> Held[Writer]:
    from beam_agents.io.kafka_write_plain import AtLeastOnce, Plain

    return Held(partial(Plain, AtLeastOnce(kafka, topic, max_bytes)))


def _shards(
    kafka: Kafka, topic: str, markers: str, name: str, shards: int, remember: float, max_bytes: int
) -> Held[Writer]:
    from beam_agents.io.kafka_write_shard import ExactlyOnce, Shards

    return Held(partial(Shards, ExactlyOnce(kafka, topic, markers, name, shards, remember, max_bytes)))
