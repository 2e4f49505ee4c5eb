"""The part of the ledgers' conformance suite about calls in doubt, and what a person says of them."""

from __future__ import annotations

from dataclasses import replace

from pydantic import TypeAdapter

from beam_agents.ledger.base import LEASE_SECONDS
from beam_agents.ledger.commands import (
    Busy,
    Close,
    Closed,
    FindRuns,
    FoundRuns,
    Intend,
    Load,
    Loaded,
    Opened,
    Record,
    Recorded,
    Resolve,
    Resolved,
)
from beam_agents.ledger.records import Effect, Resolution, Run
from beam_agents.testing.ledger_store import NOW, LedgerTests, Store, attempt, opening, run_key

RESOLUTIONS = TypeAdapter(list[Resolution])
ONCE = attempt()._replace(effect="once")


def found(path: str = "0", status: str = "ok", value: str = '"held"', number: int = 1) -> Resolve:
    """What an operator says of a call of `run_key()`."""
    return Resolve(run_key(), Resolution(path, number, status, value, "operator"))


def in_doubt(store: Store, *effects: Effect) -> Run:
    """A run that has ended so, with these calls open."""
    store.do(opening(run_key()))
    for effect in effects:
        store.do(Intend(run_key(), 1, effect))
    return store.expect(Closed, Close(run_key(), 1, "end", None, "in_doubt")).run


class LedgerResolving(LedgerTests):
    """What a ledger makes of what persons say."""

    # ---- open runs ----

    def test_a_call_of_an_open_run_that_nobody_drives_gets_its_outcome(self, store: Store) -> None:
        store.do(opening(run_key()))
        store.do(Intend(run_key(), 1, ONCE))
        store.clock.now = NOW + LEASE_SECONDS
        recorded = store.expect(Recorded, found())
        outcome = ONCE._replace(intent_at=NOW, status="ok", value='"held"', outcome_at=store.clock.now)
        assert recorded == Recorded(outcome, new=True)
        opened = store.expect(Opened, opening(run_key(), "worker-2"))
        assert opened.effects == (outcome,)
        said = replace(found().resolution, at=store.clock.now)
        assert RESOLUTIONS.validate_json(opened.run.resolution or "") == [said]
        closed = store.expect(Closed, Close(run_key(), 2, "end", None)).run
        assert (closed.resolution, closed.doubtful) == (opened.run.resolution, False)

    def test_a_run_with_a_live_worker_is_left_to_it(self, store: Store) -> None:
        store.do(opening(run_key()))
        store.do(Intend(run_key(), 1, ONCE))
        run = store.load(run_key())
        assert store.do(found()) == Busy(run, NOW + LEASE_SECONDS)
        assert store.expect(Loaded, Load(run_key())) == Loaded(run, (ONCE._replace(intent_at=NOW),))

    def test_only_once_calls_without_an_outcome_are_resolved(self, store: Store) -> None:
        store.do(opening(run_key()))
        store.do(Intend(run_key(), 1, ONCE))
        store.do(Record(run_key(), "0", 1, "failed", '"refused"'))
        store.do(Intend(run_key(), 1, attempt("1")))
        store.clock.now += LEASE_SECONDS + 1
        before = store.do(Load(run_key()))
        assert store.do(found("0")) == store.do(found("1")) == before
        assert store.do(Load(run_key())) == before

    # ---- ended runs ----

    def test_what_is_said_of_an_ended_run_is_noted(self, store: Store) -> None:
        run = in_doubt(store, ONCE)
        assert run.doubtful
        store.clock.now += 5
        resolved = store.expect(Resolved, found(status="failed", value='"no hold é"')).run
        assert RESOLUTIONS.validate_json(resolved.resolution or "") == [
            Resolution("0", 1, "failed", '"no hold é"', "operator", NOW + 5)
        ]
        assert resolved == replace(run, doubtful=False, resolution=resolved.resolution)
        assert store.expect(Loaded, Load(run_key())) == Loaded(resolved, (ONCE._replace(intent_at=NOW),))
        assert store.do(FindRuns(which="doubtful")) == FoundRuns(())
        assert store.do(FindRuns(which="failed")) == FoundRuns((resolved,))

    def test_a_call_that_was_recorded_as_in_doubt_is_resolved(self, store: Store) -> None:
        store.do(opening(run_key()))
        store.do(Intend(run_key(), 1, ONCE))
        store.do(Record(run_key(), "0", 1, "in_doubt", '"timed out"'))
        store.do(Close(run_key(), 1, "end", None, "in_doubt"))
        assert not store.expect(Resolved, found()).run.doubtful
        (effect,) = store.expect(Loaded, Load(run_key())).effects
        assert (effect.status, effect.value) == ("in_doubt", '"timed out"')

    def test_a_run_is_doubtful_until_its_last_call_is_resolved(self, store: Store) -> None:
        in_doubt(store, ONCE, ONCE._replace(path="1"), attempt("2"))
        first = store.expect(Resolved, found("1")).run
        assert first.doubtful
        assert store.do(FindRuns(which="doubtful")) == FoundRuns((first,))
        second = store.expect(Resolved, found("0", "failed")).run
        assert not second.doubtful
        noted = RESOLUTIONS.validate_json(second.resolution or "")
        assert [(one.path, one.status) for one in noted] == [("1", "ok"), ("0", "failed")]

    def test_two_calls_are_resolved_in_one_group(self, store: Store) -> None:
        in_doubt(store, ONCE, ONCE._replace(path="1"))
        answers = store.ledger.apply([found("0"), found("1"), FindRuns(which="doubtful"), Load(run_key())])
        resolved, loaded = answers[1], answers[3]
        assert isinstance(resolved, Resolved)
        assert not resolved.run.doubtful
        assert answers[2] == FoundRuns(())
        assert isinstance(loaded, Loaded)
        assert loaded.run == resolved.run

    def test_what_was_said_first_stands(self, store: Store) -> None:
        in_doubt(store, ONCE)
        resolved = store.expect(Resolved, found()).run
        again = store.expect(Loaded, found(status="failed"))
        assert again == store.do(Load(run_key()))
        assert again.run == resolved

    def test_what_is_not_there_is_not_resolved(self, store: Store) -> None:
        assert store.do(found()) == Loaded(None)
        run = in_doubt(store, ONCE)
        assert store.expect(Loaded, found("7")).run == store.expect(Loaded, found(number=2)).run == run
        assert store.load(run_key()) == run
