"""What the examples share: the command line, files in, files out, progress, and the counts for the summary.

A program made of these parts reads like this:

    arguments, beam_options = parse(parser("fraud", __doc__))
    with Progress(), beam.Pipeline(options=beam_options) as pipeline:
        rows, bad_lines = pipeline | ReadRows(arguments.input)
        out = rows | beam.WithKeys(...) | RunAgent(agent, ledger=arguments.ledger, ...)
        write_outputs(out, arguments.out, bad_lines=bad_lines)
    counts = counters(pipeline.result, scope="fraud")
    print(headline(counts))
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.window import GlobalWindows
from pydantic import BaseModel

from beam_agents import ConfigurationError, FailureReason, Model, RunFailure, worker_status
from beam_agents.codec import canonical_json
from beam_agents.io import Line, ReadLines
from beam_agents.models import resolve_model

DEFAULT_RUNNER = "FnApiRunner"
"""One of the engines behind DirectRunner, which else chooses among three by what the pipeline holds."""

Row = dict[str, Any]


# ---- the command line ----


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options that every example has; add your own, then `parse`.

    Args:
        name: The example's name: its package under `examples`, and its folder under `demo-out`.
        description: Shown by `--help` as it is written.
    """
    made = argparse.ArgumentParser(
        prog=f"python -m examples.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Any other option is handed to Beam, for example --direct_runner_bundle_repeat=1.",
        allow_abbrev=False,
    )
    made.add_argument("--input", metavar="FILE", help="a CSV or JSONL file of events")
    made.add_argument("--out", metavar="FOLDER", default=f"demo-out/{name}", help="what is written (%(default)s)")
    made.add_argument("--ledger", metavar="URL", help="where runs are recorded (sqlite:///FOLDER/ledger.db)")
    made.add_argument("--model", metavar="NAME", help="a real model in the offline one's place, as openai:NAME")
    made.add_argument("--base-url", metavar="URL", help="the model's server, if it is not the provider's own")
    made.add_argument("--runner", metavar="NAME", default=DEFAULT_RUNNER, help="the Beam runner (%(default)s)")
    return made


def parse(made: argparse.ArgumentParser, argv: list[str] | None = None) -> tuple[argparse.Namespace, PipelineOptions]:
    """The example's options and Beam's. Makes the output folder and fills in the default ledger.

    An option that neither knows ends the program on the default runner; other runners may know more than Beam.
    """
    arguments, rest = made.parse_known_args(argv)
    options = PipelineOptions([f"--runner={arguments.runner}", *rest])
    unknown = set(options.get_all_options(retain_unknown_options=True)) - set(options.get_all_options())
    if unknown and arguments.runner == DEFAULT_RUNNER:
        made.error(f"neither this example nor Beam knows {', '.join(f'--{name}' for name in sorted(unknown))}")
    if arguments.input is not None and not Path(arguments.input).is_file():
        made.error(f"--input {arguments.input!r}: there is no such file")
    if arguments.base_url and not arguments.model:
        made.error("--base-url names the server of a --model; give both")
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    arguments.ledger = arguments.ledger or f"sqlite:///{Path(arguments.out).absolute()}/ledger.db"
    return arguments, options


def chosen_model(arguments: argparse.Namespace, offline: Model) -> Model:
    """The model that `--model` and `--base-url` ask for, else the example's own; a wrong name ends the program."""
    if not arguments.model:
        return offline
    try:
        return resolve_model(arguments.model, base_url=arguments.base_url)
    except ConfigurationError as error:
        raise SystemExit(f"--model {arguments.model}: {error}") from error


# ---- files in ----


