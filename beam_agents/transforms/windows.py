"""Carry event time and window through a stage that works in the global window, and give them back behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue


def window_coder(windowing: Any) -> Any:
    """The coder of the windows of a PCollection's `windowing`; give it to `encode_window` and `decode_window`."""
    return windowing.windowfn.get_window_coder()


def encode_window(window: Any, coder: Any) -> bytes:
    """A window as bytes, the same in every process; the global window is empty."""
    return bytes(coder.encode(window))


def decode_window(data: bytes, coder: Any) -> Any:
    """The window that `encode_window` wrote."""
    return coder.decode(data)


class RestoreWindows(beam.PTransform[Any, Any]):
    """Turns (value, event time in microseconds, window) elements into the values at their old time in their old window.

    The output has the windowing of the PCollection that they came from, so that it can be grouped and joined as that
    one. An element whose window has ended in the meantime is late there: what holds it back must hold the watermark.

    Args:
        windowing: The `windowing` of the PCollection whose windows were encoded.
        value_type: The type of the values.
    """

    def __init__(self, windowing: Any, *, value_type: Any = Any) -> None:
        super().__init__()
        self._windowing = windowing
        self._value_type = value_type

    def expand(self, pcoll: Any) -> Any:
        restore = _RestoreDoFn(window_coder(self._windowing))
        return pcoll | "Restore" >> _ParDoInto(restore, self._windowing).with_output_types(self._value_type)


class _RestoreDoFn(beam.DoFn):
    def __init__(self, coder: Any) -> None:
        self._coder = coder

    def process(self, element: tuple[Any, int, bytes]) -> Iterator[WindowedValue]:
        value, micros, window = element
        yield WindowedValue(value, Timestamp(micros=micros), (decode_window(window, self._coder),))


class _ParDoInto(beam.ParDo):
    """A ParDo whose DoFn emits values that are in windows already: those of another windowing than the input's."""

    def __init__(self, fn: beam.DoFn, windowing: Any) -> None:
        super().__init__(fn)
        self._output_windowing = windowing

    def get_windowing(self, inputs: Any) -> Any:
        return self._output_windowing
