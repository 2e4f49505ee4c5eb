"""The program that a side's pipeline is: it follows a file of bursts.

    python -m benchmarks.load.job --side SIDE --out FOLDER [--server URL] [Beam's options]

reads `workload.Burst` as JSON from FOLDER/bursts/bursts.jsonl, for ever. On a runner of bounded input each burst is a
pipeline of its own. FOLDER/metrics.json has the counters, where this process can ask the runner for them.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.runner import PipelineState

from beam_agents.io import ReadLines
from benchmarks.load.workload import AGENT, Burst, Side, build

BURSTS = "bursts"
METRICS = "metrics.json"
_POLL = 0.05
_METRICS_SECONDS = 1.0


def append(out: Path, burst: Burst) -> None:
    """Gives a burst to the job."""
    folder = out / BURSTS
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "bursts.jsonl").open("a") as file:
        file.write(f"{burst.model_dump_json()}\n")


def follow(options: PipelineOptions, side: Side, out: Path, server: str | None) -> None:
    """One pipeline for all bursts, for ever."""
    pipeline = beam.Pipeline(options=options)
    lines = pipeline | ReadLines(f"{out / BURSTS}/")
    bursts = lines.lines | "Parse" >> beam.Map(lambda line: Burst.model_validate_json(line.text)).with_output_types(
        Burst
    )
    build(bursts, side, out, server)
    job = pipeline.run()
    while not PipelineState.is_terminal(job.state):
        _write_metrics(out, job)
        time.sleep(_METRICS_SECONDS)
    raise RuntimeError(f"the job is {job.state}")


def one_by_one(options: PipelineOptions, side: Side, out: Path, server: str | None) -> None:
    """A pipeline for each burst, for ever."""
    path, done = out / BURSTS / "bursts.jsonl", 0
    while True:
        lines = path.read_text().splitlines() if path.exists() else []
        for line in lines[done:]:
            with beam.Pipeline(options=options) as pipeline:
                build(pipeline | beam.Create([Burst.model_validate_json(line)]), side, out, server)
        done = max(done, len(lines))
        time.sleep(_POLL)


def _write_metrics(out: Path, job: Any) -> None:
    job._metrics = None  # Beam keeps the first answer for ever
    try:
        counted = job.metrics().query(MetricsFilter().with_namespace(f"beam_agents.{AGENT}"))["counters"]
    except Exception:  # a runner that has none says so in its own way
        return
    named = {result.key.metric.name: result.committed or result.attempted for result in counted}
    written = out / f"{METRICS}.new"
    written.write_text(json.dumps(named))
    os.replace(written, out / METRICS)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=get_args(Side), required=True)
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True)
    parser.add_argument("--server", metavar="URL", help="base URL of the chat server, for the side 'server'")
    given, rest = parser.parse_known_args(argv)
    options = PipelineOptions(rest)
    bounded = options.view_as(StandardOptions).runner == "FnApiRunner"
    (one_by_one if bounded else follow)(options, given.side, given.out.absolute(), given.server)


if __name__ == "__main__":
    from benchmarks.load import job  # what is pickled must not be of '__main__'

    job.main()