class ReadRows(beam.PTransform):
    """Reads a CSV file (a header line, then rows) or a JSONL file (an object on each line) as dicts.

    Expands to two collections: the rows, and what cannot be read as a row, as dead letters ready to be
    flattened with an agent's `failures`. An empty CSV cell is a missing field.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = str(path)

    def expand(self, pipeline: beam.Pipeline) -> tuple[beam.PCollection[Row], beam.PCollection[Any]]:
        read = (
            pipeline
            | "File" >> beam.Create([self.path])
            | "Rows" >> beam.FlatMap(_tagged_rows).with_outputs("bad", main="rows")
        )
        return read.rows, read.bad


class FollowRows(beam.PTransform):
    """As `ReadRows`, but without end: the JSONL files of a folder, and whatever is appended to them.

    Args:
        folder: Where the files are, on each worker.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = folder

    def expand(self, pipeline: Any) -> tuple[beam.PCollection[Row], beam.PCollection[Any]]:
        read = pipeline | "Lines" >> ReadLines(self.folder)
        rows = read.lines | "Rows" >> beam.FlatMap(_tagged_row).with_outputs("bad", main="rows")
        return rows.rows, (read.bad, rows.bad) | "Bad" >> beam.Flatten()


def read_rows(path: str | Path) -> Iterator[Row | RunFailure[Any]]:
    """The rows of a file; what is not one comes as a `RunFailure`."""
    path = Path(path)
    return _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path)


def _tagged_rows(path: str) -> Iterator[Any]:
    yield from map(_tagged, read_rows(path))


def _tagged_row(line: Line) -> Iterator[Any]:
    if line.text.strip():
        yield _tagged(_json_row(line.text.encode(), line.id))


def _tagged(row: Row | RunFailure[Any]) -> Any:
    return beam.pvalue.TaggedOutput("bad", (None, row)) if isinstance(row, RunFailure) else row


