"""What is in Kafka's topics now, and no more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.utils.timestamp import Timestamp

from beam_agents.io.kafka_connection import Kafka
from beam_agents.io.kafka_consumer import Reader, ends_now
from beam_agents.io.kafka_read import Start, lost_records, placed
from beam_agents.io.kafka_record import Decoder, record_of

_PATIENCE_SECONDS = 60.0

Span = tuple[str, int, int, int]
"""Topic, partition, the first offset, and the one behind the last."""


class FindDoFn(beam.DoFn):
    """Finds what there is to read."""

    def __init__(self, kafka: Kafka, start: Start) -> None:
        self._kafka = kafka
        self._start = start

    def process(self, topics: Sequence[str]) -> Iterator[Span]:
        """Emits a span for each partition that has records.

        Raises:
            ConfigurationError: A topic is not there, or the brokers do not answer.
        """
        if self._start == "latest":
            return
        for (topic, partition), (first, end) in sorted(ends_now(self._kafka, topics).items()):
            if first < end:
                yield topic, partition, first, end


class SpanDoFn(beam.DoFn):
    """Reads a span."""

    def __init__(self, kafka: Kafka, decode: Decoder) -> None:
        self._kafka = kafka
        self._decode = decode

    def process(self, span: Span) -> Iterator[Any]:
        """Emits the events.

        Raises:
            TimeoutError: The brokers went away.
        """
        topic, partition, position, end = span
        place, waited = (topic, partition), 0.0
        reader = Reader(self._kafka)
        try:
            while position < end:
                messages, gone, ends = reader.read({place: position}, records=500, size=4_000_000, seconds=1.0)
                for message in messages:
                    position = (message.offset() or 0) + 1
                    if position <= end:
                        record = record_of(message)
                        if (decoded := self._decode(record)) is not None:
                            yield placed(decoded, Timestamp.from_utc_datetime(record.timestamp))
                for lost in gone:
                    if lost.next > position:
                        yield placed(lost_records(place, position, lost.next), Timestamp.now())
                        position = lost.next
                if ends.get(place, 0) >= end:  # what was left are marks of transactions
                    return
                waited = 0.0 if messages else waited + 1.0
                if waited > _PATIENCE_SECONDS:
                    raise TimeoutError(
                        f"ReadKafka: {topic}-{partition} at {self._kafka.servers} gave nothing for "
                        f"{_PATIENCE_SECONDS:.0f} seconds at offset {position} of {end}"
                    )
        finally:
            reader.close()
