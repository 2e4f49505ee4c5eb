"""The doorbell on a streaming runner, beside a stand-in for the agent: a stateful DoFn that waits to be rung."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from types import SimpleNamespace

import apache_beam as beam
import pytest
from apache_beam.coders import BytesCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import FixedWindows, GlobalWindows
from apache_beam.utils.windowed_value import PaneInfoTiming

from beam_agents.errors import ConfigurationError
from beam_agents.transforms import doorbell
from beam_agents.transforms.doorbell import LOOK, Doorbell, Paces, TickerDoFn
from beam_agents.transforms.windows import RestoreWindows, encode_window, window_coder
from runners.prism import prism_options, prism_path
from tests.streaming_job import Sink, running
from tests.streaming_source import Arrival, ArrivalStream

needs_prism = pytest.mark.skipif(prism_path() is None, reason="Prism is not built: run 'python -m runners.prism'")

# A job that is cancelled while a worker thread opens a data channel to it leaves this behind.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception in thread read_grpc_client_inputs:pytest.PytestUnhandledThreadExceptionWarning"
)

START = 1_700_000_000
FIRST_WINDOW = f"[{START}.0, {START + 10}.0)"

rung: defaultdict[str, SimpleQueue[str]] = defaultdict(SimpleQueue)


class Drain:
    """Returns the keys that a test has put into its queue in `rung`."""

    def __init__(self, test: str) -> None:
        self._test = test

    def __call__(self, ticker: int) -> Iterator[str]:
        while True:
            try:
                yield rung[self._test].get_nowait()
            except Empty:
                return


class Pack(beam.DoFn):
    def __init__(self, coder):
        self._coder = coder

    def process(self, element, timestamp=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam):
        key, value = element
        yield key, json.dumps([value, timestamp.micros, encode_window(window, self._coder).hex()]).encode()


class Working(beam.DoFn):
    """Keeps the events of a key until the doorbell rings for it, then emits them."""

    KEPT = BagStateSpec("kept", BytesCoder())
    HOLD = TimerSpec("hold", TimeDomain.REAL_TIME)
    EXPIRY = TimerSpec("expiry", TimeDomain.WATERMARK)

    def process(
        self,
        element,
        kept=beam.DoFn.StateParam(KEPT),
        hold=beam.DoFn.TimerParam(HOLD),
        expiry=beam.DoFn.TimerParam(EXPIRY),
    ):
        key, data = element
        if data != LOOK:
            kept.add(data)
            # Prism keeps an element from a key that has an event-time timer before it: the doorbell must come through.
            expiry.set(START + 90 * 24 * 3600)
            # Holds the watermark at this event's time. Each event needs a timer of its own: setting one again moves it.
            hold.set(time.time() + 600, dynamic_timer_tag=data.decode())
            return
        for held in kept.read():
            hold.clear(dynamic_timer_tag=held.decode())
            value, micros, window = json.loads(held)
            yield (key, value), micros, bytes.fromhex(window)
        kept.clear()

    @on_timer(HOLD)
    def released(self):
        """Prism fires timers that were cleared."""

    @on_timer(EXPIRY)
    def expired(self):
        """Not in this test."""


def streaming_pipeline() -> beam.Pipeline:
    return beam.Pipeline(options=PipelineOptions(prism_options()))


@needs_prism
def test_a_rung_key_is_looked_at_and_its_results_are_on_time_in_their_windows():
    arrivals = [
        Arrival(0, ("card", "first"), START + 1),
        Arrival(0, ("card", "second"), START + 9),
        Arrival(0, ("other", "a later one"), START + 100),
    ]
    pipeline = streaming_pipeline()
    stream = ArrivalStream(arrivals, then="idle", element_type=tuple[str, str])
    events = pipeline | "Events" >> stream | beam.WindowInto(FixedWindows(10))
    passed, results = Sink(), Sink()
    events | "GroupEvents" >> beam.GroupByKey() | "Passed" >> passed
    packed = (
        events
        | beam.ParDo(Pack(window_coder(events.windowing))).with_output_types(tuple[str, bytes])
        | "Global" >> beam.WindowInto(GlobalWindows())
    )
    bells = pipeline | Doorbell(Drain("results"), key_type=str)
    worked = (
        (packed, bells) | beam.Flatten() | beam.ParDo(Working()).with_output_types(tuple[tuple[str, str], int, bytes])
    )
    restored = worked | RestoreWindows(events.windowing, value_type=tuple[str, str])
    restored | "GroupResults" >> beam.GroupByKey() | "Results" >> results

    with running(pipeline) as job:
        [source] = passed.take(1, job)
        assert source.window == FIRST_WINDOW
        rung["results"].put("card")
        [result] = results.take(1, job)

    key, values = result.value
    assert (key, sorted(values)) == ("card", ["first", "second"])
    assert result.window == FIRST_WINDOW
    assert result.timing == PaneInfoTiming.ON_TIME


@needs_prism
def test_a_doorbell_holds_no_watermark_and_runs_until_it_is_cancelled():
    arrivals = [Arrival(0, ("card", b"event"), START)]
    pipeline = streaming_pipeline()
    events = pipeline | "Events" >> ArrivalStream(arrivals, then="finish", element_type=tuple[str, bytes])
    bells = pipeline | Doorbell(Drain("watermark"), key_type=str)
    rings, windows = Sink(), Sink()
    bells | "Rings" >> rings
    flat = (events, bells) | beam.Flatten() | beam.Filter(lambda pair: pair[1] != LOOK)
    flat | beam.WindowInto(FixedWindows(10)) | beam.GroupByKey() | "Windows" >> windows

    with running(pipeline) as job:
        [window] = windows.take(1, job)
        for key in ("one", "two"):
            rung["watermark"].put(key)
        seen = rings.take(2, job)
        assert job.state == PipelineState.RUNNING

    assert job.state == PipelineState.CANCELLED
    assert (window.value, window.window, window.timing) == (
        ("card", [b"event"]),
        FIRST_WINDOW,
        PaneInfoTiming.ON_TIME,
    )
    assert sorted(ring.value for ring in seen) == [("one", LOOK), ("two", LOOK)]


@needs_prism
def test_a_stream_without_doorbell_ends_when_it_has_nothing_more_to_say():
    arrivals = [Arrival(0, "first", START), Arrival(0.1, "second", START + 60)]
    pipeline = streaming_pipeline()
    seen = Sink()
    pipeline | ArrivalStream(arrivals, then="finish", element_type=str) | seen

    with running(pipeline) as job:
        assert job.wait_until_finish() == PipelineState.DONE
        assert [(value, timestamp) for value, timestamp, *_ in seen.take(2, job)] == [
            ("first", START),
            ("second", START + 60),
        ]


class Tick:
    """A timer that notes how long from now it was set."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def set(self, due: float) -> None:
        self.waits.append(round(due - 1000, 3))