def _json_rows(path: Path) -> Iterator[Row | RunFailure[Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            yield _json_row(line, f"{path.name}, line {number}")


def _json_row(line: bytes, where: str) -> Row | RunFailure[Any]:
    raw = line.decode("utf-8", "backslashreplace").rstrip()
    try:
        row = json.loads(line)
    except ValueError as error:  # also what is not UTF-8
        return _bad(f"{where} is not JSON: {error}", raw)
    return row if isinstance(row, dict) else _bad(f"{where} is not a JSON object", raw)


def _csv_rows(path: Path) -> Iterator[Row | RunFailure[Any]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        header: list[str] = []
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield _bad(f"{path.name}, line {reader.line_num} is not CSV: {error}", "")
                continue
            if not cells:
                continue
            where = f"{path.name}, line {reader.line_num}"
            raw = ",".join(cells).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            if not header:
                header = cells
            elif len(cells) != len(header):
                yield _bad(f"{where} has {len(cells)} cells, the header has {len(header)}", raw)
            elif raw != ",".join(cells):
                yield _bad(f"{where} is not UTF-8", raw)
            else:
                yield {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}


def _bad(message: str, raw: str) -> RunFailure[Any]:
    return RunFailure(reason=FailureReason.INVALID_EVENT, message=message, raw=raw)


# ---- files out ----


class WriteJsonl(beam.PTransform):
    """Writes (key, record) pairs, of one collection or a tuple of them, to one JSONL file.

    It is sorted, so that equal results make equal files.

    The whole collection passes through one worker's memory and replaces the file at once: right for an example,
    whose files are read on this machine. A pipeline in production would use a sink such as `beam.io.WriteToText`.

    Args:
        path: The file; written also when there is nothing to write.
        order: What to sort a line's object by; equal ones, and all by default, stand in the order of their text.
    """

    def __init__(self, path: str | Path, order: Callable[[Row], Any] | None = None) -> None:
        super().__init__()
        self.path = str(path)
        self.order = order

    def expand(self, records: Any) -> beam.PCollection[str]:
        collections = records if isinstance(records, tuple) else (records,)
        lines = [
            collection
            | f"Lines{number}" >> beam.Map(json_line)
            | f"OneWindow{number}" >> beam.WindowInto(GlobalWindows())
            for number, collection in enumerate(collections)
        ]
        return (
            lines
            | "Together" >> beam.Flatten()
            | "All" >> beam.combiners.ToList()
            | "File" >> beam.Map(_write_sorted, path=self.path, order=self.order)
        )


def json_line(pair: tuple[Any, Any]) -> str:
    """A (key, record) pair as one line: the record's fields and the key, nothing that is empty."""
    key, record = pair
    fields = record.model_dump(mode="json") if isinstance(record, BaseModel) else {"value": record}
    return canonical_json({"key": key} | {name: value for name, value in fields.items() if value not in (None, [])})


def read_jsonl(path: str | Path) -> list[Row]:
    """The objects of a file that `WriteJsonl` wrote."""
    with Path(path).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _write_sorted(lines: Iterable[str], path: str, order: Callable[[Row], Any] | None) -> str:
    lines = sorted(lines)
    if order is not None:
        lines.sort(key=lambda line: order(json.loads(line)))
    unfinished = f"{path}.{os.getpid()}.tmp"
    Path(unfinished).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(unfinished, path)  # a killed program leaves the old file or the new one, never half of it
    return path


def write_outputs(
    out: Any,
    folder: str | Path,
    *,
    bad_lines: beam.PCollection[Any] | None = None,
    order: Callable[[Row], Any] | None = None,
) -> None:
    """Writes all that `RunAgent` gives: results.jsonl, failures.jsonl, duplicates.jsonl and trace.jsonl.

    Args:
        out: What `events | RunAgent(...)` returned.
        folder: Where to.
        bad_lines: The second collection of `ReadRows`, to stand among the failures.
        order: What to sort the results by; see `WriteJsonl`.
    """
    folder = Path(folder)
    failures = out.failures if bad_lines is None else (out.failures, bad_lines)
    out.results | "WriteResults" >> WriteJsonl(folder / "results.jsonl", order)
    failures | "WriteFailures" >> WriteJsonl(folder / "failures.jsonl")
    out.duplicates | "WriteDuplicates" >> WriteJsonl(folder / "duplicates.jsonl")
    out.trace | "WriteTrace" >> WriteJsonl(folder / "trace.jsonl")


# ---- what the terminal shows ----


class Progress:
    """Prints how far the runs of this process are, while the pipeline runs; a context manager.

    A bounded pipeline emits at the end of its bundles, so its outputs say nothing until then: the worker's pool does.

    Args:
        every: Seconds between two looks; a look that finds nothing new prints nothing.
    """

    def __init__(self, every: float = 1.0) -> None:
        self.every = every
        self.started = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        shown = ""
        while not self._ended.wait(self.every):
            for status in worker_status():
                line = (
                    f"{status.scope}: {status.ended} runs ended ({status.failed} failed), {status.replayed} replayed, "
                    f"{status.in_flight} open; {status.model_calls} model calls, {status.tool_calls} tool calls"
                    f"{'; the ledger does not answer' if status.ledger_down_since else ''}"
                )
                if line != shown:
                    print(f"[{self.seconds:5.0f} s] {line}", file=sys.stderr, flush=True)
                    shown = line


COUNTERS = ("decided", "replayed", "failed", "duplicates", "skipped", "model_calls", "tool_calls")


def counters(result: Any, scope: str) -> dict[str, int]:
    """What an agent's runs in a finished pipeline came to, from Beam's counters; see `COUNTERS`."""
    found = result.metrics().query(MetricsFilter().with_namespace(f"beam_agents.{scope}"))["counters"]
    counts = dict.fromkeys(COUNTERS, 0)
    for metric in found:
        counts[metric.key.metric.name] = counts.get(metric.key.metric.name, 0) + metric.result
    return counts


def headline(counts: dict[str, int]) -> str:
    """The line that tells a first run from a second one on the same ledger."""
    return f"{counts['decided']} decided, {counts['replayed']} replayed, {counts['tool_calls']} tool calls"
