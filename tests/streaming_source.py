"""An unbounded source for tests: given elements at given times, then silence or the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import apache_beam as beam
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Duration, Timestamp


class Arrival(NamedTuple):
    """An element of a test stream."""

    delay: float
    """Seconds after the start of the source at which it arrives."""
    element: Any
    timestamp: float
    """Its event time, in seconds since 1970."""


class ArrivalStream(beam.PTransform[Any, Any]):
    """Emits `arrivals` in their order, each when its delay is over.

    The watermark is always the earliest event time that is still to come. After the last arrival the stream either
    `finish`es (the watermark goes to the end of time) or stays `idle` for ever, an hour after the latest event time.
    A checkpoint has how far it came, so a restored job goes on from there; delays count from the very first start.
    """

    def __init__(
        self, arrivals: Sequence[Arrival], *, then: Literal["finish", "idle"], element_type: Any = Any
    ) -> None:
        super().__init__()
        self._arrivals = list(arrivals)
        self._idles = then == "idle"
        self._element_type = element_type

    def expand(self, pipeline: Any) -> Any:
        return (
            pipeline
            | "Start" >> beam.Impulse()
            | "Clock" >> beam.Map(lambda _: time.time()).with_output_types(float)
            | "Arrive" >> beam.ParDo(_ArriveDoFn(self._arrivals, self._idles)).with_output_types(self._element_type)
        )


class _InOrderTracker(OffsetRestrictionTracker):
    """Gives up what it has not claimed, but is never cut in two."""

    def try_split(self, fraction_of_remainder: float) -> Any:
        return super().try_split(0) if fraction_of_remainder == 0 else None

    def is_bounded(self) -> bool:
        return False


class _ArriveDoFn(beam.DoFn, RestrictionProvider):
    def __init__(self, arrivals: list[Arrival], idles: bool) -> None:
        self._arrivals = arrivals
        self._idles = idles
        times = [arrival.timestamp for arrival in arrivals]
        self._watermarks = [Timestamp(min(times[index:])) for index in range(len(times))]
        self._watermarks.append(Timestamp(max(times, default=0) + 3600))

    def initial_restriction(self, element: float) -> OffsetRange:
        return OffsetRange(0, len(self._arrivals) + self._idles)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return _InOrderTracker(restriction)

    def restriction_size(self, element: float, restriction: OffsetRange) -> int:
        return restriction.size()

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        started: float,
        restriction: Any = beam.DoFn.RestrictionParam(),
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider()),
    ) -> Iterator[TimestampedValue]:
        index = restriction.current_restriction().start
        while True:
            watermark.set_watermark(self._watermarks[index])
            if index == len(self._arrivals):
                if self._idles:
                    restriction.defer_remainder(Duration(3600))
                return
            arrival = self._arrivals[index]
            wait = started + arrival.delay - time.time()
            if wait > 0:
                restriction.defer_remainder(Duration(wait))
                return
            if not restriction.try_claim(index):
                return
            yield TimestampedValue(arrival.element, arrival.timestamp)
            index += 1
