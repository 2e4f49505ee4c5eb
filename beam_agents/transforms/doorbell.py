"""The doorbell: says inside a stream which keys the worker process has news for.

Work that goes on in a worker process between bundles cannot emit anything by itself. The doorbell is a second input of
the stateful transform that started the work: at a fixed pace it asks the process which keys to look at and sends each
of them an element, which the runner brings to the key as it brings any event.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import GenericAlias
from typing import Any, Final, NamedTuple

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP

from beam_agents.errors import ConfigurationError
from beam_agents.stored import Stored
from beam_agents.transforms.winder import Winder

Drain = Callable[[int], Iterable[Any] | None]
Restored = Callable[[float], bool]
Join = Callable[[], Callable[[], None]]

LOOK: Final = b"look"
"""The value of every element that the doorbell emits."""

ALIVE_SECONDS = 60.0
"""How old what a ticker's state says of when it was last alive may become."""


class Alive(Stored):
    """When a ticker was last alive."""

    at: float
    """Seconds since 1970."""


class Doorbell(beam.PTransform[Any, Any]):
    """Emits (key, `LOOK`) for every key that `drain` returns, soon after it has something to return.

    The elements are hints: one may be lost with a worker, or come twice. They are at the beginning of time, because
    Prism keeps an element from its key while an event-time timer of that key is due before it. So whoever handles one
    emits with a timestamp of its own and sets no processing-time timer: that would hold the watermark there.
    The watermark of the output is a day before the end of time and holds back nobody. (After a restore on Flink it can
    be the wall clock, less an interval: there a timer that sets itself again holds the watermark at its last firing.)
    The output is unbounded: a pipeline with a doorbell runs until it is cancelled, and it needs a runner with unbounded
    splittable DoFns and real time.

    Args:
        drain: Takes the number of the ticker that asks; returns the keys to look at and forgets them, or `None` when
            another ticker of the same process asks already. Called in every worker process that has a ticker, on the
            bundle's thread, so it must not wait. Must be picklable: a function of an importable module.
        key_type: The type of the keys, the same as in the PCollection that the output is flattened with.
        busy: Whether the process has work whose end will ring. By default it never has.
        restored: Takes the time (seconds since 1970) at which a ticker was last alive before this instance of its DoFn:
            the age of the state that a restored job goes on from, `ALIVE_SECONDS` more at most. Returns whether it
            took notice; if not, it is called again at the next tick. Like `drain`, it must not wait.
        join: Called when a worker process gets a ticker; returns what is called when it has it no longer. After a crash
            nothing else may come to the new process for long: what `drain` tells must not wait for it.
        tickers: How many keys tick. They are spread over the workers like any keys, so there have to be several times
            as many as worker processes for each to have one. Only one of a process keeps the pace.
        busy_interval: Seconds between two calls of `drain` after one that returned keys.
        quiet_interval: The most seconds between two calls while the process is busy and returns none: the interval
            grows by a quarter up to it. Each call takes the runner some milliseconds of a processor.
        idle_interval: The most seconds between two calls; while there is nothing to do, the interval doubles up to it.
        standby_interval: Seconds between two calls by a ticker whose `drain` returned `None`.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    def __init__(
        self,
        drain: Drain,
        *,
        key_type: Any = Any,
        busy: Callable[[], bool] | None = None,
        restored: Restored | None = None,
        join: Join | None = None,
        tickers: int = 16,
        busy_interval: float = 0.05,
        idle_interval: float = 0.5,
        quiet_interval: float = 0.15,
        standby_interval: float = 8.0,
    ) -> None:
        super().__init__()
        if tickers < 1:
            raise ConfigurationError(f"tickers={tickers!r}: a doorbell needs at least one")
        if not 0 < busy_interval <= quiet_interval <= idle_interval:
            raise ConfigurationError(
                f"busy_interval={busy_interval!r} must be above 0 and not above quiet_interval={quiet_interval!r}, and "
                f"that not above idle_interval={idle_interval!r}"
            )
        paces = Paces(busy_interval, quiet_interval, idle_interval, standby_interval)
        self._ticker = TickerDoFn(drain, busy, paces, restored, join)
        self._tickers = tickers
        self._key_type = key_type

    def expand(self, pipeline: Any) -> Any:
        return (
            pipeline
            | "Wind" >> Winder(self._tickers, holds=False)
            | "Tick" >> beam.ParDo(self._ticker).with_output_types(GenericAlias(tuple, (self._key_type, bytes)))
        )


class Paces(NamedTuple):
    """Seconds between two calls of `drain`, as `Doorbell` says."""

    busy: float
    quiet: float
    idle: float
    standby: float


class TickerDoFn(beam.DoFn):
    """Calls `drain` from a processing-time timer that sets itself again."""

    _TICK = TimerSpec("tick", TimeDomain.REAL_TIME)
    _ALIVE = ReadModifyWriteStateSpec("alive", BytesCoder())

    def __init__(
        self,
        drain: Drain,
        busy: Callable[[], bool] | None,
        paces: Paces,
        restored: Restored | None = None,
        join: Join | None = None,
    ) -> None:
        self._join = join
        self._drain = drain
        self._busy = busy
        self._restored = restored
        self._paces = paces
        self._interval = paces.busy
        self._alive: dict[int, float] = {}

    def setup(self) -> None:
        self._leave = None if self._join is None else self._join()

    def teardown(self) -> None:
        if self._leave is not None:
            self._leave()

    def process(self, element: tuple[int, bytes], tick: Any = beam.DoFn.TimerParam(_TICK)) -> None:
        tick.set(time.time() + self._paces.busy)

    @on_timer(_TICK)
    def ring(
        self,
        ticker: int = beam.DoFn.KeyParam,
        tick: Any = beam.DoFn.TimerParam(_TICK),
        alive: Any = beam.DoFn.StateParam(_ALIVE),
    ) -> Iterator[TimestampedValue]:
        if self._restored is not None:
            self._show_life(ticker, alive, self._restored)
        keys = self._drain(ticker)
        if keys is None:
            tick.set(time.time() + self._paces.standby)
            return
        rang = False
        for key in keys:
            rang = True
            yield TimestampedValue((key, LOOK), MIN_TIMESTAMP)
        if rang:
            self._interval = self._paces.busy
        elif self._busy is not None and self._busy():
            self._interval = min(1.25 * self._interval, self._paces.quiet)
        else:
            self._interval = min(2 * self._interval, self._paces.idle)
        tick.set(time.time() + self._interval)

    def _show_life(self, ticker: int, alive: Any, restored: Restored) -> None:
        now = time.time()
        if ticker not in self._alive:
            raw = alive.read()
            if raw is not None and not restored(Alive.from_json(raw).at):
                return
        elif now - self._alive[ticker] < ALIVE_SECONDS:
            return
        alive.write(Alive(at=now).to_json())
        self._alive[ticker] = now
