"""Watches machines, on DirectRunner: hourly statistics by Beam, an agent on what is suspicious, alerts made once.

    python -m examples.sensors                     # three made-up machines; an offline model decides by rules
    python -m examples.sensors                     # again: everything comes from the ledger, nothing is done twice
    python -m examples.sensors --model openai:NAME --base-url http://localhost:8080/v1
    python -m examples.sensors --input readings.csv --labels failures.json

A file needs the columns timestamp (ISO 8601, UTC if it has no zone) and value, and device if there are several.
--labels takes a JSON list of [start, end] pairs, the known failures. Assessments are in results.jsonl, readings and
windows that could not be handled in failures.jsonl, and the alerts in the table alerts of alerts.db.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import closing
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam_agents import RunAgent
from examples.common import (
    Progress,
    ReadRows,
    Row,
    chosen_model,
    counters,
    headline,
    parse,
    parser,
    read_jsonl,
    write_outputs,
)
from examples.sensors.agent import sensor_agent, window_id
from examples.sensors.alerts import AlertLog
from examples.sensors.generator import write_readings
from examples.sensors.labels import Failure, read_failures, report
from examples.sensors.rules import MODEL
from examples.sensors.windows import WindowStatistics


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    arguments, options = _arguments(argv)
    failures: list[Failure] = []
    if arguments.input is None:
        arguments.input = Path(arguments.out) / "readings.csv"
        failures = write_readings(arguments.input)
    if arguments.labels is not None:
        failures = read_failures(arguments.labels)
    print(f"Reading sensors from {arguments.input}, recording runs in {arguments.ledger}", file=sys.stderr)
    with Progress() as progress:
        counts = watch(arguments, options)
    print(_summary(arguments, failures))
    print(f"Time        {progress.seconds:.1f} s")
    print(headline(counts))


def watch(arguments: argparse.Namespace, options: PipelineOptions) -> dict[str, int]:
    """Runs the pipeline to its end and returns its counters."""
    model = chosen_model(arguments, offline=MODEL)
    agent = sensor_agent(model, open_log=partial(AlertLog, f"{arguments.out}/alerts.db"))
    size, device = timedelta(hours=arguments.window_hours), Path(arguments.input).stem
    with beam.Pipeline(options=options) as pipeline:
        rows, bad_lines = pipeline | "Rows" >> ReadRows(arguments.input)
        windows, bad_readings = rows | "Windows" >> WindowStatistics(size, device)
        out = windows | "Sensors" >> RunAgent(agent, event_id=window_id, ledger=arguments.ledger)
        bad = (bad_lines, bad_readings) | "Bad" >> beam.Flatten()
        write_outputs(out, arguments.out, bad_lines=bad, order=_time_and_device)
    return counters(pipeline.result, scope="sensors")


def _time_and_device(result: Row) -> tuple[str, str]:
    return result["event"]["end"], result["key"]


def _arguments(argv: list[str] | None) -> tuple[argparse.Namespace, PipelineOptions]:
    made = parser("sensors", __doc__)
    made.add_argument("--window-hours", metavar="H", type=float, default=1.0, help="length of a window (%(default)s)")
    made.add_argument("--labels", metavar="FILE", help="known failures, to compare the alerts with")
    arguments, options = parse(made, argv)
    if not 0 < arguments.window_hours <= 24:
        made.error(f"--window-hours {arguments.window_hours}: it must be above 0 and at most 24")
    return arguments, options


def _summary(arguments: argparse.Namespace, failures: list[Failure]) -> str:
    out = Path(arguments.out)
    results, dead_letters = read_jsonl(out / "results.jsonl"), read_jsonl(out / "failures.jsonl")
    with closing(AlertLog(str(out / "alerts.db"))) as log:
        alerts = log.all()
    lines = [
        f"Windows     {len(results)}: {_counts(Counter(result['output']['status'] for result in results))}",
        f"Decided by  {_counts(Counter(result['output']['decided_by'] for result in results))}",
        f"Failures    {len(dead_letters)}: {_counts(Counter(letter['reason'] for letter in dead_letters))}",
        f"Alerts      {len(alerts)}: {_counts(Counter(alert.severity for alert in alerts))}",
    ]
    if failures and results:
        ends = [datetime.fromisoformat(result["event"]["end"]) for result in results]
        lines += [f"Labels      {line}" for line in report(failures, alerts, max(ends) - min(ends))]
    return "\n".join([*lines, f"Files       {out}/results.jsonl, failures.jsonl, duplicates.jsonl, trace.jsonl"])


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items())) or "none"
