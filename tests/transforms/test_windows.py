"""Event time and window survive a stage in the global window, on every runner that runs on one machine."""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.coders import BytesCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.combiners import CountCombineFn
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, AfterWatermark
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from apache_beam.transforms.window import (
    FixedWindows,
    GlobalWindow,
    GlobalWindows,
    IntervalWindow,
    Sessions,
    SlidingWindows,
    TimestampedValue,
)

from beam_agents.transforms.windows import RestoreWindows, decode_window, encode_window, window_coder
from runners.prism import prism_options, prism_path

EVENTS = [("a", "a1", 1), ("a", "a2", 4), ("a", "a3", 12), ("b", "b1", 2), ("b", "b2", 31)]

needs_prism = pytest.mark.skipif(prism_path() is None, reason="Prism is not built: run 'python -m runners.prism'")

on_each_runner = pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--runner=FnApiRunner"], id="fn_api"),
        pytest.param(["--runner=BundleBasedDirectRunner"], id="bundle_based"),
        pytest.param(prism_options(streaming=False), id="prism", marks=needs_prism),
    ],
)


class Carry(beam.DoFn):
    def __init__(self, coder):
        self._coder = coder

    def process(self, element, timestamp=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam):
        key, value = element
        yield key, (value, timestamp.micros, encode_window(window, self._coder))


class InGlobalState(beam.DoFn):
    """Stands for the agent: stateful, and all elements of a key meet in one window."""

    SEEN = ReadModifyWriteStateSpec("seen", BytesCoder())

    def process(self, element, window=beam.DoFn.WindowParam, seen=beam.DoFn.StateParam(SEEN)):
        assert isinstance(window, GlobalWindow)
        key, (value, micros, encoded) = element
        count = int(seen.read() or b"0") + 1
        seen.write(b"%d" % count)
        yield (key, (value, count)), micros, encoded


class Show(beam.DoFn):
    def process(self, element, timestamp=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam):
        key, values = element
        yield key, sorted(values) if isinstance(values, list) else values, float(timestamp), str(window)


def through_global_state(events):
    return (
        events
        | "Carry"
        >> beam.ParDo(Carry(window_coder(events.windowing))).with_output_types(tuple[str, tuple[str, int, bytes]])
        | "Global" >> beam.WindowInto(GlobalWindows())
        | "State" >> beam.ParDo(InGlobalState()).with_output_types(tuple[tuple[str, tuple[str, int]], int, bytes])
        | "Restore" >> RestoreWindows(events.windowing, value_type=tuple[str, tuple[str, int]])
    )


def windowed_events(pipeline, windows):
    return (
        pipeline
        | beam.Create(EVENTS)
        | beam.Map(lambda event: TimestampedValue(event[:2], event[2])).with_output_types(tuple[str, str])
        | beam.WindowInto(windows)
    )


