"""`RunAgent` refuses what cannot work where it is written, and says what to change."""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import apache_beam as beam
import pytest
from agent_kit import ECHO, JUDGING, Chat, Mail, Txn, Verdict
from apache_beam.options.pipeline_options import PipelineOptions
from pydantic import Field

from beam_agents import Agent, ConfigurationError, RunAgent, RunContext, tool, workflow
from beam_agents.ledger.memory import MemoryLedger


@tool(effect="idempotent")
def book(seat: int) -> str:
    """Books."""
    return str(seat)


@tool(effect="once")
def hold() -> str:
    """Holds."""
    return ""


def events(pipeline: beam.Pipeline, label: str = "Events") -> Any:
    return pipeline | label >> beam.Create([("k", {"txn_id": "a"})])


def new_pipeline() -> beam.Pipeline:
    return beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"]))


def refusal(agent: Any = JUDGING, **run_agent: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        RunAgent(agent, **{"event_id": "txn_id", **run_agent})
    return str(caught.value)


@pytest.mark.parametrize("one", [book, hold])
def test_a_tool_that_changes_something_needs_a_ledger(one: Any) -> None:
    agent = Agent("a", model=ECHO, tools=[one], event_type=Txn)

    said = refusal(agent)

    assert f"{one.name!r} with effect={one.effect!r}" in said
    assert "give RunAgent a ledger, for example ledger='sqlite:///" in said
    RunAgent(agent, event_id="txn_id", ledger="memory:")


def test_a_workflow_s_tools_need_one_as_well() -> None:
    @workflow(tools=[hold])
    async def flow(ctx: RunContext[Txn, None, None], event: Txn) -> str:
        return await ctx.call(hold)

    assert "give RunAgent a ledger" in refusal(flow)


def test_pure_tools_need_none() -> None:
    RunAgent(JUDGING, event_id="txn_id")


@pytest.mark.parametrize(
    "ledger",
    ["runs.db", "sqlite:", "sqlite://", "sqlite:///", "sqlite://runs.db", "mysql://x/y", "", 5, "sqlite:///a?b=1"],
)
def test_a_ledger_has_one_of_the_forms(ledger: Any) -> None:
    said = refusal(ledger=ledger)

    assert f"ledger {ledger!r}" in said
    assert "'sqlite:///relative.db'" in said or "leave out '?'" in said


def test_forms_of_a_ledger(tmp_path: Path) -> None:
    for ledger in ("sqlite:///runs.db", f"sqlite:///{tmp_path}/runs.db", "memory:", "memory:x", MemoryLedger()):
        RunAgent(JUDGING, event_id="txn_id", ledger=ledger)


@pytest.mark.parametrize("time", [timedelta(0), timedelta(seconds=-1)])
@pytest.mark.parametrize("name", ["dedupe_for", "session_ttl"])
def test_times_are_above_zero(name: str, time: timedelta) -> None:
    assert f"RunAgent({name}={time!r}) must be above zero" in refusal(**{name: time})


def test_an_unknown_field_for_the_id_is_refused() -> None:
    said = refusal(event_id="id")

    assert "RunAgent(event_id='id'): Txn has no such field, it has: txn_id, card, amount" in said
    assert "or give a function of the event" in said


@pytest.mark.parametrize("event_type", [Chat | Mail, Annotated[Chat | Mail, Field(discriminator="kind")]])
def test_the_field_for_the_id_has_to_be_in_each_kind_of_event(event_type: Any) -> None:
    agent = Agent("a", model=ECHO, event_type=event_type)

    assert "Mail has no such field" in refusal(agent, event_id="text")
    RunAgent(agent, event_id="id")


@pytest.mark.parametrize("event_id", ["", 5])
def test_an_id_has_to_be_named(event_id: Any) -> None:
    assert "event_id=" in refusal(Agent("a", model=ECHO), event_id=event_id)


@pytest.mark.parametrize("agent", [None, "fraud", Agent])
def test_something_else_is_no_agent(agent: Any) -> None:
    assert "RunAgent takes an Agent or a workflow" in refusal(agent)


def test_an_agent_that_cannot_travel_is_refused_by_its_name() -> None:
    with socket.socket() as connection:
        agent = Agent("a", model=ECHO, event_type=Txn, deps=lambda: connection)
        said = refusal(agent)

    assert "'a'" in said


# ---- in a pipeline ----


def test_an_id_is_left_out_only_where_a_source_gives_one() -> None:
    with pytest.raises(ConfigurationError, match=r"'a'.*event_id="):
        _ = events(new_pipeline()) | RunAgent(Agent("a", model=ECHO))


@pytest.mark.parametrize("elements", [[1, 2], ["text"], [Txn(txn_id="a")], [{"txn_id": "a"}], [(1, 2, 3)]])
def test_unkeyed_input_is_refused(elements: Any) -> None:
    unkeyed = new_pipeline() | beam.Create(elements)

    with pytest.raises(ConfigurationError, match=r"not pairs of key and event; put beam.WithKeys\(...\) before it"):
        unkeyed | RunAgent(JUDGING, event_id="txn_id")


def test_two_uses_need_two_scopes() -> None:
    pipeline = new_pipeline()
    events(pipeline) | "One" >> RunAgent(JUDGING, event_id="txn_id")

    with pytest.raises(ConfigurationError, match=r"have the scope 'judging'.*give one of them scope="):
        events(pipeline, "More") | "Two" >> RunAgent(JUDGING, event_id="txn_id")


def test_two_uses_of_one_transform_need_two_scopes() -> None:
    pipeline = new_pipeline()
    transform = RunAgent(JUDGING, event_id="txn_id")
    events(pipeline) | "One" >> transform

    with pytest.raises(ConfigurationError, match="scope="):
        events(pipeline, "More") | "Two" >> transform


def test_two_agents_may_not_share_a_scope() -> None:
    pipeline = new_pipeline()
    events(pipeline) | "One" >> RunAgent(JUDGING, event_id="txn_id", scope="same")

    with pytest.raises(ConfigurationError, match="scope"):
        events(pipeline, "More") | "Two" >> RunAgent(
            Agent("other", model=ECHO, event_type=Txn), event_id="txn_id", scope="same"
        )


def test_a_scope_within_another_transform_is_seen() -> None:
    class Both(beam.PTransform[Any, Any]):
        def expand(self, pcoll: Any) -> Any:
            return (pcoll | "Inner" >> RunAgent(JUDGING, event_id="txn_id")).results

    pipeline = new_pipeline()
    events(pipeline) | Both()

    with pytest.raises(ConfigurationError, match="'judging'"):
        events(pipeline, "More") | "Two" >> RunAgent(JUDGING, event_id="txn_id")


def test_other_scopes_and_other_pipelines_are_fine() -> None:
    pipeline = new_pipeline()
    events(pipeline) | "One" >> RunAgent(JUDGING, event_id="txn_id")
    events(pipeline, "More") | "Two" >> RunAgent(JUDGING, event_id="txn_id", scope="second")
    events(new_pipeline()) | "One" >> RunAgent(JUDGING, event_id="txn_id")


# ---- agents ----


class Needy:
    def __init__(self, needed: int) -> None:
        self.needed = needed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": ""}, "name must be a text"),
        ({"name": None}, "name must be a text"),
        ({"model": "gpt"}, "give 'openai:NAME'"),
        ({"model": "openai:"}, "give 'openai:NAME'"),
        ({"model": 5}, "is not known"),
        ({"revision": 0}, "revision=0 must be 1 or more"),
        ({"on_event": lambda state, event: state}, "on_event needs state_type"),
        ({"state_type": Needy}, "each of its fields needs a default"),
        ({"state_type": Verdict}, "each of its fields needs a default"),
        ({"output_type": Needy}, "no JSON schema can be made of it"),
        ({"event_type": Needy}, "event_type"),
        ({"output_retries": -1}, "output_retries"),
    ],
    ids=str,
)
def test_an_agent_that_cannot_work_is_refused(arguments: dict[str, Any], says: str) -> None:
    given = {"name": "a", "model": ECHO, **arguments}

    with pytest.raises(ConfigurationError, match=says):
        Agent(given.pop("name"), **given)


def test_a_model_has_to_be_given() -> None:
    with pytest.raises(ConfigurationError, match="model"):
        Agent("a", model=None)  # type: ignore[arg-type]


def test_a_ledger_for_one_event_needs_its_id() -> None:
    for event_id in (None, ""):
        with pytest.raises(ConfigurationError, match="event_id="):
            JUDGING.run_sync({"txn_id": "a"}, ledger="memory:", event_id=event_id)