PACES = Paces(busy=0.05, quiet=0.15, idle=0.5, standby=2)


@pytest.fixture
def tick(monkeypatch):
    monkeypatch.setattr(doorbell, "time", SimpleNamespace(time=lambda: 1000))
    return Tick()


def test_the_pace_slows_down_while_there_is_nothing_to_do_and_is_back_at_the_first_key(tick):
    keys: list[str] = []
    ticker = TickerDoFn(lambda _: keys, None, PACES)
    ticker.process((0, LOOK), tick)
    for _ in range(5):
        assert list(ticker.ring(0, tick)) == []
    keys = ["card"]
    assert [bell.value for bell in ticker.ring(0, tick)] == [("card", LOOK)]
    assert tick.waits == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5, 0.05]


def test_the_pace_slows_down_a_little_while_nothing_ends_and_is_back_at_the_first_key(tick):
    busy, keys = True, []
    ticker = TickerDoFn(lambda _: keys, lambda: busy, PACES)
    for _ in range(6):
        list(ticker.ring(0, tick))
    assert tick.waits == [0.062, 0.078, 0.098, 0.122, 0.15, 0.15]
    keys = ["card"]
    list(ticker.ring(0, tick))
    assert tick.waits[-1] == 0.05
    busy, keys = False, []
    for _ in range(5):
        list(ticker.ring(0, tick))
    assert tick.waits[-1] == 0.5
    busy = True
    list(ticker.ring(0, tick))
    assert tick.waits[-1] == 0.15


def test_one_ticker_of_a_process_keeps_the_pace_and_the_others_stand_by(tick):
    asked = []

    def drain(ticker: int) -> list[str] | None:
        asked.append(ticker)
        return ["card"] if ticker == 3 else None

    ticker = TickerDoFn(drain, lambda: True, PACES)
    assert [[bell.value for bell in ticker.ring(number, tick)] for number in (3, 4, 3)] == [
        [("card", LOOK)],
        [],
        [("card", LOOK)],
    ]
    assert asked == [3, 4, 3]
    assert tick.waits == [0.05, 2, 0.05]


def test_a_process_that_gets_a_ticker_joins_and_leaves_with_it():
    said = []

    def join():
        said.append("joined")
        return lambda: said.append("left")

    ticker = TickerDoFn(lambda _: [], None, PACES, join=join)
    ticker.setup()
    assert said == ["joined"]
    ticker.teardown()
    assert said == ["joined", "left"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"tickers": 0}, "tickers=0"),
        ({"busy_interval": 0}, "busy_interval=0"),
        ({"busy_interval": 2, "quiet_interval": 1}, "quiet_interval=1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, named):
    with pytest.raises(ConfigurationError, match=named):
        Doorbell(Drain("none"), **arguments)
