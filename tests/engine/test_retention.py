"""What the engine does when a run, or all that was known of it, is gone from the ledger; what it writes for pruning."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Any

import pytest
from agents_under_test import Event, Gates
from cluster import Hosted
from test_schedules import make_agent, state_of
from test_watch import until, watch

from beam_agents import Budget, FailRun, FailureReason, LedgerChanged
from beam_agents.engine import connections as connections_module
from beam_agents.engine import host as host_module
from beam_agents.engine.connections import Connections
from beam_agents.engine.end import Pruned, Refused
from beam_agents.ledger.base import BEGINNING
from beam_agents.ledger.commands import Close, Closed, Load, Loaded, Open, Opened, Prune, PruneDone
from beam_agents.ledger.memory import EphemeralLedger
from beam_agents.ledger.records import Run, RunKey
from beam_agents.messages import ModelRequest, ModelResponse
from beam_agents.models.base import Model

SECOND = 1_000_000


def ask(hosted: Hosted, command: Any) -> Any:
    return hosted.host.ledger.ask_blocking(command, timeout=20)


def record(hosted: Hosted, handle: Any) -> Run:
    loaded = ask(hosted, Load(handle.run))
    assert isinstance(loaded, Loaded)
    assert loaded.run is not None
    return loaded.run


def prune(hosted: Hosted, *, forget: bool = False) -> None:
    """All that is closed becomes a tombstone; to forget those takes a second round."""
    command = Prune("scope", hosted.host.agent.name, -1.0, -1.0 if forget else 1e9)
    for _ in range(1 + forget):
        assert isinstance(ask(hosted, command), PruneDone)


def test_a_close_says_why_there_is_no_answer(cluster: Any) -> None:
    def refuse(state: Any, event: Event) -> Any:
        if event.text == "refused":
            raise FailRun("not for us")
        return None

    gates = Gates()
    hosted = cluster.worker(make_agent(gates, skip=refuse))
    reasons = {}
    for event in (Event(id="1"), Event(id="2", text="refused")):
        handle = hosted.start(event)
        handle.done.result(30)
        reasons[event.id] = record(hosted, handle).reason
    assert reasons == {"1": None, "2": "rejected"}


def test_a_run_in_doubt_stays_for_a_person_to_see(cluster: Any) -> None:
    gates = Gates()
    gates.shut("work")
    agent = make_agent(gates, effect="once")
    first = cluster.worker(agent)
    handle = first.start(Event(id="1"))
    gates.wait_for("work")
    cluster.kill(first)
    gates.open("work")
    second = cluster.worker(agent)
    ended = second.run(Event(id="1"))
    assert ended.end.reason is FailureReason.IN_DOUBT
    prune(second, forget=True)
    left = record(second, handle)
    assert (left.reason, left.doubtful, left.tombstone) == ("in_doubt", True, False)


def test_an_event_of_a_pruned_run_is_known_as_such_and_the_session_goes_on(cluster: Any) -> None:
    gates = Gates()
    hosted = cluster.worker(make_agent(gates))
    hosted.run(Event(id="1"))
    prune(hosted)
    again = hosted.outcome(Event(id="1"))
    assert isinstance(again, Pruned)
    assert "'1'" in again.message
    changed = hosted.outcome(Event(id="1", text="another"))
    assert isinstance(changed, Refused)
    assert changed.reason is FailureReason.ID_CONFLICT
    assert gates.calls["work"] == 1
    assert state_of(hosted.run(Event(id="2"))) == ["1", "2"]


def test_an_event_that_is_not_younger_than_what_was_forgotten_is_too_old(cluster: Any) -> None:
    gates = Gates()
    hosted = cluster.worker(make_agent(gates))
    hosted.run(Event(id="1"), event_time=50 * SECOND)
    prune(hosted, forget=True)
    for name, time in (("1", 50 * SECOND), ("never seen", 49 * SECOND), ("without a time", None)):
        refused = hosted.outcome(Event(id=name), event_time=time)
        assert isinstance(refused, Refused)
        assert not isinstance(refused, Pruned)
        assert refused.reason is FailureReason.TOO_OLD
        assert repr(name) in refused.message
        assert "1970-01-01T00:00:50+00:00" in refused.message
    assert gates.calls["work"] == 1
    ended = hosted.run(Event(id="2"), event_time=51 * SECOND)
    assert state_of(ended) == ["1", "2"]


def test_times_beyond_the_calendar_are_told_too(cluster: Any) -> None:
    hosted = cluster.worker(make_agent(Gates()))
    hosted.run(Event(id="1"), event_time=2**62)
    prune(hosted, forget=True)
    refused = hosted.outcome(Event(id="1"), event_time=2**62)
    assert isinstance(refused, Refused)
    assert "4611686018427 s after 1970" in refused.message


def test_of_events_without_a_time_none_can_be_told_from_what_was_forgotten(cluster: Any) -> None:
    hosted = cluster.worker(make_agent(Gates()))
    hosted.run(Event(id="1"))
    prune(hosted, forget=True)
    refused = hosted.outcome(Event(id="2"))
    assert isinstance(refused, Refused)
    assert "give events their time" in refused.message
    assert str(BEGINNING) not in refused.message
    assert hosted.run(Event(id="3"), event_time=0).end.output == "done it"


def test_a_batch_gives_the_run_that_stands_before_its_own_the_time_of_a_batch(cluster: Any) -> None:
    gates = Gates()
    gates.shut("work")
    agent = make_agent(gates, budget=Budget(wall_clock=timedelta(seconds=60)))
    first = cluster.worker(agent)
    before = first.start(Event(id="1"), batch=True)
    gates.wait_for("work")
    cluster.kill(first)
    gates.open("work")
    cluster.clock.advance(24 * 3600)
    second = cluster.worker(agent)
    assert state_of(second.run(Event(id="2"), batch=True)) == ["1", "2"]
    assert record(second, before).reason is None


@pytest.fixture
def pruned(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Hosted:
    """A worker on a ledger from which a run was pruned that had been closed an hour ago."""
    monkeypatch.setattr(host_module, "_ORPHANS_EVERY", 0.02)
    hosted: Hosted = cluster.worker(make_agent(Gates()))
    cluster.clock.advance(-3600)
    hosted.run(Event(id="1"))
    prune(hosted)
    return hosted


def drain_until_refused(hosted: Hosted) -> str:
    def refused() -> str | None:
        try:
            hosted.host.drain()
        except LedgerChanged as error:
            return str(error)
        return None

    return str(until(refused))


def test_a_state_older_than_what_was_pruned_is_refused(pruned: Hosted, cluster: Any) -> None:
    watch(pruned)
    assert pruned.host.drain() is not None
    pruned.host.state_is_from(cluster.clock() + 3000)
    pruned.host.state_is_from(cluster.clock() - 100)
    said = drain_until_refused(pruned)
    for part in ("'scope'", "'agent'", "newer savepoint", "--accept_state_older_than_ledger"):
        assert part in said
    with pytest.raises(LedgerChanged):
        pruned.host.drain(7)


def test_a_state_in_which_all_that_was_pruned_had_been_emitted_is_taken(pruned: Hosted, cluster: Any) -> None:
    watch(pruned)
    pruned.host.state_is_from(cluster.clock() + 100)
    until(lambda: pruned.host._state_at is None)
    assert pruned.host.drain() == []
    pruned.host.state_is_from(cluster.clock() + 50)  # it may have been closed, and not yet emitted
    assert "between came to may be missing" in drain_until_refused(pruned)


def test_an_old_state_is_taken_with_a_warning_when_somebody_says_so(
    pruned: Hosted, cluster: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "beam_agents")
    watch(pruned)
    pruned.host.state_is_from(cluster.clock() - 100, take_old=True)
    until(lambda: "taken all the same" in caplog.text)
    assert pruned.host.drain() == []


class Counting(Model):
    def __init__(self) -> None:
        self.connects = self.closes = 0

    @property
    def name(self) -> str:
        return "counting"

    async def connect(self) -> None:
        self.connects += 1

    async def close(self) -> None:
        self.closes += 1

    async def request(self, request: ModelRequest) -> ModelResponse:
        raise NotImplementedError


def test_models_that_are_made_anew_are_let_go_when_nobody_asks_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(_lets_go(monkeypatch))


async def _lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "_KEPT", 2)
    connections = Connections()
    models = [Counting() for _ in range(4)]
    for model in models:
        await connections.connect(model)
    assert len(connections) == 4  # they may be in use
    monkeypatch.setattr(connections_module, "_IDLE_SECONDS", -1.0)
    await connections.connect(models[0])
    assert [model.closes for model in models] == [0, 1, 1, 0]
    await connections.connect(models[1])
    await connections.close()
    assert [(model.connects, model.closes) for model in models] == [(1, 1), (2, 2), (1, 1), (1, 1)]
    assert len(connections) == 0


def test_a_model_is_never_taken_for_a_dead_one_with_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(_takes_none_for_another(monkeypatch))


async def _takes_none_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "_KEPT", 1)
    monkeypatch.setattr(connections_module, "_IDLE_SECONDS", -1.0)
    connections, seen = Connections(), set()
    for _ in range(50):
        model = Counting()
        seen.add(id(model))
        await connections.connect(model)
        assert model.connects == 1
    assert len(seen) < 50  # ids did come again
    await connections.close()


def test_without_a_ledger_no_run_is_ever_pruned_or_too_old() -> None:
    ledger, run = EphemeralLedger(), RunKey("scope", "agent", 1, "k", "1")
    begin, prune_all = Open(run, "{}", "digest", "owner", event_time=5), Prune("scope", "agent", -1.0, -1.0)
    for _ in range(2):
        answers = ledger.apply([begin, Close(run, 1, "{}", None), prune_all, prune_all])
        assert [type(answer) for answer in answers] == [Opened, Closed, PruneDone, PruneDone]


@pytest.mark.parametrize("forget", [False, True])
def test_an_outcome_that_comes_after_its_run_was_pruned(cluster: Any, forget: bool) -> None:
    gates = Gates()
    gates.shut("work")
    agent = make_agent(gates, budget=Budget(wall_clock=timedelta(seconds=8)))
    first = cluster.worker(agent)
    late = first.start(Event(id="1"), event_time=5)
    gates.wait_for("work")
    cluster.clock.advance(10)
    second = cluster.worker(agent)
    ended = second.outcome(Event(id="1"), event_time=5)
    assert ended.end.reason is FailureReason.DEADLINE
    prune(second, forget=forget)
    gates.open("work")
    outcome = late.done.result(30)
    assert isinstance(outcome, Refused), outcome
    assert outcome.reason is FailureReason.TOO_OLD
