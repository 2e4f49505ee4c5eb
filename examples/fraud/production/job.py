"""The pipeline: payments from a topic, through the agent, to topics of decisions, failures and steps.

    python -m examples.fraud.production.job --servers=HOST:9092 --ledger=postgresql://fraud@HOST/ledger [Beam's options]

The workers need the bank's URL in FRAUD_BANK_URL, the ledger's password in PGPASSWORD, and a real model's key.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam_agents import RunAgent
from beam_agents.io import Kafka, ReadKafka, WriteKafka
from examples.common import chosen_model
from examples.fraud.agent import fraud_agent
from examples.fraud.events import Txn
from examples.fraud.production.tools import blocklist, hold_card, merchant
from examples.fraud.production.topics import DECISIONS, FAILURES, LARGEST, PAYMENTS, TRACE, decision
from examples.fraud.rules import fraud_rules


def fraud_job(pipeline: beam.Pipeline, arguments: argparse.Namespace) -> None:
    """Builds the pipeline."""
    kafka = Kafka(arguments.servers)
    model = chosen_model(arguments, offline=fraud_rules())
    agent = fraud_agent(model, open_bank=None, tools=[blocklist, merchant, hold_card])
    payments, bad = pipeline | ReadKafka(kafka, PAYMENTS, value=Txn, key="card", event_id="txn_id")
    out = payments | "Fraud" >> RunAgent(agent, ledger=arguments.ledger)
    failures = (out.failures, bad) | "AllFailures" >> beam.Flatten()
    _ = out.results | WriteKafka(kafka, DECISIONS, exactly_once="fraud", value=decision)
    _ = failures | WriteKafka(kafka, FAILURES, exactly_once="fraud", max_bytes=LARGEST)
    _ = out.trace | WriteKafka(kafka, TRACE)  # at least once: a step has an id, and who reads audits can tell


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; submits the job and waits for its end."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--servers", metavar="HOST:PORT", required=True, help="Kafka's brokers")
    made.add_argument("--ledger", metavar="URL", required=True, help="where runs are recorded")
    made.add_argument("--model", metavar="NAME", help="a real model in the offline one's place, as openai:NAME")
    made.add_argument("--base-url", metavar="URL", help="the model's server, if it is not the provider's own")
    arguments, options = made.parse_known_args(argv)
    with beam.Pipeline(options=PipelineOptions(options, streaming=True)) as pipeline:
        fraud_job(pipeline, arguments)


if __name__ == "__main__":
    main()
