"""What once broke a bundle, and so restarted a job for ever, is a dead letter: the run ends, and the worker goes on."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from agents_under_test import Count, Event, count, tool_results
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.utils.timestamp import Timestamp
from cluster import Cluster
from pydantic import BaseModel, ConfigDict, field_validator, model_serializer, model_validator

from beam_agents import Agent, Budget, FailureReason, ModelRetry, RunContext, tool, workflow
from beam_agents.engine import effects
from beam_agents.engine.attempts import Attempts
from beam_agents.engine.emit import outcome_of
from beam_agents.errors import ModelError
from beam_agents.history import Session
from beam_agents.ledger.commands import Answer
from beam_agents.messages import AssistantMessage, ModelRequest, UserMessage
from beam_agents.models import FunctionModel, calls, say
from beam_agents.transforms.envelope import Admit

pytestmark = pytest.mark.usefixtures("replay_mode")


class Odd(BaseException):
    """No `Exception`."""


class Speechless(Exception):
    def __str__(self) -> str:
        raise KeyError("no text")


ODD = [
    ValueError("half \ud800 a pair"),
    Speechless(),
    Odd("odd"),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    asyncio.CancelledError(),
    StopAsyncIteration(),
]
odd = pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)


def raising(error: BaseException) -> Callable[..., Any]:
    def raise_it(*_: Any, **__: Any) -> Any:
        raise error

    return raise_it


ANSWER = FunctionModel(lambda request: say("fine"), name="answer")


def agent(**more: Any) -> Agent[Any, Any, Any, Any]:
    return Agent("agent", **{"model": ANSWER, "event_type": Event, **more})


def ends(cluster: Cluster, made: Any) -> Any:
    """The failure of a run, which is recorded: a second worker finds the same. The first goes on working."""
    hosted = cluster.worker(made)
    ended = hosted.run(Event(id="1"))
    assert ended.end.kind == "failure"
    assert hosted.outcome(Event(id="1")).end == ended.end
    assert hosted.outcome(Event(id="2"), key="another").session_version == 1
    failure = outcome_of(made, ended)
    failure.model_dump_json().encode()
    return failure


@odd
def test_a_workflow_that_raises_oddly(cluster: Cluster, error: BaseException) -> None:
    @workflow(name="agent")
    async def code(ctx: RunContext[Event, None, None], event: Event) -> str:
        raise error

    failure = ends(cluster, code)
    assert failure.reason is FailureReason.CODE_ERROR
    assert type(error).__name__ in failure.message


@odd
@pytest.mark.parametrize("where", ["on_event", "skip", "instructions", "prompt"])
def test_functions_of_an_agent_that_raise_oddly(cluster: Cluster, error: BaseException, where: str) -> None:
    failure = ends(cluster, agent(state_type=Count, **{where: raising(error)}))
    assert failure.reason is FailureReason.CODE_ERROR
    assert type(error).__name__ in failure.message


@odd
@pytest.mark.parametrize("effect", ["pure", "once"])
def test_a_tool_that_raises_oddly(cluster: Cluster, error: BaseException, effect: Any) -> None:
    made = []

    @tool(effect=effect)
    def work() -> str:
        made.append(1)
        raise error

    failure = ends(cluster, agent(model=FunctionModel(lambda request: calls(("work", {}))), tools=[work]))
    assert failure.reason is (FailureReason.IN_DOUBT if effect == "once" else FailureReason.TOOL_ERROR)
    assert len(made) == 2  # once for each event


@odd
def test_a_reconcile_that_raises_oddly(cluster: Cluster, error: BaseException) -> None:
    def look() -> Any:
        raise error

    @tool(effect="once", reconcile=look)
    def work() -> str:
        raise ConnectionError("lost")

    failure = ends(cluster, agent(model=FunctionModel(lambda request: calls(("work", {}))), tools=[work]))
    assert failure.reason is FailureReason.IN_DOUBT
    assert "reconcile" in failure.message


@odd
def test_a_model_that_raises_oddly(cluster: Cluster, error: BaseException) -> None:
    failure = ends(cluster, agent(model=FunctionModel(raising(error))))
    assert failure.reason is FailureReason.MODEL_ERROR


def test_what_a_tool_tells_the_model_may_hold_half_a_pair(cluster: Cluster) -> None:
    @tool(effect="pure")
    def work() -> str:
        raise ModelRetry("half \ud800")

    def decide(request: ModelRequest) -> AssistantMessage:
        return say(*tool_results(request)) if tool_results(request) else calls(("work", {}))

    ended = cluster.worker(agent(model=FunctionModel(decide), tools=[work])).run(Event(id="1"))
    assert ended.end.output == r"half \ud800"


@odd
@pytest.mark.parametrize("when", ["dumped", "read"])
def test_an_output_whose_validators_raise_oddly(cluster: Cluster, error: BaseException, when: str) -> None:
    class Answer(BaseModel):
        text: str

        @model_serializer
        def dump(self) -> dict[str, Any]:
            if when == "dumped":
                raise error
            return {"text": "written"}

        @field_validator("text")
        @classmethod
        def check(cls, text: str) -> str:
            if text == "written":
                raise error
            return text

    @workflow(name="agent")
    async def code(ctx: RunContext[Event, None, None], event: Event) -> Answer:
        return Answer(text="fine")

    failure = ends(cluster, code)
    assert failure.reason is FailureReason.INVALID_OUTPUT


@odd
def test_a_state_that_cannot_be_written_leaves_the_one_before(cluster: Cluster, error: BaseException) -> None:
    class State(BaseModel):
        n: int = 0

        @model_serializer
        def dump(self) -> dict[str, Any]:
            if self.n > 1:
                raise error
            return {"n": self.n}

    @workflow(name="agent", state_type=State, on_event=lambda state, event: State(n=1))
    async def code(ctx: RunContext[Event, Any, None], event: Event) -> str:
        ctx.state = State(n=2)
        return "fine"

    ended = cluster.worker(code).run(Event(id="1"))
    assert (ended.end.reason, state_of(ended)) == (FailureReason.CODE_ERROR, {"n": 1})


def test_a_state_that_would_not_be_read_back_is_refused_before_it_is_kept(cluster: Cluster) -> None:
    class State(BaseModel):
        n: int = 0

        @model_validator(mode="before")
        @classmethod
        def check(cls, data: Any) -> Any:
            if isinstance(data, dict) and data.get("n") == 2:
                raise KeyError("two")
            return data

    @workflow(name="agent", state_type=State)
    async def code(ctx: RunContext[Event, Any, None], event: Event) -> str:
        ctx.state.n = 2
        return "fine"

    hosted = cluster.worker(code)
    ended = hosted.run(Event(id="1"))
    assert ended.end.reason is FailureReason.CODE_ERROR
    assert hosted.run(Event(id="2")).end.reason is FailureReason.CODE_ERROR  # not STATE_ERROR: the key goes on


def test_what_was_said_and_is_no_message_does_not_hide_why_the_run_ended(cluster: Cluster) -> None:
    @workflow(name="agent", state_type=Count, on_event=count)
    async def code(ctx: RunContext[Event, Count, None], event: Event) -> str:
        ctx.say(UserMessage.model_construct(text=object()))
        raise ModelError("no model today")

    hosted = cluster.worker(code)
    ended = hosted.run(Event(id="1"))
    assert ended.end.reason is FailureReason.MODEL_ERROR
    assert ended.end.message.startswith("no model today; what was said in the run cannot be recorded")
    assert state_of(ended) == {"events": ["1"]}


def test_a_state_that_cannot_be_copied_for_a_tool(cluster: Cluster) -> None:
    class State(BaseModel):
        model_config = ConfigDict(extra="allow")

    @tool(effect="once")
    def work() -> str:
        raise AssertionError("not called")

    @workflow(name="agent", state_type=State)
    async def code(ctx: RunContext[Event, Any, None], event: Event) -> str:
        ctx.state.lock = threading.Lock()
        return await ctx.call(work)

    failure = ends(cluster, code)
    assert failure.reason is FailureReason.TOOL_ERROR
    assert "'work' was not called: ctx.state cannot be copied" in failure.message


def state_of(ended: Any) -> Any:
    return Session.model_validate_json(ended.session).state


@odd
@pytest.mark.parametrize("where", ["validator", "event_id"])
def test_an_event_that_cannot_be_admitted(error: BaseException, where: str) -> None:
    class Strange(BaseModel):
        id: str

        @field_validator("id")
        @classmethod
        def check(cls, text: str) -> str:
            if where == "validator":
                raise error
            return text

    admit = Admit(agent(event_type=Strange), raising(error), "scope", GlobalWindows().get_window_coder())
    (refused,) = admit.process(("k", {"id": "1"}), Timestamp(0), GlobalWindow())
    assert refused.tag == "failures"
    _, failure = refused.value
    assert failure.reason == ("invalid_event" if where == "validator" else "missing_id")
    assert "Speechless" in failure.message or not isinstance(error, Speechless)
    failure.model_dump_json().encode()


# ---- code that holds back its end ----


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python says that the code was dropped
@pytest.mark.parametrize("spent", ["steps", "tool_calls", "wall_clock"])
@pytest.mark.parametrize("side_by_side", [False, True], ids=["alone", "branches"])
def test_a_bare_except_does_not_hold_back_a_budget(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, spent: str, side_by_side: bool
) -> None:
    budgets = {
        "steps": Budget(steps=2),
        "tool_calls": Budget(tool_calls=2),
        "wall_clock": Budget(wall_clock=timedelta(seconds=0.3)),
    }

    @tool(effect="pure")
    def work() -> str:
        return "done"

    @workflow(name="agent", model=ANSWER, budget=budgets[spent])
    async def code(ctx: RunContext[Event, None, None], event: Event) -> str:
        async def stubborn() -> None:
            while True:
                try:
                    if spent == "steps":
                        await ctx.model("go on")
                    elif spent == "tool_calls":
                        await ctx.gather(ctx.call(work), ctx.call(work))
                    else:
                        await ctx.sleep(timedelta(seconds=0.05))
                except:  # noqa: E722
                    pass

        if side_by_side:
            await ctx.gather(stubborn(), stubborn())
        await stubborn()
        return "never"

    ended = cluster.worker(code).run(Event(id="1"))
    expected = {"steps": "budget_steps", "tool_calls": "budget_tool_calls", "wall_clock": "deadline"}
    assert ended.end.reason == expected[spent]
    caplog.clear()  # it holds what the code raised, and so the code
    gc.collect()  # here, and not in another test, Python complains of the code that would not end


def test_an_answer_in_spite_of_a_spent_budget_is_none(cluster: Cluster) -> None:
    @workflow(name="agent", model=ANSWER, budget=Budget(steps=1))
    async def code(ctx: RunContext[Event, None, None], event: Event) -> str:
        await ctx.model("one")
        try:
            await ctx.model("two")
        except BaseException:
            return "fine all the same"
        return "never"

    ended = cluster.worker(code).run(Event(id="1"))
    assert ended.end.reason is FailureReason.BUDGET_STEPS


# ---- what nobody foresaw ----


def test_a_fault_of_the_engine_ends_the_run_and_leaves_the_state(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = agent(state_type=Count, on_event=count)
    before = cluster.worker(made).run(Event(id="0"))
    monkeypatch.setattr(Attempts, "outcome", raising(RuntimeError("nobody foresaw it")))
    ended = cluster.worker(made).run(Event(id="1"))
    assert ended.end.reason is FailureReason.CODE_ERROR
    assert ended.end.message == "the run could not go on: RuntimeError: nobody foresaw it"
    assert state_of(ended) == state_of(before)


def test_a_fault_of_the_engine_during_a_once_call_is_in_doubt(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    @tool(effect="once")
    def hold() -> str:
        return "held"

    monkeypatch.setattr(effects, "call_tool", raising(RuntimeError("nobody foresaw it")))
    ended = cluster.worker(agent(model=FunctionModel(lambda request: calls(("hold", {}))), tools=[hold])).run(
        Event(id="1")
    )
    assert ended.end.reason is FailureReason.IN_DOUBT
    assert "hold({}) may or may not have happened" in ended.end.message
    assert "nobody foresaw it" in ended.end.message
