"""Schedules that broke earlier drafts of the design, by name, on two workers that share a ledger."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from agents_under_test import Count, Event, Gates, count, tool_results
from cluster import Hosted

from beam_agents import Agent, Budget, CannotHappen, FailureReason, Happened, LedgerChanged, RunContext, tool, workflow
from beam_agents.engine.end import Refused
from beam_agents.errors import ModelError
from beam_agents.messages import ModelSettings
from beam_agents.models import FunctionModel, calls, say

pytestmark = pytest.mark.usefixtures("replay_mode")


def make_agent(gates: Gates, effect: Any = "pure", reconcile: Any = None, **options: Any) -> Agent[Any, Any, Any, Any]:
    """Asks the model, calls `work`, asks again, answers with the result and the events the state has."""

    @tool(effect=effect, reconcile=reconcile)
    def work(ctx: RunContext[Event, Count, None], what: str) -> str:
        gates.passing("work", ctx.idempotency_key)
        return f"done {what}"

    async def decide(request: Any) -> Any:
        results = tool_results(request)
        await asyncio.to_thread(gates.passing, "answer" if results else "plan")
        return say(results[0]) if results else calls(("work", {"what": "it"}))

    options.setdefault("budget", Budget(wall_clock=timedelta(hours=1)))
    return Agent(
        "agent",
        model=FunctionModel(decide),
        tools=[work],
        event_type=Event,
        state_type=Count,
        on_event=count,
        **options,
    )


def state_of(ended: Any) -> list[str]:
    from beam_agents.history import Session

    return Count.model_validate(Session.model_validate_json(ended.session).state).events


def test_a_run_goes_on_where_its_killed_worker_stopped(cluster: Any) -> None:
    gates = Gates()
    gates.shut("work")
    first = cluster.worker(make_agent(gates))
    first.start(Event(id="1"))
    gates.wait_for("work")
    cluster.kill(first)
    gates.open("work")
    ended = cluster.worker(make_agent(gates)).run(Event(id="1"))
    assert ended.end.output == "done it"
    assert gates.calls == {"plan": 1, "work": 2, "answer": 1}  # the recorded plan was not asked for again
    assert len(set(gates.keys["work"])) == 1


def test_a_recorded_outcome_is_never_made_again(cluster: Any) -> None:
    gates = Gates()
    gates.shut("answer")
    first = cluster.worker(make_agent(gates))
    first.start(Event(id="1"))
    gates.wait_for("answer")
    cluster.kill(first)
    gates.open("answer")
    ended = cluster.worker(make_agent(gates)).run(Event(id="1"))
    assert ended.end.output == "done it"
    assert gates.calls == {"plan": 1, "work": 1, "answer": 2}


def test_a_new_event_before_the_rolled_back_ones(cluster: Any) -> None:
    gates = Gates()
    gates.shut("work")
    first = cluster.worker(make_agent(gates))
    first.start(Event(id="old"))
    gates.wait_for("work")
    cluster.kill(first)
    gates.open("work")
    second = cluster.worker(make_agent(gates))
    new = second.run(Event(id="new"))  # Beam's state was rolled back and knows nothing of "old"
    assert state_of(new) == ["old", "new"]
    assert second.run(Event(id="old")).end.output == "done it"  # its event comes after all, and finds its run ended
    assert gates.calls == {"plan": 2, "work": 3, "answer": 2}


def test_parallel_branches_that_finish_in_another_order(cluster: Any) -> None:
    gates = Gates()

    @tool(effect="pure")
    def a() -> str:
        gates.passing("a")
        return "a"

    @tool(effect="pure")
    def b() -> str:
        gates.passing("b")
        return "b"

    @tool(effect="pure")
    def note(order: list[str]) -> list[str]:
        gates.passing("note")
        return order

    @workflow(name="agent", event_type=Event, budget=Budget(wall_clock=timedelta(hours=1)))
    async def racing(ctx: RunContext[Event, None, None], event: Event) -> list[str]:
        order: list[str] = []

        async def branch(which: Any) -> None:
            order.append(await ctx.call(which))

        await ctx.gather(branch(a), branch(b))
        return await ctx.call(note, order=order)

    gates.shut("a")
    gates.shut("note")
    first = cluster.worker(racing)
    first.start(Event(id="1"))
    gates.wait_for("a")
    gates.wait_for("b")
    while first.host.status.tool_calls < 2:
        pass
    _wait_for_outcome(cluster, "0.1.0")  # b is recorded while a is still held
    gates.open("a")
    gates.wait_for("note")
    cluster.kill(first)
    gates.open("note")
    ended = cluster.worker(racing).run(Event(id="1"))
    assert ended.end.output == ["b", "a"]  # as the first worker's code saw them, not as they stand in the code
    assert gates.calls == {"a": 1, "b": 1, "note": 2}


def _wait_for_outcome(cluster: Any, path: str) -> None:
    import sqlite3
    import time

    connection = sqlite3.connect(cluster.path)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if connection.execute("SELECT 1 FROM effects WHERE path = ? AND status = 'ok'", (path,)).fetchone():
            connection.close()
            return
        time.sleep(0.01)
    connection.close()
    raise AssertionError(f"no outcome at {path}")


def test_an_outcome_that_arrives_after_a_takeover(cluster: Any) -> None:
    gates = Gates()
    gates.shut("work")
    agent = make_agent(gates, effect="idempotent")
    frozen, other = cluster.worker(agent), cluster.worker(agent)
    late = frozen.start(Event(id="1"))
    gates.wait_for("work")
    cluster.clock.advance(10)  # the first worker's lease has run out, and it does not know
    taken = other.start(Event(id="1"))
    gates.wait_for("work")
    gates.open("work")
    ended, loser = taken.done.result(30), late.done.result(30)
    assert ended.end.output == loser.end.output == "done it"
    assert [ended.replayed, loser.replayed].count(True) == 1  # the loser follows the ledger
    assert gates.calls["answer"] == 1
    assert len(set(gates.keys["work"])) == 1  # both attempts are the same call to the other side


def test_the_deadline_beats_an_answer_that_comes_after_it(cluster: Any) -> None:
    gates = Gates()
    gates.shut("plan")
    agent = make_agent(gates, budget=Budget(wall_clock=timedelta(seconds=60)))
    slow, other = cluster.worker(agent), cluster.worker(agent)
    late = slow.start(Event(id="1"))
    gates.wait_for("plan")
    cluster.clock.advance(100)
    ended = other.run(Event(id="1"))
    assert ended.end.reason is FailureReason.DEADLINE
    gates.open("plan")
    assert late.done.result(30).end == ended.end


def test_an_answer_that_was_recorded_before_the_deadline_beats_it(cluster: Any) -> None:
    gates = Gates()
    agent = make_agent(gates, budget=Budget(wall_clock=timedelta(seconds=60)))
    gates.shut("answer")
    first = cluster.worker(agent)
    first.start(Event(id="1"))
    gates.wait_for("answer")

    cluster.kill(first)
    gates.open("answer")
    cluster.clock.advance(100)
    ended = cluster.worker(agent).run(Event(id="1"))
    assert ended.end.reason is FailureReason.DEADLINE  # the last answer was never recorded
    assert [message.role for message in ended.end.transcript] == ["user", "assistant", "tool"]
    assert gates.calls == {"plan": 1, "work": 1, "answer": 1}


def test_a_second_job_on_the_same_ledger_with_another_file(cluster: Any) -> None:
    gates = Gates()
    gates.shut("work")
    first = cluster.worker(make_agent(gates))
    first.start(Event(id="file 1"), batch=True)
    gates.wait_for("work")
    cluster.kill(first)
    gates.open("work")
    second = cluster.worker(make_agent(gates))
    assert state_of(second.run(Event(id="file 2"), batch=True)) == ["file 1", "file 2"]
    assert second.run(Event(id="file 1"), batch=True).end.output == "done it"
    assert gates.calls["work"] == 3  # one more for the call that was in flight


def test_an_emptied_ledger_under_a_state_that_remembers_it(cluster: Any, tmp_path: Any) -> None:
    hosted = cluster.worker(make_agent(Gates()))
    ended = hosted.run(Event(id="1"))
    with pytest.raises(LedgerChanged, match="records are missing"):
        hosted.run(Event(id="2"), key="another", session_version=ended.session_version, ledger_identity=ended.ledger)
    with pytest.raises(LedgerChanged, match="was written with ledger"):
        hosted.run(Event(id="2"), session_version=1, ledger_identity="another")


def test_a_once_call_in_flight_at_a_kill_is_looked_into(cluster: Any) -> None:
    for verdict, output, made in ((Happened("seen"), "seen", 1), (CannotHappen(), "done it", 2)):
        gates = Gates()
        gates.shut("work")
        asked: list[str] = []

        def look(ctx: RunContext[Event, Count, None], what: str, asked: Any = asked, verdict: Any = verdict) -> Any:
            asked.append(ctx.idempotency_key)
            return verdict

        def status(ctx: RunContext[Event, Count, None], what: str) -> Any:
            return look(ctx, what)

        agent = make_agent(gates, effect="once", reconcile=status)
        first = cluster.worker(agent)
        first.start(Event(id=f"{made}"))
        gates.wait_for("work")
        cluster.kill(first)
        gates.open("work")
        ended = cluster.worker(agent).run(Event(id=f"{made}"))
        assert ended.end.output == output
        assert gates.calls["work"] == made
        assert asked == gates.keys["work"][:1]


def test_a_once_call_in_flight_that_nobody_can_judge_is_in_doubt(cluster: Any) -> None:
    gates = Gates()
    gates.shut("work")
    agent = make_agent(gates, effect="once")
    first = cluster.worker(agent)
    first.start(Event(id="1"))
    gates.wait_for("work")
    cluster.kill(first)
    gates.open("work")
    second = cluster.worker(agent)
    ended = second.run(Event(id="1"))
    assert ended.end.reason is FailureReason.IN_DOUBT
    assert "work" in ended.end.message
    assert gates.calls["work"] == 1
    assert second.run(Event(id="1")).end == ended.end  # and it stays so


def test_a_run_that_kills_its_worker_again_and_again_is_given_up(cluster: Any) -> None:
    gates = Gates()
    gates.shut("plan")
    agent = make_agent(gates)
    for _ in range(6):
        hosted = cluster.worker(agent)
        handle = hosted.start(Event(id="1"))
        if hosted.host.find(handle.run) is None:
            break
        while not handle.done.done() and not gates._entered["plan"].acquire(timeout=0.05):
            pass
        if handle.done.done():
            break
        cluster.kill(hosted)
    ended = handle.done.result(1)
    assert ended.end.reason is FailureReason.CRASH_LOOP
    assert gates.calls["plan"] == 5
    gates.open("plan")


def test_a_changed_event_under_the_same_id_is_refused(cluster: Any) -> None:
    hosted = cluster.worker(make_agent(Gates()))
    hosted.run(Event(id="1", text="a"))
    refused = hosted.outcome(Event(id="1", text="b"))
    assert isinstance(refused, Refused)
    assert refused.reason is FailureReason.ID_CONFLICT


def test_a_live_run_is_attached_to(cluster: Any) -> None:
    gates = Gates()
    gates.shut("work")
    hosted = cluster.worker(make_agent(gates))
    first = hosted.start(Event(id="1"))
    gates.wait_for("work")
    assert hosted.start(Event(id="1")) is first  # the bundle was tried again
    gates.open("work")
    assert first.done.result(30).end.output == "done it"
    assert gates.calls["work"] == 1


def test_two_hosts_of_one_process_do_not_take_each_other_s_runs(cluster: Any) -> None:
    gates = Gates()
    gates.shut("work")
    agent = make_agent(gates, effect="idempotent")
    first = cluster.worker(agent)
    second = Hosted(first.worker, first.worker.join(agent, "another copy", cluster.ledger(), "scope"))
    driven = first.start(Event(id="1"))
    gates.wait_for("work")
    following = second.start(Event(id="1"))
    behind = second.start(Event(id="2"))
    gates.open("work")
    assert driven.done.result(30).end == following.done.result(30).end
    assert following.done.result().replayed
    assert behind.done.result(30).end.output == "done it"
    assert gates.calls == {"plan": 2, "work": 2, "answer": 2}


def test_a_run_whose_dofn_is_gone_parks_and_goes_on_later(cluster: Any) -> None:
    gates = Gates()
    gates.shut("work")
    hosted = cluster.worker(make_agent(gates))
    parked = hosted.start(Event(id="1"))
    gates.wait_for("work")
    hosted.worker.leave(hosted.host)
    gates.open("work")
    from beam_agents.engine.live import Parked

    with pytest.raises(Parked):
        parked.done.result(30)
    assert gates.calls == {"plan": 1, "work": 1}  # what was in flight is recorded, nothing new was started
    ended = cluster.worker(make_agent(gates)).run(Event(id="1"))  # at once: it was let go
    assert ended.end.output == "done it"
    assert gates.calls == {"plan": 1, "work": 1, "answer": 1}


def test_in_a_batch_only_the_time_that_a_worker_held_the_run_counts(cluster: Any) -> None:
    gates = Gates()
    gates.shut("work")
    agent = make_agent(gates, budget=Budget(wall_clock=timedelta(seconds=60)))
    first = cluster.worker(agent)
    first.start(Event(id="1"), batch=True)
    gates.wait_for("work")
    cluster.kill(first)
    gates.open("work")
    cluster.clock.advance(24 * 3600)
    assert cluster.worker(agent).run(Event(id="1"), batch=True).end.output == "done it"


def test_an_answer_that_comes_late_ends_the_retries_of_the_worker_that_took_over(cluster: Any) -> None:
    gates = Gates()
    gates.shut("first")

    async def decide(request: Any) -> Any:
        number = sum(gates.calls.values())
        if number == 0:
            await asyncio.to_thread(gates.passing, "first")
            return say("from the first")
        gates.passing("later")
        raise ModelError("busy", retryable=True, retry_after=2.0)

    agent: Agent[Any, Any, Any, Any] = Agent(
        "agent", model=FunctionModel(decide), event_type=Event, settings=ModelSettings(retries=3)
    )
    frozen, other = cluster.worker(agent), cluster.worker(agent)
    late = frozen.start(Event(id="1"))
    gates.wait_for("first")
    cluster.clock.advance(10)
    taken = other.start(Event(id="1"))
    gates.wait_for("later")
    gates.open("first")
    assert [handle.done.result(30).end.output for handle in (late, taken)] == ["from the first"] * 2
    assert gates.calls == {"first": 1, "later": 1}
