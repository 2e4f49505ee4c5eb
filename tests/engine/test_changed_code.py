"""An agent's code changes between two releases while runs are open, states are kept and answers are recorded.

A worker with the first release dies, one with the second goes on, on the same ledger.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from agents_under_test import Gates
from cluster import Cluster, Hosted
from pydantic import BaseModel, ConfigDict, Field, model_validator

from beam_agents import Budget, FailureReason, RunContext, tool, workflow
from beam_agents.codec import digest, key_text
from beam_agents.engine.end import Ended
from beam_agents.engine.task import Task
from beam_agents.history import Session
from beam_agents.ledger.records import RunKey

pytestmark = pytest.mark.usefixtures("replay_mode")


class Order(BaseModel):
    id: str
    amount: int = 0


class State(BaseModel):
    total: int = 0


class Verdict(BaseModel):
    ok: bool
    score: int = 0


class OtherEvent(BaseModel):
    id: str
    amount: list[str]


class Lane(BaseModel):
    queue: list[State] = []


def made(*, calls: Any = (), output: Any = None, **more: Any) -> Any:
    """A release of the agent: it calls tools in order, adds the event's amount to the state, and says its verdict."""
    more = {"event_type": Order, "state_type": State, "output_type": Verdict, **more}

    @workflow(name="agent", budget=Budget(wall_clock=timedelta(hours=1)), **more)
    async def agent(ctx: RunContext[Any, Any, None], event: Any) -> Any:
        for each in calls:
            await ctx.call(each, **({"what": "it"} if "what" in str(each.spec.parameters) else {}))
        if isinstance(ctx.state, State):
            ctx.state = ctx.state.model_copy(update={"total": ctx.state.total + getattr(event, "amount", 0)})
        return output or Verdict(ok=True, score=7)

    return agent


def text_of(order: Order) -> str:
    return made().event_json(order)


def run(hosted: Hosted, text: str, run_id: str) -> Ended:
    """Runs an event as it is recorded, which the release need not be able to read."""
    key = RunKey("scope", "agent", hosted.host.agent.revision, key_text("k"), run_id)
    outcome = hosted.host.start(Task(key, "k", text, digest(text))).done.result(30)
    hosted.host.forget(key)
    assert isinstance(outcome, Ended)
    return outcome


def both(cluster: Cluster, first: Any, second: Any, *, gates: Gates, gate: str) -> Ended:
    """One event, from the first release, which dies in the call behind the gate, to the second."""
    gates.shut(gate)
    dying = cluster.worker(first)
    dying.start(Order(id="1", amount=5))
    gates.wait_for(gate)
    cluster.kill(dying)
    gates.open(gate)
    return run(cluster.worker(second), text_of(Order(id="1", amount=5)), "1")


def state_of(ended: Ended) -> Any:
    assert ended.session is not None
    return Session.model_validate_json(ended.session).state


# ---- state_type ----


class WithDefault(BaseModel):
    total: int = 0
    currency: str = "EUR"


class OtherType(BaseModel):
    total: list[int] = []


class Renamed(BaseModel):
    sum: int = 0


class Moved(BaseModel):
    sum: int = 0
    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def from_total(cls, data: Any) -> Any:
        return {"sum": data["total"]} if isinstance(data, dict) and "total" in data else data


class Aliased(BaseModel):
    sum: int = Field(0, alias="total")


class Stricter(BaseModel):
    total: int = Field(0, lt=3)


class Angry(BaseModel):
    total: int = 0

    @model_validator(mode="before")
    @classmethod
    def check(cls, data: Any) -> Any:
        if data:
            raise KeyError("currency")
        return data


@pytest.mark.parametrize(
    ("state_type", "read"),
    [(WithDefault, WithDefault(total=5)), (Moved, Moved(sum=5))],
    ids=["a field with a default", "moved by a validator"],
)
def test_a_state_that_still_fits_goes_on(cluster: Cluster, state_type: Any, read: Any) -> None:
    seen = []
    cluster.worker(made()).run(Order(id="1", amount=5))

    def note(state: Any, event: Order) -> Any:
        seen.append(state)
        return state

    ended = cluster.worker(made(state_type=state_type, on_event=note)).run(Order(id="2"))
    assert ended.end.kind == "answer"
    assert seen == [read]
    assert state_of(ended) == read.model_dump()


@pytest.mark.parametrize("on_event", [None, lambda state, event: state], ids=["no on_event", "on_event"])
@pytest.mark.parametrize(
    ("state_type", "says"),
    [
        (OtherType, "OtherType: total: Input should be a valid array"),
        (Renamed, "Renamed: it has 'total', which would be lost"),
        (Stricter, "Stricter: total: Input should be less than 3"),
        (Angry, "Angry: KeyError: 'currency'"),
    ],
)
def test_a_state_that_does_not_fit_is_kept_and_never_misread(
    cluster: Cluster, state_type: Any, says: str, on_event: Any
) -> None:
    before = cluster.worker(made()).run(Order(id="1", amount=5))
    second = cluster.worker(made(state_type=state_type, on_event=on_event))
    for run_id in ("2", "3"):
        ended = second.run(Order(id=run_id))
        assert ended.end.reason is FailureReason.STATE_ERROR
        assert says in ended.end.message
        assert "'agent'" in ended.end.message
        assert state_of(ended) == state_of(before) == {"total": 5}
    repaired = cluster.worker(made()).run(Order(id="4", amount=1))  # the release before, or one that is mended
    assert state_of(repaired) == {"total": 6}


