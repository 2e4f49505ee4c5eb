"""A job for tests: from PostgreSQL's changes through an agent, whose model takes a tenth of a second, to a Kafka topic.

python -m tests.flink.changes_job --database URL --slot NAME --servers HOST:PORT --results TOPIC --failures TOPIC \
    --ledger URL
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam_agents import Agent, Budget, RunAgent
from beam_agents.io import Kafka, WriteKafka
from beam_agents.io.changes import Change
from beam_agents.io.postgres.read import ReadPostgresChanges
from beam_agents.messages import AssistantMessage, ModelRequest
from beam_agents.models import FunctionModel, say
from tests.changes_kit import Reading

MODEL_SECONDS = 0.1


async def decide(request: ModelRequest) -> AssistantMessage:
    """Takes its time."""
    await asyncio.sleep(MODEL_SECONDS)
    return say("fine")


def watcher() -> Agent[Change[Reading], str, Any, Any]:
    """The agent."""
    return Agent(
        "watcher",
        model=FunctionModel(decide),
        event_type=Change[Reading],
        output_type=str,
        budget=Budget(wall_clock=timedelta(minutes=10)),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; submits the job and waits for its end."""
    parser = argparse.ArgumentParser()
    for name in ("database", "slot", "servers", "results", "failures", "ledger"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--shards", type=int, default=4)
    given, options = parser.parse_known_args(argv)
    kafka = Kafka(given.servers)
    with beam.Pipeline(options=PipelineOptions(options, streaming=True)) as pipeline:
        tables = {"public.readings": Reading}
        events, bad = pipeline | ReadPostgresChanges(given.database, tables, slot=given.slot, key="device")
        outputs = events | RunAgent(watcher(), ledger=given.ledger)
        _ = outputs.results | "Results" >> WriteKafka(kafka, given.results, exactly_once="watcher", shards=given.shards)
        failures = (outputs.failures, bad) | beam.Flatten()
        _ = failures | "Failures" >> WriteKafka(kafka, given.failures, exactly_once="watcher", shards=given.shards)


if __name__ == "__main__":
    from tests.flink import changes_job  # what is pickled must not be of '__main__'

    changes_job.main()
