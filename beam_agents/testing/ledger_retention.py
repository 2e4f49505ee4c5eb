"""The part of the ledgers' conformance suite about what is dropped: pruned runs, tombstones, the horizon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from beam_agents.ledger.base import BEGINNING, Ledger
from beam_agents.ledger.commands import (
    Close,
    Closed,
    Conflict,
    CountOld,
    Fenced,
    FindClosed,
    FoundClosed,
    HeadIs,
    HorizonIs,
    Intend,
    Load,
    Loaded,
    Opened,
    Prune,
    Pruned,
    PruneDone,
    ReadHead,
    ReadHorizon,
    Record,
    Release,
    Resolve,
    TooOld,
)
from beam_agents.ledger.records import Head, Resolution, RunKey
from beam_agents.testing.ledger_store import NOW, LedgerTests, Store, attempt, opening, run_key

DAY = 86_400.0
LONG = 10_000 * DAY


def prune(closed_for: float = DAY, tombstones_for: float = LONG, limit: int = 500) -> Prune:
    """Prunes what `run_key` names."""
    return Prune("scope", "fraud", closed_for, tombstones_for, limit)


def ended(store: Store, count: int) -> list[RunKey]:
    """Runs of several keys and revisions, each with one effect, that are closed one second after the other."""
    runs = [run_key(f"r{number}", f'"k{number}"', revision=number % 2) for number in range(count)]
    for run in runs:
        store.do(opening(run))
        store.do(Intend(run, 1, attempt()))
        store.do(Record(run, "0", 1, "ok", "1"))
        store.do(Close(run, 1, "end", run.run_id))
        store.clock.now += 1
    return runs


class LedgerRetention(LedgerTests):
    """What a ledger drops, and what it keeps."""

    # ---- tombstones ----

    def test_old_runs_are_pruned_oldest_first_until_nothing_is_left(self, store: Store) -> None:
        runs = ended(store, 7)
        store.clock.now += DAY
        done = []
        for _ in range(4):
            done.append(store.do(prune(limit=3)))
            done.append(PruneDone(sum(store.load(run).tombstone for run in runs), 0))
        pruned = [(3, 3), (3, 6), (1, 7), (0, 7)]
        assert done == [PruneDone(count, 0) for pair in pruned for count in pair]

    def test_a_tombstone_keeps_who_and_when_but_not_what(self, store: Store) -> None:
        (run,) = ended(store, 1)
        before = store.load(run)
        store.clock.now += DAY
        assert store.do(prune()) == PruneDone(1, 0)
        loaded = store.expect(Loaded, Load(run))
        assert loaded.run == replace(before, event="", end="")
        assert loaded.run is not None
        assert loaded.run.tombstone
        assert loaded.effects == ()

    def test_runs_that_were_closed_lately_stay(self, store: Store) -> None:
        runs = ended(store, 3)
        store.clock.now = NOW + DAY + 1
        assert store.do(prune()) == PruneDone(1, 0)
        assert [store.load(run).tombstone for run in runs] == [True, False, False]
        kept = store.expect(Loaded, Load(runs[1]))
        assert kept.run is not None
        assert (kept.run.end, [effect.value for effect in kept.effects]) == ("end", ["1"])

    def test_open_and_doubtful_runs_stay_however_old(self, store: Store) -> None:
        doubtful, is_open = run_key("doubtful", '"a"'), run_key("open", '"b"')
        store.complete(doubtful, reason="in_doubt")
        store.do(opening(is_open))
        store.do(Intend(is_open, 1, attempt()))
        store.clock.now += 100 * DAY
        assert store.do(prune(0, 0)) == store.do(prune(0, 0)) == PruneDone(0, 0)
        assert (store.load(doubtful).end, store.load(is_open).end) == ("end", None)
        assert len(store.expect(Loaded, Load(is_open)).effects) == 1

    def test_doubtful_runs_do_not_use_up_the_limit(self, store: Store) -> None:
        for number in range(4):
            store.complete(run_key(f"d{number}", f'"d{number}"'), reason="in_doubt")
        ended(store, 3)
        store.clock.now += DAY
        assert [store.do(prune(limit=2)) for _ in range(3)] == [PruneDone(2, 0), PruneDone(1, 0), PruneDone(0, 0)]

    def test_other_scopes_and_agents_stay(self, store: Store) -> None:
        others = [run_key()._replace(scope="other"), run_key()._replace(agent="other")]
        for run in (run_key(), *others):
            store.complete(run)
        store.clock.now += DAY + 1
        assert store.do(prune(limit=3)) == PruneDone(1, 0)
        assert [store.load(run).tombstone for run in others] == [False, False]

    def test_a_tombstone_answers_for_its_run(self, store: Store) -> None:
        (run,) = ended(store, 1)
        store.clock.now += DAY
        store.do(prune())
        tombstone = store.load(run)
        assert store.do(opening(run)) == Pruned(tombstone)
        assert store.do(opening(run, digest="other")) == Conflict(tombstone)
        assert store.do(Intend(run, 1, attempt())) == Fenced(tombstone)
        assert store.do(Release(run, 1)) == Fenced(tombstone)
        assert store.do(Record(run, "0", 1, "ok", "1")) == Fenced(tombstone)
        assert store.do(Close(run, 1, "another end", None)) == Fenced(tombstone)
        found = Resolution("0", 1, "ok", "1", "operator")
        assert store.expect(Loaded, Resolve(run, found)).run == tombstone
        assert store.do(FindClosed("scope", "fraud", within=LONG)) == FoundClosed(())
        assert store.load(run) == tombstone

    def test_a_pruned_run_is_seen_as_it_is_by_the_rest_of_its_group(self, store: Store) -> None:
        old, young = ended(store, 2)
        store.clock.now = NOW + DAY + 0.5
        answers = store.ledger.apply(
            [
                Load(old),
                Load(young),
                ReadHead(old.head),
                opening(run_key("new", '"new"')),
                prune(),
                Load(old),
                Load(young),
                opening(old),
                ReadHead(old.head),
                Load(run_key("new", '"new"')),
                ReadHorizon("scope", "fraud"),
            ]
        )
        assert answers[4] == PruneDone(1, 0)
        before, after = answers[0], answers[5]
        assert isinstance(before, Loaded)
        assert isinstance(after, Loaded)
        assert before.run is not None
        assert after == Loaded(replace(before.run, event="", end=""), ())
        assert after.run is not None
        assert answers[6:9] == [answers[1], Pruned(after.run), answers[2]]
        opened, loaded = answers[3], answers[9]
        assert isinstance(opened, Opened)
        assert loaded == Loaded(opened.run, ())
        assert answers[10] == HorizonIs(NOW)

    def test_a_run_that_is_closed_and_pruned_in_one_group(self, store: Store) -> None:
        run = run_key()
        store.do(opening(run))
        store.do(Intend(run, 1, attempt()))
        answers = store.ledger.apply([Close(run, 1, "end", "session"), prune(closed_for=-1), Load(run)])
        closed, done, loaded = answers
        assert isinstance(closed, Closed)
        assert (done, loaded) == (PruneDone(1, 0), Loaded(replace(closed.run, event="", end=""), ()))

    # ---- heads ----

    def test_sessions_and_open_runs_survive(self, store: Store) -> None:
        (run,) = ended(store, 1)
        store.do(opening(run_key("open", '"k0"', revision=0)))
        head = store.head(run.head)
        assert head == Head(run.head, 1, "r0", "open")
        store.clock.now += 2 * DAY
        assert store.do(prune()) == PruneDone(1, 0)
        assert store.head(run.head) == head
        assert store.do(prune(tombstones_for=DAY)) == PruneDone(0, 1)
        assert store.head(run.head) == replace(head, forgotten_to=BEGINNING)
        store.do(Close(run_key("open", '"k0"', revision=0), 1, "end", "newer"))
        assert store.head(run.head) == Head(run.head, 2, "newer", None, BEGINNING)

    # ---- forgetting ----

    def test_old_tombstones_are_forgotten_oldest_first_until_nothing_is_left(self, store: Store) -> None:
        runs = ended(store, 5)
        store.clock.now += DAY
        store.do(prune())
        done = []
        for _ in range(4):
            done.append(store.do(prune(tombstones_for=DAY, limit=2)))
            done.append(PruneDone(0, sum(store.expect(Loaded, Load(run)).run is None for run in runs)))
        forgotten = [(2, 2), (2, 4), (1, 5), (0, 5)]
        assert done == [PruneDone(0, count) for pair in forgotten for count in pair]

    def test_nothing_is_made_a_tombstone_and_forgotten_at_once(self, store: Store) -> None:
        ended(store, 2)
        store.clock.now += 10 * DAY
        assert [store.do(prune(DAY, DAY)) for _ in range(3)] == [PruneDone(2, 0), PruneDone(0, 2), PruneDone(0, 0)]

    def test_what_would_be_dropped_is_counted(self, store: Store) -> None:
        ended(store, 3)
        store.clock.now = NOW + 10 * DAY
        store.do(prune())
        later = [run_key(f"later{number}", f'"k{number}"') for number in range(4)]
        for run in later:
            store.complete(run, reason="in_doubt" if run == later[1] else None)
            store.clock.now += 1
        store.do(opening(run_key("open", '"k9"')))
        other = run_key("other", scope="other")
        store.complete(other)
        store.clock.now = NOW + 20 * DAY

        def counted(closed_for: float, tombstones_for: float) -> PruneDone:
            return store.expect(PruneDone, CountOld("scope", "fraud", closed_for, tombstones_for))

        assert counted(DAY, LONG) == PruneDone(3, 0)
        assert counted(10 * DAY - 3, 20 * DAY - 1) == PruneDone(2, 1)
        assert counted(10 * DAY, 10 * DAY) == PruneDone(0, 3)
        assert counted(DAY, DAY) == PruneDone(3, 6)
        dropped = [store.expect(PruneDone, prune(DAY, DAY)) for _ in range(3)]
        assert (sum(done.runs for done in dropped), sum(done.tombstones for done in dropped)) == (3, 6)
        assert counted(DAY, DAY) == PruneDone(0, 0)

    def test_tombstones_younger_than_that_stay(self, store: Store) -> None:
        runs = ended(store, 3)
        store.clock.now = NOW + 10 * DAY
        store.do(prune())
        store.clock.now += 1
        assert store.do(prune(tombstones_for=10 * DAY)) == PruneDone(0, 1)
        assert [store.expect(Loaded, Load(run)).run is None for run in runs] == [True, False, False]

    def test_an_event_that_is_not_younger_than_what_was_forgotten_is_too_old(self, store: Store) -> None:
        store.complete(run_key("a"), "first", event_time=200)
        store.complete(run_key("b"), "second", event_time=100)
        store.complete(run_key("a", '"another"'), event_time=900)
        store.clock.now += DAY + 1
        store.do(prune())
        store.do(prune(tombstones_for=DAY))
        assert store.head(run_key().head) == Head(run_key().head, 2, "second", None, 200)
        for run_id, event_time in (("a", 200), ("b", 100), ("c", 200), ("c", -5), ("c", None)):
            assert store.do(replace(opening(run_key(run_id)), event_time=event_time)) == TooOld(200)
            assert store.expect(Loaded, Load(run_key(run_id))).run is None
        younger = store.expect(Opened, replace(opening(run_key("c")), event_time=201))
        assert (younger.session_version, younger.session) == (2, "second")
        assert store.head(run_key().head) == Head(run_key().head, 2, "second", "c", 200)

    def test_a_run_that_is_there_is_not_too_old(self, store: Store) -> None:
        store.complete(run_key("forgotten"), event_time=200)
        store.clock.now += 2 * DAY
        store.do(prune())
        store.complete(run_key("kept"), event_time=300)
        store.do(replace(opening(run_key("open")), event_time=250))
        store.do(prune(tombstones_for=DAY))
        assert store.do(replace(opening(run_key("new")), event_time=200)) == TooOld(200)
        store.expect(Closed, replace(opening(run_key("kept")), event_time=100))
        store.expect(Opened, replace(opening(run_key("open")), event_time=100))

    def test_an_event_without_a_time_counts_as_older_than_all_others(self, store: Store) -> None:
        store.complete(run_key("a"))
        store.clock.now += DAY + 1
        store.do(prune())
        store.do(prune(tombstones_for=DAY))
        assert store.do(opening(run_key("b"))) == TooOld(BEGINNING)
        store.expect(Opened, replace(opening(run_key("b")), event_time=-(2**60)))

    def test_what_was_forgotten_is_never_less_than_before(self, store: Store) -> None:
        for event_time in (500, 300, 700):
            store.complete(run_key(str(event_time)), event_time=event_time)
            store.clock.now += 1
        store.clock.now += DAY
        store.do(prune())
        for forgotten_to in (500, 500, 700):
            assert store.do(prune(tombstones_for=DAY, limit=1)) == PruneDone(0, 1)
            assert store.head(run_key().head) == Head(run_key().head, 3, "session", None, forgotten_to)

    def test_a_forgotten_run_is_seen_as_it_is_by_the_rest_of_its_group(self, store: Store) -> None:
        store.complete(run_key("a"), event_time=200)
        store.clock.now += DAY + 1
        store.do(prune())
        answers = store.ledger.apply(
            [
                Load(run_key("a")),
                ReadHead(run_key().head),
                prune(tombstones_for=DAY),
                Load(run_key("a")),
                replace(opening(run_key("b")), event_time=200),
                replace(opening(run_key("c")), event_time=201),
                ReadHead(run_key().head),
            ]
        )
        assert answers[1:5] == [
            HeadIs(Head(run_key().head, 1, "session")),
            PruneDone(0, 1),
            Loaded(None),
            TooOld(200),
        ]
        assert isinstance(answers[5], Opened)
        assert answers[6] == HeadIs(Head(run_key().head, 1, "session", "c", 200))

    # ---- the horizon ----

    def test_the_horizon_is_the_newest_close_that_was_pruned(self, store: Store) -> None:
        assert store.do(ReadHorizon("scope", "fraud")) == HorizonIs(None)
        doubtful = run_key("doubtful")
        store.do(opening(doubtful))
        store.do(Intend(doubtful, 1, attempt()._replace(effect="once")))
        store.do(Close(doubtful, 1, "end", None, "in_doubt"))
        store.clock.now += 1
        first, second = ended(store, 2)
        store.clock.now += DAY
        horizon = store.load(first).closed_at
        assert store.do(prune(limit=1)) == PruneDone(1, 0)
        assert store.do(ReadHorizon("scope", "fraud")) == HorizonIs(horizon)
        store.do(prune())
        assert store.do(ReadHorizon("scope", "fraud")) == HorizonIs(store.load(second).closed_at)
        store.do(Resolve(doubtful, Resolution("0", 1, "ok", "1", "operator")))
        assert store.do(prune()) == PruneDone(1, 0)
        assert store.do(ReadHorizon("scope", "fraud")) == HorizonIs(NOW + 2)
        assert store.do(ReadHorizon("other", "fraud")) == store.do(ReadHorizon("scope", "other")) == HorizonIs(None)

    def test_the_horizon_survives_what_it_was_made_of(self, store: Store, make_ledger: Callable[..., Ledger]) -> None:
        ended(store, 2)
        store.clock.now += DAY
        store.do(prune())
        store.do(prune(tombstones_for=DAY))
        store.do(prune(tombstones_for=DAY))
        assert store.do(ReadHorizon("scope", "fraud")) == HorizonIs(NOW + 1)
        other = make_ledger(clock=store.clock)
        other.open()
        assert other.apply([ReadHorizon("scope", "fraud")]) == [HorizonIs(NOW + 1)]
        if other is not store.ledger:
            other.close()
