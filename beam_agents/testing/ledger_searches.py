"""The part of the ledgers' conformance suite about what is found: orphans, runs closed lately, runs for a person."""

from __future__ import annotations

import pytest

from beam_agents.ledger.base import LEASE_SECONDS
from beam_agents.ledger.commands import (
    Close,
    FindClosed,
    FindOrphans,
    FindRuns,
    FoundClosed,
    FoundRuns,
    Orphans,
    Prune,
    Release,
    Renew,
    Summarize,
    Summary,
)
from beam_agents.ledger.records import RunKey, UseSummary
from beam_agents.testing.ledger_store import NOW, LedgerTests, Store, opening, run_key


class LedgerSearches(LedgerTests):
    """What a ledger finds."""

    # ---- orphans ----

    def test_orphans_are_the_open_runs_of_a_scope_without_a_worker(self, store: Store) -> None:
        runs = [run_key(f"r{number}", f'"k{number}"', revision=number % 2) for number in range(5)]
        for run in runs:
            store.do(opening(run))
            store.clock.now += 0.125
        store.do(opening(run_key("other", scope="other")))
        store.do(Close(runs[3], 1, "end", None))
        assert store.do(FindOrphans("scope", "fraud")) == Orphans(())
        store.do(Release(runs[4], 1))
        assert [run.key for run in store.expect(Orphans, FindOrphans("scope", "fraud")).runs] == [runs[4]]
        store.clock.now += LEASE_SECONDS + 1
        store.do(opening(runs[1], "worker-2"))
        orphans = store.expect(Orphans, FindOrphans("scope", "fraud")).runs
        assert [run.key for run in orphans] == [runs[0], runs[2], runs[4]]
        assert orphans[0] == store.load(runs[0])
        assert [run.key for run in store.expect(Orphans, FindOrphans("scope", "fraud", limit=2)).runs] == runs[0:3:2]
        assert store.do(FindOrphans("scope", "nobody")) == Orphans(())

    def test_a_lease_that_ends_now_has_ended(self, store: Store) -> None:
        store.do(opening(run_key()))
        store.clock.now += LEASE_SECONDS - 0.000001
        assert store.do(FindOrphans("scope", "fraud")) == Orphans(())
        store.clock.now = NOW + LEASE_SECONDS
        assert [run.key for run in store.expect(Orphans, FindOrphans("scope", "fraud")).runs] == [run_key()]

    def test_driven_runs_do_not_use_up_the_limit_of_orphans(self, store: Store) -> None:
        runs = [run_key(f"r{number}", f'"k{number}"') for number in range(12)]
        for number, run in enumerate(runs):
            store.do(opening(run, f"worker-{number % 4}"))
            store.clock.now += 0.125
        store.clock.now += LEASE_SECONDS + 1
        for owner in ("worker-0", "worker-1", "worker-2"):
            store.do(Renew(owner))
        store.do(Release(runs[10], 1))
        found = store.expect(Orphans, FindOrphans("scope", "fraud", limit=3)).runs
        assert [run.key for run in found] == [runs[3], runs[7], runs[10]]
        assert found[2] == store.load(runs[10])
        assert len(store.expect(Orphans, FindOrphans("scope", "fraud")).runs) == 4

    # ---- closed lately ----

    def test_runs_closed_lately_are_found_newest_first(self, store: Store) -> None:
        runs = [run_key(f"r{number}", f'"k{number}"', revision=number % 2) for number in range(4)]
        for run in runs:
            store.do(opening(run))
        store.do(opening(run_key("open", '"k9"')))
        for run in runs:
            store.clock.now += 10
            store.do(Close(run, 1, "end", None))
        other = run_key("other", scope="other")
        store.do(opening(other))
        store.do(Close(other, 1, "end", None))
        assert store.do(FindClosed("scope", "fraud", within=20)) == FoundClosed((runs[3], runs[2], runs[1]))
        assert store.do(FindClosed("scope", "fraud", within=20, limit=2)) == FoundClosed((runs[3], runs[2]))
        assert store.do(FindClosed("scope", "fraud", within=1e6)) == FoundClosed(tuple(reversed(runs)))
        store.clock.now += 20.5
        assert store.do(FindClosed("scope", "fraud", within=20)) == FoundClosed(())

    def test_a_run_closed_in_the_same_group_is_found(self, store: Store) -> None:
        store.do(opening(run_key()))
        answers = store.ledger.apply([Close(run_key(), 1, "end", None), FindClosed("scope", "fraud", within=1)])
        assert answers[1] == FoundClosed((run_key(),))

    # ---- runs for a person ----

    @pytest.fixture
    def runs(self, store: Store) -> dict[str, RunKey]:
        """Runs of several uses and keys, opened one second after the other, by what they came to."""
        runs = {
            "pruned": run_key("pruned", '"k1"'),
            "answered": run_key("answered", '"k1"'),
            "late": run_key("late", '"k1"', revision=2),
            "doubtful": run_key("doubtful", '"k2"'),
            "other scope": run_key("answered", '"k1"', scope="other"),
            "other agent": run_key("doubtful", '"k2"')._replace(agent="sensors"),
            "open": run_key("open", '"k2"'),
        }
        reasons = {"late": "deadline", "doubtful": "in_doubt", "other agent": "in_doubt"}
        for name, run in runs.items():
            store.clock.now += 1
            if name == "open":
                store.do(opening(run))
            else:
                store.complete(run, reason=reasons.get(name))
            if name == "pruned":
                store.clock.now += 10
                store.do(Prune("scope", "fraud", closed_for=5, tombstones_for=1e6))
        return runs

    @pytest.mark.parametrize(
        ("query", "names"),
        [
            (FindRuns(), ["open", "other agent", "other scope", "doubtful", "late", "answered"]),
            (FindRuns(limit=2), ["open", "other agent"]),
            (FindRuns(scope="scope"), ["open", "other agent", "doubtful", "late", "answered"]),
            (FindRuns(agent="fraud"), ["open", "other scope", "doubtful", "late", "answered"]),
            (FindRuns(scope="scope", agent="fraud"), ["open", "doubtful", "late", "answered"]),
            (FindRuns(scope="scope", agent="fraud", limit=3), ["open", "doubtful", "late"]),
            (FindRuns(key='"k2"'), ["open", "other agent", "doubtful"]),
            (FindRuns(run_id="answered"), ["other scope", "answered"]),
            (FindRuns(run_id="pruned"), []),
            (FindRuns(revision=2), ["late"]),
            (FindRuns(scope="scope", agent="fraud", revision=1, limit=2), ["open", "doubtful"]),
            (FindRuns(which="failed", revision=1), ["other agent", "doubtful"]),
            (FindRuns(scope="scope", agent="fraud", key='"k1"', run_id="answered"), ["answered"]),
            (FindRuns(which="open"), ["open"]),
            (FindRuns(which="open", scope="other"), []),
            (FindRuns(which="open", scope="scope", agent="fraud"), ["open"]),
            (FindRuns(which="doubtful"), ["other agent", "doubtful"]),
            (FindRuns(which="doubtful", limit=1), ["other agent"]),
            (FindRuns(which="doubtful", agent="fraud"), ["doubtful"]),
            (FindRuns(which="failed"), ["other agent", "doubtful", "late"]),
            (FindRuns(which="failed", key='"k1"'), ["late"]),
            (FindRuns(which="failed", scope="nowhere"), []),
        ],
        ids=str,
    )
    def test_runs_are_found_by_what_a_person_asks(
        self, store: Store, runs: dict[str, RunKey], query: FindRuns, names: list[str]
    ) -> None:
        assert store.do(query) == FoundRuns(tuple(store.load(runs[name]) for name in names))

    def test_runs_of_the_same_group_are_found(self, store: Store) -> None:
        answers = store.ledger.apply([opening(run_key()), FindRuns(), Close(run_key(), 1, "end", None), FindRuns()])
        for found, end in ((answers[1], None), (answers[3], "end")):
            assert isinstance(found, FoundRuns)
            assert [(run.key, run.end) for run in found.runs] == [(run_key(), end)]

    def test_what_there_is_is_counted(self, store: Store, runs: dict[str, RunKey]) -> None:
        of_fraud = UseSummary("scope", "fraud", open=1, ended=3, doubtful=1, tombstones=1, pruned_to=NOW + 1)
        assert store.do(Summarize()) == Summary(
            (
                UseSummary("other", "fraud", open=0, ended=1, doubtful=0, tombstones=0, pruned_to=None),
                of_fraud,
                UseSummary("scope", "sensors", open=0, ended=1, doubtful=1, tombstones=0, pruned_to=None),
            )
        )
        answers = store.ledger.apply([Close(runs["open"], 1, "end", None), Summarize()])
        assert isinstance(answers[1], Summary)
        assert (answers[1].uses[1].open, answers[1].uses[1].ended) == (0, 4)

    def test_an_empty_ledger_is_counted(self, store: Store) -> None:
        assert store.do(Summarize()) == Summary(())
        assert store.do(FindRuns()) == FoundRuns(())
