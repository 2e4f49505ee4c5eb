"""The winder: sets off timers that set themselves again, and does so again now and then.

Most of what happens at a pace in a stream is a stateful DoFn whose processing-time timer sets itself again. The winder
is the source before it. It is the one way to begin that behaves on every runner: a bounded source ends the stream's
time at once, and a splittable DoFn that polls leaves a column family in RocksDB at each poll.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final

import apache_beam as beam
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.transforms.core import RestrictionProvider, WatermarkEstimatorProvider
from apache_beam.transforms.window import GlobalWindow, TimestampedValue
from apache_beam.utils.timestamp import Duration, Timestamp

_END: Final[Timestamp] = GlobalWindow().max_timestamp() - Duration(24 * 3600)
"""So late that no window ever waits for it, and early enough that nothing is dropped."""

HOURLY: Final = 3600.0


class Winder(beam.PTransform[Any, Any]):
    """Emits (number, b"") for each of `keys` numbers at the start and now and then: a timer that was lost starts again.

    The watermark of the output is a day before the end of time. So what follows has the watermark at which its timers
    hold it: a processing-time timer holds it at the time of the element or of the firing that set it.

    Args:
        keys: How many numbers, from 0.
        holds: Whether its elements are at the wall clock, so that timers set by them hold the watermark there; for what
            emits elements that windows wait for. Otherwise they are at the end and nobody ever waits.
        seconds: Between two elements of a key. Much less than an hour is for runners without RocksDB only.
    """

    def __init__(self, keys: int, *, holds: bool, seconds: float = HOURLY) -> None:
        super().__init__()
        self._wind = _WindDoFn(keys, holds, seconds)

    def expand(self, pipeline: Any) -> Any:
        wind = beam.ParDo(self._wind).with_output_types(tuple[int, bytes])
        return pipeline | "Start" >> beam.Impulse() | "Emit" >> wind


class _Turns(RestrictionProvider):
    """An endless range with one position a turn, which is never split: two halves would wind every key twice."""

    def initial_restriction(self, element: Any) -> OffsetRange:
        return OffsetRange(0, sys.maxsize)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return _OneByOneTracker(restriction)

    def restriction_size(self, element: Any, restriction: OffsetRange) -> int:
        return 1

    def truncate(self, element: Any, restriction: OffsetRange) -> None:
        return None


class _OneByOneTracker(OffsetRestrictionTracker):
    def try_split(self, fraction_of_remainder: float) -> Any:
        return super().try_split(0) if fraction_of_remainder == 0 else None

    def is_bounded(self) -> bool:
        return False


class _AtTheEnd(WatermarkEstimatorProvider):
    def initial_estimator_state(self, element: Any, restriction: Any) -> Timestamp:
        return _END

    def create_watermark_estimator(self, estimator_state: Timestamp) -> ManualWatermarkEstimator:
        return ManualWatermarkEstimator(estimator_state)


class _WindDoFn(beam.DoFn):
    def __init__(self, keys: int, holds: bool, seconds: float) -> None:
        self._keys = keys
        self._holds = holds
        self._seconds = seconds

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: bytes,
        restriction: Any = beam.DoFn.RestrictionParam(_Turns()),
        _watermark: Any = beam.DoFn.WatermarkEstimatorParam(_AtTheEnd()),
    ) -> Iterator[TimestampedValue]:
        if restriction.try_claim(restriction.current_restriction().start):
            at = Timestamp.now() if self._holds else _END
            for key in range(self._keys):
                yield TimestampedValue((key, b""), at)
            restriction.defer_remainder(Duration(self._seconds))
