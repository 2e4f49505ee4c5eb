"""The files of the examples: rows in, bad lines apart, sorted lines out."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_agents import RunFailure
from examples.common import DEFAULT_RUNNER, ReadRows, WriteJsonl, json_line, read_jsonl, read_rows


def pipeline() -> beam.Pipeline:
    return beam.Pipeline(options=PipelineOptions([f"--runner={DEFAULT_RUNNER}"]))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def sorted_out(path: Path) -> tuple[list[dict[str, Any]], list[tuple[str, str | None]]]:
    """The rows of a file, and message and raw text of its bad lines."""
    rows, bad = [], []
    for row in read_rows(path):
        if isinstance(row, RunFailure):
            bad.append((row.message, row.raw))
        else:
            rows.append(row)
    return rows, bad


def test_json_lines_that_are_no_objects_are_set_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"a": 1}\n\n[1]\n{"a"\n{"a": "\xff"}\n{"a": 2}')
    rows, bad = sorted_out(path)
    assert rows == [{"a": 1}, {"a": 2}]
    assert [message.split(" is not")[0] for message, _ in bad] == [
        "a.jsonl, line 3",
        "a.jsonl, line 4",
        "a.jsonl, line 5",
    ]
    assert [raw for _, raw in bad] == ["[1]", '{"a"', '{"a": "\\xff"}']


def test_csv_rows_that_do_not_fit_the_header_are_set_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "a.CSV", b'\xef\xbb\xbfid,text\n1,"two\nlines"\n2\n\n3,x,y\n4,\xff\n5,\n')
    rows, bad = sorted_out(path)
    assert rows == [{"id": "1", "text": "two\nlines"}, {"id": "5"}]
    assert bad == [
        ("a.CSV, line 4 has 1 cells, the header has 2", "2"),
        ("a.CSV, line 6 has 3 cells, the header has 2", "3,x,y"),
        ("a.CSV, line 7 is not UTF-8", "4,\\xff"),
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_an_empty_file_has_no_rows(tmp_path: Path, name: str) -> None:
    assert sorted_out(write(tmp_path / name, b"")) == ([], [])


def test_rows_and_bad_lines_pass_through_a_pipeline(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"n": 2}\nnot json\n{"n": 1}\n')
    with pipeline() as running:
        rows, bad = running | ReadRows(path)
        keyed = rows | beam.WithKeys(lambda row: row["n"])
        keyed | "Rows" >> WriteJsonl(tmp_path / "rows.jsonl")
        (bad, keyed) | "All" >> WriteJsonl(tmp_path / "all.jsonl")
    assert [row["key"] for row in read_jsonl(tmp_path / "rows.jsonl")] == [1, 2]
    assert {row.get("raw") for row in read_jsonl(tmp_path / "all.jsonl")} == {"not json", None}


def by_size(row: dict[str, Any]) -> int:
    return -row["value"]


@pytest.mark.parametrize(("pairs", "values"), [([("a", 1), ("b", 3), ("c", 2)], [3, 2, 1]), ([], [])])
def test_lines_are_sorted_and_replace_what_was_there(
    tmp_path: Path, pairs: Iterable[tuple[str, int]], values: list[int]
) -> None:
    path = write(tmp_path / "out.jsonl", b"older and longer than what comes\n" * 10)
    with pipeline() as running:
        running | beam.Create(pairs) | WriteJsonl(path, order=by_size)
    assert [row["value"] for row in read_jsonl(path)] == values
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_leaves_out_what_is_empty() -> None:
    failure = RunFailure(reason="invalid_event", message="no", raw="")
    line = json_line((None, failure))
    assert '"transcript"' not in line
    assert '"run_id"' not in line
    assert line.startswith('{"key":null,"message":"no","raw":""')
