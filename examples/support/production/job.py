"""The pipeline: messages from the topic that the HTTP door fills, through the agent, to topics.

    python -m examples.support.production.job --servers=HOST:9092 --ledger=postgresql://support@HOST/ledger ...

Other options are Beam's. The workers need the help desk's URL in SUPPORT_CRM_URL, the ledger's password in PGPASSWORD,
and a real model's key.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam_agents import RunAgent
from beam_agents.io import Header, Kafka, ReadKafka, WriteKafka
from examples.common import chosen_model
from examples.support.production.agent import support_agent
from examples.support.production.events import Message
from examples.support.production.topics import ANSWERS, FAILURES, ID_HEADER, LARGEST, MESSAGES, TRACE, answer
from examples.support.rules import MODEL


def support_job(pipeline: beam.Pipeline, arguments: argparse.Namespace) -> None:
    """Builds the pipeline."""
    kafka = Kafka(arguments.servers)
    agent = support_agent(chosen_model(arguments, offline=MODEL))
    messages, bad = pipeline | ReadKafka(kafka, MESSAGES, value=Message, event_id=Header(ID_HEADER))
    out = messages | "Support" >> RunAgent(agent, ledger=arguments.ledger)
    failures = (out.failures, bad) | "AllFailures" >> beam.Flatten()
    _ = out.results | WriteKafka(kafka, ANSWERS, exactly_once="support", value=answer)
    _ = failures | WriteKafka(kafka, FAILURES, exactly_once="support", max_bytes=LARGEST)
    _ = out.trace | WriteKafka(kafka, TRACE)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; submits the job and waits for its end."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--servers", metavar="HOST:PORT", required=True, help="Kafka's brokers")
    made.add_argument("--ledger", metavar="URL", required=True, help="where runs are recorded")
    made.add_argument("--model", metavar="NAME", help="a real model in the offline one's place, as openai:NAME")
    made.add_argument("--base-url", metavar="URL", help="the model's server, if it is not the provider's own")
    arguments, options = made.parse_known_args(argv)
    with beam.Pipeline(options=PipelineOptions(options, streaming=True)) as pipeline:
        support_job(pipeline, arguments)


if __name__ == "__main__":
    main()
