"""The support agent with Beam Agents: from the topic of messages, through the agent, to the topic of replies."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any, TypeAlias

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam_agents import Agent, Budget, CannotHappen, Happened, RunAgent, RunContext, RunResult, tool
from beam_agents.io import Kafka, ReadKafka, WriteKafka
from beam_agents.models import OpenAIModel
from benchmarks.comparison.office_client import Office
from benchmarks.comparison.task import INSTRUCTIONS, Message, Place, Reply

Context: TypeAlias = RunContext[Message, Any, Office]


@tool(effect="pure")
def look_up_account(ctx: Context, customer: str) -> str:
    """Looks a customer's account up."""
    return ctx.deps.account(customer)


def refund_status(ctx: Context, customer: str, amount: int, reference: str) -> Happened[str] | CannotHappen:
    """After a crash in the middle of `refund`: was it made? If not, the office turns the attempt away from now on."""
    receipt = ctx.deps.find_or_cancel(ctx.idempotency_key, ctx.attempt)
    return Happened(receipt) if receipt else CannotHappen()


@tool(effect="once", reconcile=refund_status, timeout=timedelta(seconds=30))
def refund(ctx: Context, customer: str, amount: int, reference: str) -> str:
    """Pays an amount in EUR back to a customer."""
    return ctx.deps.refund(customer, amount, reference, ctx.idempotency_key, ctx.attempt)


@tool(effect="idempotent", retries=2, timeout=timedelta(seconds=30))
def route_to_person(ctx: Context, customer: str, queue: str, reference: str) -> str:
    """Hands a message over to a person."""
    return ctx.deps.route(customer, queue, reference, ctx.idempotency_key)


def reply(result: RunResult[Message, str]) -> Reply:
    """What is sent back."""
    return Reply(reference=result.event.reference, text=result.output)


def main() -> None:
    """The command line; submits the job and waits for its end."""
    place, options = Place.parse()
    agent: Agent[Message, str, Any, Office] = Agent(
        "support",
        model=OpenAIModel("gpt-4o-mini", base_url=place.model),
        instructions=INSTRUCTIONS,
        prompt=lambda state, message: message.told,
        tools=[look_up_account, refund, route_to_person],
        event_type=Message,
        output_type=str,
        deps=partial(Office, place.office),
        budget=Budget(steps=8, wall_clock=timedelta(minutes=5)),
    )
    kafka = Kafka(place.servers)
    with beam.Pipeline(options=PipelineOptions(options, streaming=True)) as pipeline:
        messages, bad = pipeline | ReadKafka(kafka, place.messages, value=Message, event_id="reference")
        out = messages | RunAgent(agent, ledger=f"sqlite:///{place.folder}/runs.db")
        _ = out.results | WriteKafka(kafka, place.replies, exactly_once="support", value=reply)
        failures = (out.failures, bad) | beam.Flatten()
        _ = failures | "Failures" >> WriteKafka(kafka, f"{place.replies}-failures", exactly_once="support")


if __name__ == "__main__":
    from benchmarks.comparison import ours  # what is pickled must not be of '__main__'

    ours.main()
