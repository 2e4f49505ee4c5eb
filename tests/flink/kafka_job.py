"""A job for tests: from a Kafka topic, or the folder of an HTTP door, through an agent, whose model takes a tenth of a
second, to another topic.

    python -m tests.flink.kafka_job --servers HOST:PORT --read TOPIC --results TOPIC --failures TOPIC --ledger URL
    python -m tests.flink.kafka_job --servers HOST:PORT --inbox FOLDER --results TOPIC --failures TOPIC --ledger URL
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from pydantic import BaseModel

from beam_agents import Agent, Budget, RunAgent
from beam_agents.io import Kafka, ReadIngress, ReadKafka, WriteKafka
from beam_agents.messages import AssistantMessage, ModelRequest
from beam_agents.models import FunctionModel, say

MODEL_SECONDS = 0.1


class Payment(BaseModel):
    """An event; where it comes from Kafka, its record's key is the card."""

    number: int
    card: str = ""


async def decide(request: ModelRequest, seconds: float = MODEL_SECONDS) -> AssistantMessage:
    """Takes its time."""
    await asyncio.sleep(seconds)
    return say("fine")


def teller(seconds: float = MODEL_SECONDS) -> Agent[Payment, str, Any, Any]:
    """The agent."""
    return Agent(
        "teller",
        model=FunctionModel(partial(decide, seconds=seconds)),
        event_type=Payment,
        output_type=str,
        budget=Budget(wall_clock=timedelta(minutes=10)),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; submits the job and waits for its end."""
    parser = argparse.ArgumentParser()
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--read")
    source.add_argument("--inbox")
    for name in ("servers", "results", "failures", "ledger"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--model-seconds", type=float, default=MODEL_SECONDS)
    given, options = parser.parse_known_args(argv)
    kafka = Kafka(given.servers)
    with beam.Pipeline(options=PipelineOptions(options, streaming=True)) as pipeline:
        if given.inbox:
            events, bad = pipeline | ReadIngress(given.inbox, value=Payment)
        else:
            events, bad = pipeline | ReadKafka(kafka, given.read, value=Payment, shards=given.shards)
        outputs = events | RunAgent(teller(given.model_seconds), ledger=given.ledger)
        _ = outputs.results | "Results" >> WriteKafka(kafka, given.results, exactly_once="teller", shards=given.shards)
        failures = (outputs.failures, bad) | beam.Flatten()
        _ = failures | "Failures" >> WriteKafka(kafka, given.failures, exactly_once="teller", shards=given.shards)


if __name__ == "__main__":
    from tests.flink import kafka_job  # what is pickled must not be of '__main__'

    kafka_job.main()
