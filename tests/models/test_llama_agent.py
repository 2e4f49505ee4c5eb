"""Whole agents on a real server with a real small model: the protocol must hold, whatever the model says."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from pydantic import BaseModel

from beam_agents import Agent, Budget, ModelSettings, RunAgent, RunContext, tool, workflow
from beam_agents.models import OpenAIModel
from tests.streaming_job import Sink


class Ticket(BaseModel):
    id: str
    text: str


class Answer(BaseModel):
    kind: Literal["card", "transfer", "other"]
    urgent: bool


TICKETS = [("anna", {"id": str(number), "text": f"My card {number} has not arrived yet."}) for number in range(4)]


@tool(effect="pure")
def find_customer(name: str) -> str:
    """Looks a customer up."""
    return f"{name} is a customer"


def outcomes(agent: object, folder: Path) -> list[str]:
    """The id of each ticket with what it came to."""
    sink = Sink()
    with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
        tickets = pipeline | beam.Create(TICKETS)
        out = tickets | RunAgent(agent, event_id="id", ledger=f"sqlite:///{folder}/ledger.db")  # type: ignore[arg-type]
        answered = out.results | beam.MapTuple(lambda _, result: f"{result.run_id} {result.output!r}")
        failed = out.failures | beam.MapTuple(lambda _, failure: f"{failure.run_id} {failure.reason.value}")
        (answered, failed) | beam.Flatten() | sink
    return sorted(sink.values())


def test_a_workflow_that_classifies(llama_url: str, tmp_path: Path) -> None:
    model = OpenAIModel("smollm2", base_url=llama_url)

    @workflow(model=model, settings=ModelSettings(temperature=0, max_tokens=60))
    async def triage(ctx: RunContext[Ticket, None, None], event: Ticket) -> str:
        return await ctx.classify(event.text, ["card", "transfer", "other"])

    first = outcomes(triage, tmp_path)
    assert len(first) == len(TICKETS)
    # The server holds the model to the schema, so each answer is one of the labels.
    assert all(line.split(" ", 1)[1] in ("'card'", "'transfer'", "'other'") for line in first)
    assert outcomes(triage, tmp_path) == first


def test_a_react_agent_ends_every_run_within_its_budget(llama_url: str, tmp_path: Path) -> None:
    agent = Agent(
        "react",
        model=OpenAIModel("smollm2", base_url=llama_url),
        instructions="Decide what kind of message this is. You may look the customer up.",
        tools=[find_customer],
        event_type=Ticket,
        output_type=Answer,
        budget=Budget(steps=3),
        settings=ModelSettings(temperature=0, max_tokens=80),
    )
    ends = outcomes(agent, tmp_path)
    assert [line.split(" ", 1)[0] for line in ends] == ["0", "1", "2", "3"]
    ended_otherwise = {"budget_steps", "invalid_output", "tool_error"}
    assert all(line.split(" ", 1)[1] in ended_otherwise or "Answer(kind=" in line for line in ends)
