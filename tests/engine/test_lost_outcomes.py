"""What happened is not lost or reported as something else: results, other branches, connections, a broken ledger."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from agents_under_test import Event, Gates
from cluster import Cluster, Hosted

from beam_agents import Agent, Budget, FailureReason, Happened, RunContext, tool, workflow
from beam_agents.codec import digest
from beam_agents.engine.end import Ended
from beam_agents.engine.worker import Worker
from beam_agents.errors import LedgerError, ModelError, StoredFormUnknown
from beam_agents.ledger import MemoryLedger
from beam_agents.ledger.commands import Answer, Close, Command, Fenced, Intend, Open, Opened
from beam_agents.messages import ModelRequest, ModelResponse, ModelSettings
from beam_agents.models import FunctionModel, Model, calls, say

pytestmark = pytest.mark.usefixtures("replay_mode")


ANSWER = FunctionModel(lambda request: say("fine"), name="answer")


def agent(**more: Any) -> Agent[Any, Any, Any, Any]:
    return Agent("agent", **{"model": ANSWER, "event_type": Event, **more})


class Unwritable:
    def __repr__(self) -> str:
        return "hold 4711"


@pytest.mark.parametrize("effect", ["once", "idempotent"])
@pytest.mark.parametrize("result", [Unwritable(), float("nan"), {"hold": 4711}], ids=["object", "nan", "type"])
def test_a_call_that_happened_is_not_reported_as_one_that_failed(cluster: Cluster, effect: Any, result: Any) -> None:
    made = []

    def work() -> Any:
        made.append(1)
        return result

    work.__annotations__["return"] = str if isinstance(result, dict) else Any
    hold = tool(effect=effect, **({"retries": 2} if effect == "idempotent" else {}))(work)

    @workflow(name="agent")
    async def code(ctx: RunContext[Event, None, None], event: Event) -> str:
        try:
            await ctx.call(hold)
        except Exception:
            return "it failed, so it is done in another way"
        return "done"

    hosted = cluster.worker(code)
    ended = hosted.run(Event(id="1"))
    assert ended.end.reason is FailureReason.RESULT_LOST
    assert "work({}) happened: tool 'work' returned" in ended.end.message
    assert repr(result) in ended.end.message
    assert hosted.run(Event(id="1")).end == ended.end
    assert [effect.status for effect in ended.effects] == ["result_lost"]
    assert len(made) == 1


def test_a_lost_result_ends_the_run_while_another_branch_is_under_way(cluster: Cluster) -> None:
    gates = Gates()
    gates.shut("other")

    @tool(effect="once")
    def hold() -> Any:
        gates.passing("hold")
        return Unwritable()

    @tool(effect="pure")
    def other() -> str:
        gates.passing("other")
        return "done"

    @workflow(name="agent")
    async def code(ctx: RunContext[Event, None, None], event: Event) -> str:
        await ctx.gather(ctx.call(other), ctx.call(hold))
        return "done"

    ended = cluster.worker(code).run(Event(id="1"))
    assert ended.end.reason is FailureReason.RESULT_LOST
    assert gates.calls["hold"] == 1
    gates.open("other")


def test_what_reconcile_says_that_happened_may_be_lost_too(cluster: Cluster) -> None:
    def look() -> Any:
        return Happened(Unwritable())

    @tool(effect="once", reconcile=look)
    def work() -> str:
        raise ConnectionError("lost")

    asking = FunctionModel(lambda request: calls(("work", {})))
    ended = cluster.worker(agent(model=asking, tools=[work])).run(Event(id="1"))
    assert ended.end.reason is FailureReason.RESULT_LOST
    assert "hold 4711" in ended.end.message


# ---- the engine's own ----


class FlakyModel(Model):
    """Cannot be connected at first."""

    network = False

    def __init__(self, errors: Sequence[Exception]) -> None:
        self.errors = list(errors)
        self.connected = 0

    @property
    def name(self) -> str:
        return "flaky"

    async def connect(self) -> None:
        self.connected += 1
        if self.errors:
            raise self.errors.pop(0)

    async def request(self, request: ModelRequest) -> ModelResponse:
        return ModelResponse(message=say("fine"), model=self.name)


def test_a_connection_that_may_succeed_later_is_tried_again(cluster: Cluster) -> None:
    model = FlakyModel([ModelError("busy", retryable=True), ConnectionRefusedError("not yet")])
    made = agent(model=model, settings=ModelSettings(retries=2))
    assert cluster.worker(made).run(Event(id="1")).end.output == "fine"
    assert model.connected == 3


@pytest.mark.parametrize("error", [ModelError("bad key", status=401), ValueError("bad address")])
def test_a_connection_that_will_not_succeed_is_not_tried_again(cluster: Cluster, error: Exception) -> None:
    model = FlakyModel([error, error])
    ended = cluster.worker(agent(model=model, settings=ModelSettings(retries=2))).run(Event(id="1"))
    assert ended.end.reason is FailureReason.MODEL_ERROR
    assert str(error) in ended.end.message
    assert model.connected == 1


def test_a_fenced_worker_records_what_its_other_branches_had_under_way(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = Gates()
    gates.shut("slow")
    gates.shut("quick")

    @tool(effect="once")
    def slow(ctx: RunContext[Event, None, None]) -> str:
        gates.passing("slow")
        return "by the first"

    @tool(effect="pure")
    def quick(number: int) -> int:
        gates.passing("quick")
        return number

    @workflow(name="agent", budget=Budget(wall_clock=timedelta(hours=1)))
    async def code(ctx: RunContext[Event, None, None], event: Event) -> str:
        async def steps() -> None:
            await ctx.call(quick, number=1)
            await ctx.call(quick, number=2)

        _, done = await ctx.gather(steps(), ctx.call(slow))
        return done

    first = cluster.worker(code)
    handle = first.start(Event(id="1"))
    gates.wait_for("quick")
    gates.wait_for("slow")
    cluster.clock.advance(10)
    opened = first.host.ledger.ask_blocking(
        Open(handle.run, code.event_json(Event(id="1")), handle.digest, "another worker", nonce="n"), timeout=20
    )
    assert isinstance(opened, Opened)  # another worker has the run, and has not done anything yet
    refused, ask = threading.Event(), first.host.ledger.ask

    async def noted(command: Command) -> Answer:
        answer = await ask(command)
        if isinstance(answer, Fenced):
            refused.set()
        return answer

    monkeypatch.setattr(first.host.ledger, "ask", noted)
    gates.open("quick")
    assert refused.wait(20)  # the next intent, while the other branch is under way
    gates.open("slow")
    cluster.clock.advance(10)  # the other one is gone, too, when the first opens the run again
    ended = handle.done.result(30)
    assert ended.end.output == "by the first"
    assert gates.calls["slow"] == 1


class BrokenLedger(MemoryLedger):
    """Raises what no ledger should, at one command."""

    def __init__(self, at: Any) -> None:
        super().__init__("broken")
        self.at = at

    def apply(self, commands: Sequence[Command]) -> list[Answer]:
        if any(isinstance(command, self.at) for command in commands):
            raise RuntimeError("the disk is gone")
        return super().apply(commands)


@pytest.mark.parametrize("at", [Open, Intend, Close])
def test_a_ledger_that_breaks_is_no_fault_of_the_run(at: Any) -> None:
    worker, ledger = Worker(), BrokenLedger(at)
    try:
        hosted = Hosted(worker, worker.join(agent(), "agent", ledger, "scope"))
        handle = hosted.start(Event(id="1"))
        with pytest.raises(LedgerError, match=f"broke at {at.__name__}: RuntimeError: the disk is gone"):
            handle.done.result(30)
    finally:
        worker.close()


@pytest.mark.parametrize("later", ["session", "end"])
def test_records_of_a_later_version_stop_the_job_and_are_not_misread(cluster: Cluster, later: str) -> None:
    hosted = cluster.worker(agent())
    first = hosted.start(Event(id="1"))
    ended = first.done.result(30)
    assert isinstance(ended, Ended)
    ask = hosted.host.ledger.ask_blocking
    event = hosted.host.agent.event_json(Event(id="2"))
    opened = ask(Open(first.run._replace(run_id="2"), event, digest(event), "later version", nonce="n"), 20)
    assert isinstance(opened, Opened)
    end = '{"kind":"undecided"}' if later == "end" else ended.run.end
    session = '{"schema_version":2}' if later == "session" else ended.session
    ask(Close(opened.run.key, opened.run.epoch, end, session), 20)

    with pytest.raises(StoredFormUnknown, match=r"(schema_version|kind): Input should be"):
        hosted.run(Event(id="2" if later == "end" else "3"))