@on_each_runner
@pytest.mark.parametrize(
    ("windows", "elements", "groups"),
    [
        pytest.param(
            GlobalWindows(),
            {"a1": ["GlobalWindow"], "a2": ["GlobalWindow"], "a3": ["GlobalWindow"], "b1": ["GlobalWindow"]}
            | {"b2": ["GlobalWindow"]},
            [("a", ["a1", "a2", "a3"], "GlobalWindow"), ("b", ["b1", "b2"], "GlobalWindow")],
            id="global",
        ),
        pytest.param(
            FixedWindows(10),
            {"a1": ["[0.0, 10.0)"], "a2": ["[0.0, 10.0)"], "a3": ["[10.0, 20.0)"], "b1": ["[0.0, 10.0)"]}
            | {"b2": ["[30.0, 40.0)"]},
            [
                ("a", ["a1", "a2"], "[0.0, 10.0)"),
                ("a", ["a3"], "[10.0, 20.0)"),
                ("b", ["b1"], "[0.0, 10.0)"),
                ("b", ["b2"], "[30.0, 40.0)"),
            ],
            id="fixed",
        ),
        pytest.param(
            SlidingWindows(10, 5),
            {"a1": ["[-5.0, 5.0)", "[0.0, 10.0)"], "a2": ["[-5.0, 5.0)", "[0.0, 10.0)"]}
            | {"a3": ["[5.0, 15.0)", "[10.0, 20.0)"], "b1": ["[-5.0, 5.0)", "[0.0, 10.0)"]}
            | {"b2": ["[25.0, 35.0)", "[30.0, 40.0)"]},
            [
                ("a", ["a1", "a2"], "[-5.0, 5.0)"),
                ("a", ["a1", "a2"], "[0.0, 10.0)"),
                ("a", ["a3"], "[5.0, 15.0)"),
                ("a", ["a3"], "[10.0, 20.0)"),
                ("b", ["b1"], "[-5.0, 5.0)"),
                ("b", ["b1"], "[0.0, 10.0)"),
                ("b", ["b2"], "[25.0, 35.0)"),
                ("b", ["b2"], "[30.0, 40.0)"),
            ],
            id="sliding",
        ),
        pytest.param(
            Sessions(5),
            {"a1": ["[1.0, 6.0)"], "a2": ["[4.0, 9.0)"], "a3": ["[12.0, 17.0)"], "b1": ["[2.0, 7.0)"]}
            | {"b2": ["[31.0, 36.0)"]},
            [
                ("a", ["a1", "a2"], "[1.0, 9.0)"),
                ("a", ["a3"], "[12.0, 17.0)"),
                ("b", ["b1"], "[2.0, 7.0)"),
                ("b", ["b2"], "[31.0, 36.0)"),
            ],
            id="sessions",
        ),
    ],
)
def test_elements_are_at_their_time_in_their_window_and_group_there(options, windows, elements, groups):
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        restored = through_global_state(windowed_events(pipeline, windows)) | beam.MapTuple(
            lambda key, seen: (key, seen[0])
        ).with_output_types(tuple[str, str])
        shown = restored | "Show" >> beam.ParDo(Show()) | "Unwindow" >> beam.WindowInto(GlobalWindows())
        grouped = (
            restored
            | beam.GroupByKey()
            | beam.MapTuple(lambda key, values: (key, list(values)))
            | "ShowGroups" >> beam.ParDo(Show())
            | beam.Map(lambda shown: (shown[0], shown[1], shown[3]))
            | "UnwindowGroups" >> beam.WindowInto(GlobalWindows())
        )
        in_windows = [(key, value, float(at), window) for key, value, at in EVENTS for window in elements[value]]
        assert_that(shown, equal_to(in_windows), label="Elements")
        assert_that(grouped, equal_to(groups), label="Groups")


@on_each_runner
def test_sessions_that_were_merged_before_stay_as_they_are(options):
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        sessions = (
            windowed_events(pipeline, Sessions(5))
            | beam.GroupByKey()
            | beam.MapTuple(lambda key, values: (key, "+".join(sorted(values)))).with_output_types(tuple[str, str])
        )
        counted = (
            through_global_state(sessions)
            | beam.MapTuple(lambda key, seen: (key, seen[0])).with_output_types(tuple[str, str])
            | beam.CombinePerKey(CountCombineFn())
            | beam.ParDo(Show())
            | beam.Map(lambda shown: (shown[0], shown[1], shown[3]))
            | "Unwindow" >> beam.WindowInto(GlobalWindows())
        )
        expected = [("a", 1, "[1.0, 9.0)"), ("a", 1, "[12.0, 17.0)"), ("b", 1, "[2.0, 7.0)"), ("b", 1, "[31.0, 36.0)")]
        assert_that(counted, equal_to(expected))


def test_the_output_has_the_input_s_whole_windowing():
    pipeline = beam.Pipeline(runner="FnApiRunner")
    events = (
        pipeline
        | beam.Create([("a", "a1")])
        | beam.WindowInto(
            FixedWindows(10),
            trigger=AfterWatermark(late=AfterCount(1)),
            accumulation_mode=AccumulationMode.ACCUMULATING,
            allowed_lateness=60,
        )
    )
    restored = through_global_state(events)
    assert restored.windowing == events.windowing
    assert restored.element_type == beam.typehints.Tuple[str, beam.typehints.Tuple[str, int]]


@pytest.mark.parametrize(
    ("windows", "window", "encoded"),
    [
        (GlobalWindows(), GlobalWindow(), b""),
        (FixedWindows(10), IntervalWindow(10, 20), bytes.fromhex("8000000000004e20904e")),
    ],
)
def test_a_window_is_written_the_same_for_ever(windows, window, encoded):
    pipeline = beam.Pipeline(runner="FnApiRunner")
    coder = window_coder((pipeline | beam.Create([("a", "a1")]) | beam.WindowInto(windows)).windowing)
    assert encode_window(window, coder) == encoded
    assert decode_window(encoded, coder) == window