def test_a_field_that_is_lost_deep_inside_is_found(cluster: Cluster) -> None:
    class Entry(BaseModel):
        number: int = 0

    class NewLane(BaseModel):
        queue: list[Entry] = []

    fill = {"on_event": lambda state, event: Lane(queue=[State(total=1), State(total=2)]), "state_type": Lane}
    cluster.worker(made(**fill)).run(Order(id="1"))
    ended = cluster.worker(made(state_type=NewLane)).run(Order(id="2"))
    assert ended.end.reason is FailureReason.STATE_ERROR
    assert "'queue.0.total', 'queue.1.total'" in ended.end.message


def test_an_alias_reads_what_had_its_name(cluster: Cluster) -> None:
    cluster.worker(made()).run(Order(id="1", amount=5))
    ended = cluster.worker(made(state_type=Aliased)).run(Order(id="2"))
    # The field has another name now, so what another release wrote under the old one would not be written again.
    assert (ended.end.reason, state_of(ended)) == (FailureReason.STATE_ERROR, {"total": 5})


def test_an_open_run_goes_on_with_a_state_that_has_a_new_field(cluster: Cluster) -> None:
    gates = Gates()
    first, _ = pure_tools(gates)
    ended = both(cluster, made(calls=[first]), made(calls=[first], state_type=WithDefault), gates=gates, gate="first")
    assert ended.end.kind == "answer"
    assert state_of(ended) == {"total": 0, "currency": "EUR"}


# ---- effects ----


def pure_tools(gates: Gates) -> tuple[Any, Any]:
    @tool(effect="pure")
    def first(what: str) -> str:
        gates.passing("first")
        return "1"

    @tool(effect="pure")
    def second(what: str) -> str:
        gates.passing("second")
        return "2"

    return first, second


def test_steps_that_are_added_behind_the_open_one_are_no_change(cluster: Cluster) -> None:
    gates = Gates()
    first, second = pure_tools(gates)
    ended = both(cluster, made(calls=[first]), made(calls=[first, second]), gates=gates, gate="first")
    assert ended.end.kind == "answer"
    assert gates.calls == {"first": 2, "second": 1}


@pytest.mark.parametrize("change", ["order", "removed", "renamed", "parameters", "fewer"])
def test_changed_steps_of_an_open_run_are_named_and_nothing_is_called(cluster: Cluster, change: str) -> None:
    gates = Gates()
    first, second = pure_tools(gates)

    @tool(effect="pure")
    def third(what: str) -> str:
        raise AssertionError("not called")

    @tool(effect="pure", name="first")
    def changed(what: str, how: str = "fast") -> str:
        raise AssertionError("not called")

    calls = {
        "order": [second, first],
        "removed": [second],
        "renamed": [third, second],
        "parameters": [changed, second],
        "fewer": [],
    }
    ended = both(cluster, made(calls=[first, second]), made(calls=calls[change]), gates=gates, gate="second")
    assert ended.end.reason is FailureReason.DETERMINISM
    assert 'first({"what":"it"})' in ended.end.message or "without asking for" in ended.end.message
    assert "changed under an open run" in ended.end.message
    assert gates.calls == {"first": 1, "second": 1}
    assert state_of(ended) is None or state_of(ended) == {"total": 0}


@pytest.mark.parametrize("change", ["order", "event_type", "state_type", "raises"])
def test_a_once_call_that_was_in_flight_stays_in_doubt_whatever_was_changed(cluster: Cluster, change: str) -> None:
    gates = Gates()

    @tool(effect="once")
    def hold() -> str:
        gates.passing("hold")
        return "held"

    @tool(effect="pure")
    def other() -> str:
        raise AssertionError("not called")

    def refuse(state: Any, event: Any) -> Any:
        raise ValueError("not any more")

    cluster.worker(made()).run(Order(id="0", amount=1))
    changes: dict[str, Any] = {
        "order": {"calls": [other, hold]},
        "event_type": {"calls": [hold], "event_type": OtherEvent},
        "state_type": {"calls": [hold], "state_type": OtherType},
        "raises": {"calls": [hold], "on_event": refuse},
    }
    ended = both(cluster, made(calls=[hold]), made(**changes[change]), gates=gates, gate="hold")
    assert ended.end.reason is FailureReason.IN_DOUBT
    assert "hold({}) may or may not have happened: its outcome was not recorded" in ended.end.message
    causes = {"order": "determinism", "event_type": "invalid_event", "state_type": "state_error"}
    assert f"the run ended as {causes.get(change, 'code_error')}" in ended.end.message
    assert gates.calls == {"hold": 1}
    assert state_of(ended)["total"] == 1


def test_a_recorded_result_that_does_not_fit_a_changed_return_type_is_not_taken_for_a_failed_call(
    cluster: Cluster,
) -> None:
    gates = Gates()

    @tool(effect="once")
    def hold() -> str:
        gates.passing("hold")
        return "4711"

    @tool(effect="once", name="hold")
    def changed() -> dict[str, int]:
        raise AssertionError("not called")

    @tool(effect="pure")
    def after() -> str:
        gates.passing("after")
        return ""

    def release(which: Any) -> Any:
        @workflow(name="agent", event_type=Order, state_type=State, budget=Budget(wall_clock=timedelta(hours=1)))
        async def agent(ctx: RunContext[Any, Any, None], event: Any) -> str:
            try:
                await ctx.call(which)
            except Exception:
                return "it failed, so it is done in another way"
            return await ctx.call(after)

        return agent

    ended = both(cluster, release(hold), release(changed), gates=gates, gate="after")
    assert ended.end.reason is FailureReason.DETERMINISM
    assert "hold({}) was called by another release" in ended.end.message
    assert "value: Input should be an object" in ended.end.message
    assert gates.calls == {"hold": 1, "after": 1}
