"""From readings to statistics of each device's hours: plain Beam, no agent yet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import apache_beam as beam
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from pydantic import BaseModel, FiniteFloat, ValidationError, field_validator

from beam_agents import FailureReason, RunFailure
from examples.common import Row

_UNIT = 1_000_000  # values are summed as whole millionths


class Reading(BaseModel):
    device: str
    timestamp: datetime
    """In UTC if it does not say otherwise."""
    value: FiniteFloat

    @field_validator("timestamp")
    @classmethod
    def _utc(cls, timestamp: datetime) -> datetime:
        return timestamp.astimezone(UTC) if timestamp.tzinfo else timestamp.replace(tzinfo=UTC)


class WindowStats(BaseModel):
    """A device's readings within one window."""

    device: str
    start: datetime
    end: datetime
    count: int
    mean: float
    std: float
    min: float
    max: float
    slope: float
    """Change of the value in an hour, by least squares."""


Sums: TypeAlias = tuple[int, int, int, int, int, int, int, int]
"""count, sums of t, v, t * t, t * v, v * v, then smallest and largest v; t in whole seconds, v in millionths."""


class Statistics(beam.CombineFn):
    """Count, mean, standard deviation, least, greatest and slope of (seconds, value) pairs.

    The sums are of integers, so they do not depend on the order in which a runner merges them. Sums of floats do, in
    the last digits, and an event that has other digits after a restart is another event.
    """

    def create_accumulator(self) -> Sums:
        return (0, 0, 0, 0, 0, 0, 0, 0)

    def add_input(self, sums: Sums, reading: tuple[float, float]) -> Sums:
        t, v = round(reading[0]), round(reading[1] * _UNIT)
        return self.merge_accumulators([sums, (1, t, v, t * t, t * v, v * v, v, v)])

    def merge_accumulators(self, accumulators: Iterable[Sums]) -> Sums:
        merged = self.create_accumulator()
        for sums in accumulators:
            if not merged[0] or not sums[0]:
                merged = merged if merged[0] else sums
                continue
            added = [one + other for one, other in zip(merged[:6], sums[:6], strict=True)]
            merged = (*added, min(merged[6], sums[6]), max(merged[7], sums[7]))  # type: ignore[assignment]
        return merged

    def extract_output(self, sums: Sums) -> dict[str, Any]:
        n, t, v, tt, tv, vv, least, greatest = sums
        spread, span = n * vv - v * v, n * tt - t * t
        return {
            "count": n,
            "mean": round(v / n / _UNIT, 6),
            "std": round(math.sqrt(spread / (n * (n - 1))) / _UNIT, 6) if n > 1 else 0.0,
            "min": least / _UNIT,
            "max": greatest / _UNIT,
            "slope": round((n * tv - t * v) / span / _UNIT * 3600, 6) if span else 0.0,
        }


class WindowStatistics(beam.PTransform):
    """Rows with timestamp, value and perhaps device -> (device, `WindowStats`), and dead letters for bad rows.

    Args:
        size: The length of a window.
        device: The device of rows that name none.
    """

    def __init__(self, size: timedelta, device: str) -> None:
        super().__init__()
        self.size = size
        self.device = device

    def expand(self, rows: beam.PCollection[Row]) -> tuple[beam.PCollection[Any], beam.PCollection[Any]]:
        read = rows | "Parse" >> beam.FlatMap(_parse, self.device).with_outputs("bad", main="readings")
        windows = (
            read.readings
            | "Windows" >> beam.WindowInto(FixedWindows(self.size.total_seconds()))
            # Beam's local runners need time that grows with the square of the windows of one key.
            | "KeyPerWindow" >> beam.MapTuple(_key_per_window)
            | "Statistics" >> beam.CombinePerKey(Statistics())
            | "Stats" >> beam.MapTuple(_stats).with_output_types(tuple[str, WindowStats])
        )
        return windows, read.bad


def _parse(row: Row, device: str) -> Iterator[Any]:
    try:
        reading = Reading.model_validate({"device": device} | row)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        failure: RunFailure[Any] = RunFailure(
            reason=FailureReason.INVALID_EVENT, message=f"is not a reading: {wrong}", raw=str(row)
        )
        yield beam.pvalue.TaggedOutput("bad", (row.get("device"), failure))
        return
    seconds = reading.timestamp.timestamp()
    yield TimestampedValue((reading.device, (seconds, reading.value)), seconds)


def _key_per_window(device: str, reading: Any, window: Any = beam.DoFn.WindowParam) -> tuple[tuple[str, int], Any]:
    return (device, window.start.micros), reading


def _stats(
    key: tuple[str, int], numbers: dict[str, Any], window: Any = beam.DoFn.WindowParam
) -> tuple[str, WindowStats]:
    start, end = (datetime.fromtimestamp(float(edge), UTC) for edge in (window.start, window.end))
    return key[0], WindowStats(device=key[0], start=start, end=end, **numbers)
