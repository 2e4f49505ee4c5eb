"""`WriteJsonLines`: each value in one file, files whole, late values and repetitions included."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.testing import test_stream
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import TimestampedValue

from beam_agents import RunResult
from beam_agents.errors import ConfigurationError
from beam_agents.io import WriteJsonLines


def result(run_id: str) -> RunResult[Any, Any]:
    return RunResult(run_id=run_id, event={"n": 1}, output="fine")


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_bounded_input_makes_a_file_for_each_shard_and_a_second_run_replaces_them(tmp_path: Path):
    for _ in range(2):
        with beam.Pipeline("FnApiRunner") as pipeline:
            values = pipeline | beam.Create([(f"key{n}", result(f"run{n}")) for n in range(50)])
            values | WriteJsonLines(tmp_path / "out", shards=3)
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == [f"results-{n:03d}-of-003.jsonl" for n in range(3)]
    written = [line for file in files for line in lines(file)]
    assert sorted(line["id"] for line in written) == sorted(f"run{n}" for n in range(50))
    assert written[0]["kind"] == "result"
    assert written[0]["value"]["output"] == "fine"


def test_a_file_has_all_of_its_span_also_what_comes_late(tmp_path: Path):
    stream = (
        test_stream.TestStream()
        .advance_watermark_to(1_700_000_000)
        .add_elements([TimestampedValue(("b", 2), 1_700_000_002), TimestampedValue(("a", 1), 1_700_000_001)])
        .add_elements([TimestampedValue(("c", 3), 1_700_000_011)])
        .advance_watermark_to(1_700_000_010)
        .add_elements([TimestampedValue(("d", 4), 1_700_000_003)])
        .add_elements([TimestampedValue(("e", 5), 1_699_990_000)])
        .advance_watermark_to_infinity()
    )
    options = PipelineOptions(["--runner=BundleBasedDirectRunner"])
    options.view_as(StandardOptions).streaming = True
    with beam.Pipeline(options=options) as pipeline:
        pipeline | stream | WriteJsonLines(tmp_path, every=timedelta(seconds=10), prefix="out")
    assert {file.name: [line["key"] for line in lines(file)] for file in tmp_path.iterdir()} == {
        "out-20231114T221320Z-20231114T221330Z-000-of-001.jsonl": ["a", "b", "d"],
        "out-20231114T221330Z-20231114T221340Z-000-of-001.jsonl": ["c"],
    }


def test_lines_of_the_users_own_form_and_values_that_are_no_json(tmp_path: Path):
    with beam.Pipeline("FnApiRunner") as pipeline:
        left = (
            pipeline
            | beam.Create([("a", 1.5), ("b", float("nan")), ("c", None)])
            | WriteJsonLines(tmp_path, line=lambda key, value: [key, value + 1])
        )
        assert_that(
            left | beam.MapTuple(lambda key, one: (key, one.message[:9])),
            equal_to([("b", "ValueErro"), ("c", "TypeError")]),
        )
    (file,) = tmp_path.iterdir()
    assert lines(file) == [["a", 2.5]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": timedelta(milliseconds=1500)}, "every="),
        ({"lateness": timedelta(seconds=-1)}, "lateness="),
        ({"shards": 0}, "shards=0"),
        ({"prefix": "../x"}, "prefix='../x'"),
        ({"line": "value"}, "line='value'"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(arguments: dict[str, Any], message: str):
    with pytest.raises(ConfigurationError, match=message):
        WriteJsonLines("out", **arguments)
