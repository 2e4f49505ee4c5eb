"""A stream without end for the tests of the command line: an event a second, and a line for each result.

python endless_job.py --folder FOLDER [Beam's options]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from pydantic import BaseModel

from beam_agents import Agent, RunAgent
from beam_agents.testing import SchemaModel


class Tick(BaseModel):
    id: str


class Append(beam.DoFn):
    """Adds the id of each run to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def process(self, element: tuple[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(f"{element[1].run_id}\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    arguments, beam_options = parser.parse_known_args()
    agent = Agent("ticks", model=SchemaModel("fine"), event_type=Tick)
    with beam.Pipeline(options=PipelineOptions(beam_options)) as pipeline:
        events = pipeline | PeriodicImpulse(fire_interval=1) | beam.Map(lambda at: ("k", {"id": str(at)}))
        out = events | RunAgent(agent, event_id="id", ledger=f"sqlite:///{arguments.folder}/runs.db")
        out.results | beam.ParDo(Append(arguments.folder / "results.txt"))


if __name__ == "__main__":
    main()
