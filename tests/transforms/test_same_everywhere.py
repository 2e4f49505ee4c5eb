"""The same agent and the same events give the same on every driver and runner."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import apache_beam as beam
import apache_beam.testing.test_stream as test_stream
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from pipeline_agents import clerk, triage

from beam_agents import RunAgent
from runners.prism import PrismUnavailable, install_prism, prism_options
from tests.streaming_job import Sink, running
from tests.streaming_source import Arrival, ArrivalStream

pytestmark = pytest.mark.usefixtures("replay_mode")

EVENTS: list[tuple[float, tuple[Any, Any]]] = [
    (at, (key, {"id": f"{key}-{number}", "amount": amount}))
    for at, (key, number, amount) in enumerate(
        [
            ("anna", 1, 30),
            ("bert", 1, 0.5),
            ("carl", 1, 10),
            ("anna", 2, 50),
            ("anna", 3, 40),
            ("bert", 2, 100),
            ("anna", 4, 0.25),
            ("dora", 1, 7),
        ]
    )
]
EVENTS += [
    (20, ("anna", {"id": "anna-1", "amount": 30})),  # again
    (21, ("bert", {"id": "bert-2", "amount": 99})),  # its id was used before
    (22, ("dora", {"id": "dora-2"})),
    (23, (None, {"id": "nobody-1", "amount": 1})),
]


def describe(kind: str, element: Any) -> str:
    """What is compared: all of an output but the times of a trace."""
    key, value = element
    data = value.model_dump(mode="json", exclude={"started", "ended"})
    return json.dumps([kind, key, data], sort_keys=True)


def outputs_of(events: Any, agent: Any, ledger: Path, windowed: bool) -> Any:
    """All outputs of an agent, each with the window it is in, as one PCollection of text."""
    if windowed:
        events = events | beam.WindowInto(FixedWindows(5))
    out = events | RunAgent(agent, event_id="id", ledger=f"sqlite:///{ledger}")

    def with_window(element: Any, kind: str, window: Any = beam.DoFn.WindowParam) -> str:
        return f"{describe(kind, element)} {window}"

    named = {"result": out.results, "failure": out.failures, "duplicate": out.duplicates, "trace": out.trace}
    named["emitted"] = out.emitted
    described = tuple(
        pcoll | f"Describe {kind}" >> beam.Map(with_window, kind).with_output_types(str)
        for kind, pcoll in named.items()
    )
    return described | beam.Flatten()


def on_fn_api(agent: Any, folder: Path, windowed: bool, *options: str) -> list[str]:
    sink = Sink()
    with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner", *options])) as pipeline:
        created = pipeline | beam.Create(EVENTS)
        events = created | beam.MapTuple(lambda at, element: TimestampedValue(element, at)).with_output_types(
            tuple[Any, Any]
        )
        outputs_of(events, agent, folder / "ledger.db", windowed) | sink
    return sorted(sink.values())


@pytest.fixture(params=[False, True], ids=["global", "windowed"])
def windowed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=[clerk, triage], ids=["react", "workflow"])
def agent(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_under_a_test_stream_as_in_a_batch(agent: Any, windowed: bool, tmp_path: Path) -> None:
    batch = on_fn_api(agent, tmp_path, windowed)
    kinds = Counter(line.split('"')[1] for line in batch)
    # In another window the same id is another event: its window is part of its identity.
    expected = (10, 2, 0) if windowed else (8, 3, 1)
    assert (kinds["result"], kinds["failure"], kinds["duplicate"]) == expected
    stream = test_stream.TestStream()
    for at, element in EVENTS:
        stream = stream.advance_watermark_to(at).add_elements([TimestampedValue(element, at)])
    sink = Sink()
    pipeline = beam.Pipeline(options=PipelineOptions(["--runner=BundleBasedDirectRunner", "--streaming"]))
    events = (
        pipeline | stream.advance_watermark_to_infinity() | beam.Map(lambda e: e).with_output_types(tuple[Any, Any])
    )
    outputs_of(events, agent, tmp_path / "another.db", windowed) | sink
    pipeline.run().wait_until_finish()
    assert sorted(sink.values()) == batch


def test_on_prism_as_in_a_batch(agent: Any, windowed: bool, tmp_path: Path) -> None:
    try:
        install_prism()
    except PrismUnavailable as error:
        pytest.skip(str(error))
    batch = on_fn_api(agent, tmp_path, windowed)
    sink = Sink()
    pipeline = beam.Pipeline(options=PipelineOptions(prism_options()))
    arrivals = [Arrival(0.05 * index, element, at) for index, (at, element) in enumerate(EVENTS)]
    events = pipeline | ArrivalStream(arrivals, then="idle", element_type=tuple[Any, Any])
    outputs_of(events, agent, tmp_path / "another.db", windowed) | sink
    with running(pipeline) as job:
        assert sorted(seen.value for seen in sink.take(len(batch), job)) == batch


def test_when_every_bundle_is_run_twice(agent: Any, windowed: bool, tmp_path: Path) -> None:
    once = on_fn_api(agent, tmp_path, windowed)
    (tmp_path / "twice").mkdir()
    # The sink's bundles run twice too, so it sees each element twice, and no other.
    assert sorted(set(on_fn_api(agent, tmp_path / "twice", windowed, "--direct_runner_bundle_repeat=1"))) == sorted(
        set(once)
    )


def test_a_job_that_is_started_again_replays(agent: Any, windowed: bool, tmp_path: Path) -> None:
    first = on_fn_api(agent, tmp_path, windowed)
    assert on_fn_api(agent, tmp_path, windowed) == first
