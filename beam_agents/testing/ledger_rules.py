"""The part of the ledgers' conformance suite that has a test for each rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from beam_agents.ledger.base import LEASE_SECONDS, Ledger
from beam_agents.ledger.commands import (
    Busy,
    Close,
    Closed,
    Conflict,
    Done,
    Fenced,
    Intend,
    Load,
    Loaded,
    Opened,
    OtherOpen,
    Record,
    Recorded,
    Release,
    Renew,
    StateAhead,
)
from beam_agents.ledger.records import Effect, Head, Run
from beam_agents.ledger.rules import STALL_SECONDS
from beam_agents.testing.ledger_store import NOW, LedgerTests, Store, attempt, opening, run_key


class LedgerRules(LedgerTests):
    """What each command has to do."""

    # ---- open ----

    def test_a_run_is_opened(self, store: Store) -> None:
        opened = store.expect(Opened, opening(run_key()))
        assert opened == Opened(
            Run(run_key(), '{"amount":1}', "digest", NOW, epoch=1, owner="worker-1", epoch_at=NOW), (), 0, None
        )
        assert store.load(run_key()) == opened.run

    def test_opening_again_by_the_same_worker_raises_the_epoch(self, store: Store) -> None:
        store.do(opening(run_key()))
        store.clock.now += 1
        run = store.expect(Opened, opening(run_key())).run
        assert (run.epoch, run.opened_at, run.epoch_at, run.owner) == (2, NOW, NOW + 1, "worker-1")

    def test_a_run_is_busy_while_its_worker_lives(self, store: Store) -> None:
        store.do(opening(run_key()))
        busy = store.expect(Busy, opening(run_key(), "worker-2"))
        assert busy.until == NOW + LEASE_SECONDS
        store.clock.now += LEASE_SECONDS - 0.5
        assert store.expect(Done, Renew("worker-1")).at == store.clock.now
        store.clock.now += LEASE_SECONDS - 0.5
        assert store.expect(Busy, opening(run_key(), "worker-2")).run.epoch == 1

    def test_a_run_is_taken_over_when_the_lease_has_run_out(self, store: Store) -> None:
        store.do(opening(run_key()))
        store.do(Intend(run_key(), 1, attempt()))
        store.clock.now += LEASE_SECONDS + 1
        taken = store.expect(Opened, opening(run_key(), "worker-2"))
        assert (taken.run.epoch, taken.run.owner, taken.run.opened_at) == (2, "worker-2", NOW)
        assert [effect.path for effect in taken.effects] == ["0"]
        assert store.expect(Busy, opening(run_key())).run == taken.run

    def test_only_one_run_of_a_key_is_open(self, store: Store) -> None:
        first = store.expect(Opened, opening(run_key("a"))).run
        other = store.expect(OtherOpen, opening(run_key("b")))
        assert other.run == first
        assert other.until == NOW + LEASE_SECONDS
        assert store.expect(Loaded, Load(run_key("b"))).run is None
        store.do(Release(run_key("a"), 1))
        assert store.expect(OtherOpen, opening(run_key("b"))).until == 0
        store.do(opening(run_key("a")))
        store.do(Close(run_key("a"), 2, "end", None))
        assert store.expect(Opened, opening(run_key("b"))).session_version == 1

    def test_keys_scopes_agents_and_revisions_do_not_touch(self, store: Store) -> None:
        base = run_key()
        others = [
            base._replace(key='"card-2"'),
            base._replace(scope="other"),
            base._replace(agent="other"),
            base._replace(revision=2),
        ]
        for run in (base, *others):
            store.expect(Opened, opening(run))
        store.do(Intend(base, 1, attempt()))
        store.do(Close(base, 1, "end", "session"))
        for run in others:
            loaded = store.expect(Loaded, Load(run))
            assert loaded.run is not None
            assert (loaded.run.end, loaded.effects) == (None, ())
            assert store.expect(Opened, opening(run)).session_version == 0

    def test_an_id_with_another_event_is_a_conflict(self, store: Store) -> None:
        run = store.expect(Opened, opening(run_key())).run
        assert store.expect(Conflict, opening(run_key(), digest="other")).run == run
        store.do(Close(run_key(), 1, "end", None))
        assert store.expect(Conflict, opening(run_key(), digest="other")).run.end == "end"

    def test_a_closed_run_is_not_opened(self, store: Store) -> None:
        store.do(opening(run_key()))
        store.do(Intend(run_key(), 1, attempt()))
        store.do(Close(run_key(), 1, "end", "session"))
        closed = store.expect(Closed, opening(run_key(), "worker-2"))
        assert (closed.run.end, closed.session_version, closed.session) == ("end", 1, "session")
        assert [effect.path for effect in closed.effects] == ["0"]

    def test_an_opening_that_is_given_again_changes_nothing(self, store: Store) -> None:
        command = replace(opening(run_key()), nonce="first")
        opened = store.expect(Opened, command)
        assert opened.run.nonce == "first"
        store.do(Intend(run_key(), 1, attempt()))
        for _ in range(2):
            store.clock.now += LEASE_SECONDS + 1
            again = store.expect(Opened, command)
            assert (again.run, [effect.path for effect in again.effects]) == (opened.run, ["0"])
            assert store.load(run_key()) == opened.run
        assert store.expect(Busy, replace(command, owner="worker-2", nonce="other")).until > store.clock.now

    def test_an_opening_of_its_own_counts(self, store: Store) -> None:
        store.do(replace(opening(run_key()), nonce="first"))
        run = store.expect(Opened, replace(opening(run_key()), nonce="second")).run
        assert (run.epoch, run.stalls, run.nonce) == (2, 1, "second")
        run = store.expect(Opened, opening(run_key())).run
        assert (run.epoch, run.stalls, run.nonce) == (3, 2, "")
        assert store.load(run_key()) == run

    def test_an_opening_given_again_too_late_is_like_any_other(self, store: Store) -> None:
        first = replace(opening(run_key()), nonce="first")
        store.do(first)
        store.clock.now += LEASE_SECONDS + 1
        taken = store.expect(Opened, replace(opening(run_key(), "worker-2"), nonce="second")).run
        assert (taken.epoch, taken.nonce) == (2, "second")
        assert store.expect(Busy, first).run == taken
        store.do(Release(run_key(), 2))
        again = store.expect(Opened, replace(opening(run_key(), "worker-2"), nonce="second")).run
        assert (again.epoch, again.owner, again.stalls) == (3, "worker-2", 1)
        end = store.expect(Closed, Close(run_key(), 3, "end", None))
        assert store.do(replace(opening(run_key(), "worker-2"), nonce="second")) == end

    # ---- sessions ----

    def test_state_ahead_of_the_ledger_is_found(self, store: Store) -> None:
        assert store.do(replace(opening(run_key()), session_version=3)) == StateAhead(0)
        assert store.expect(Loaded, Load(run_key())).run is None
        store.complete(run_key())
        assert store.do(replace(opening(run_key("b")), session_version=2)) == StateAhead(1)

    def test_a_fresh_head_begins_with_the_session_it_is_given(self, store: Store) -> None:
        opened = store.expect(Opened, replace(opening(run_key()), session_version=3, session="before"))
        assert (opened.session_version, opened.session) == (3, "before")
        again = store.expect(Opened, opening(run_key()))
        assert (again.session_version, again.session) == (3, "before")
        closed = store.expect(Closed, Close(run_key(), 2, "end", "after"))
        assert (closed.session_version, closed.session) == (4, "after")

    def test_a_head_that_is_there_keeps_its_session(self, store: Store) -> None:
        store.complete(run_key("a"), "first")
        store.complete(run_key("b"), "second")
        opened = store.expect(Opened, replace(opening(run_key("c")), session_version=1, session="first"))
        assert (opened.session_version, opened.session) == (2, "second")

    def test_a_head_is_read(self, store: Store) -> None:
        key = run_key().head
        assert store.head(key) is None
        store.do(opening(run_key("a")))
        assert store.head(key) == Head(key, 0, None, "a")
        store.do(Close(run_key("a"), 1, "end", "session"))
        store.do(opening(run_key("b")))
        assert store.head(key) == Head(key, 1, "session", "b")
        store.do(Close(run_key("b"), 1, "end", None))
        assert store.head(key) == Head(key, 2, None, None)
        assert store.head(key._replace(revision=2)) is None

    # ---- intents and outcomes ----

    def test_an_intent_is_recorded_once(self, store: Store) -> None:
        store.do(opening(run_key()))
        assert store.do(Intend(run_key(), 1, attempt())) == Done(NOW)
        store.clock.now += 1
        store.expect(Done, Intend(run_key(), 1, attempt()._replace(name="changed")))
        assert store.expect(Loaded, Load(run_key())).effects == (attempt()._replace(intent_at=NOW),)

    def test_no_attempt_follows_an_outcome_that_came_late(self, store: Store) -> None:
        store.do(opening(run_key()))
        store.do(Intend(run_key(), 1, attempt()))
        late = store.expect(Recorded, Record(run_key(), "0", 1, "ok", '"late"')).effect
        second = Intend(run_key(), 1, attempt()._replace(attempt=2))
        assert store.do(second) == Recorded(late, new=False)
        assert store.expect(Loaded, Load(run_key())).effects == (late,)

    @pytest.mark.parametrize("status", [None, "error", "not_happened"])
    def test_an_attempt_follows_one_that_failed_or_was_left(self, store: Store, status: str | None) -> None:
        store.do(opening(run_key()))
        store.do(Intend(run_key(), 1, attempt()))
        if status:
            store.do(Record(run_key(), "0", 1, status, '"why"'))
        store.expect(Done, Intend(run_key(), 1, attempt()._replace(attempt=2)))
        assert [effect.attempt for effect in store.expect(Loaded, Load(run_key())).effects] == [1, 2]

    def test_an_intent_needs_the_newest_epoch_of_an_open_run(self, store: Store) -> None:
        assert store.do(Intend(run_key(), 1, attempt())) == Fenced(None)
        store.do(opening(run_key()))
        store.do(opening(run_key()))
        assert store.do(Intend(run_key(), 1, attempt())) == Fenced(store.load(run_key()))
        store.do(Close(run_key(), 2, "end", None))
        assert store.do(Intend(run_key(), 2, attempt())) == Fenced(store.load(run_key()))
        assert store.expect(Loaded, Load(run_key())).effects == ()

    def test_an_outcome_is_recorded_once(self, store: Store) -> None:
        store.do(opening(run_key()))
        store.do(Intend(run_key(), 1, attempt()))
        store.clock.now += 1
        first = store.expect(Recorded, Record(run_key(), "0", 1, "ok", '"first"'))
        assert first.new
        assert first.effect == attempt()._replace(intent_at=NOW, status="ok", value='"first"', outcome_at=NOW + 1)
        store.clock.now += 1
        second = store.expect(Recorded, Record(run_key(), "0", 1, "failed", '"second"'))
        assert second == Recorded(first.effect, new=False)
        assert store.expect(Loaded, Load(run_key())).effects == (first.effect,)

    def test_late_outcomes_are_recorded(self, store: Store) -> None:
        store.do(opening(run_key()))
        for path in ("0", "1"):
            store.do(Intend(run_key(), 1, attempt(path)))
        store.do(opening(run_key()))
        assert store.expect(Recorded, Record(run_key(), "0", 1, "ok", "1")).new
        store.do(Close(run_key(), 2, "end", None))
        assert store.expect(Recorded, Record(run_key(), "1", 1, "ok", "2")).new
        assert [effect.value for effect in store.expect(Closed, opening(run_key())).effects] == ["1", "2"]
        assert store.load(run_key()).end == "end"

    def test_an_outcome_without_intent_is_an_error(self, store: Store) -> None:
        store.do(opening(run_key()))
        store.do(Intend(run_key(), 1, attempt()))
        for path, number in (("0", 2), ("1", 1)):
            with pytest.raises(LookupError):
                store.do(Record(run_key(), path, number, "ok", "1"))
        assert store.expect(Recorded, Record(run_key(), "0", 1, "ok", "1")).new

    def test_an_outcome_without_a_run_is_refused(self, store: Store) -> None:
        assert store.do(Record(run_key(), "0", 1, "ok", "1")) == Fenced(None)

    @pytest.mark.parametrize("ahead", ["intent", "close"])
    def test_outcomes_that_come_with_a_command_are_recorded_first(self, store: Store, ahead: str) -> None:
        store.do(opening(run_key()))
        store.do(opening(run_key()))
        for path in ("0", "1"):
            store.do(Intend(run_key(), 2, attempt(path)))
        store.clock.now += 1
        told = (Record(run_key(), "0", 1, "ok", '"é"'), Record(run_key(), "1", 1, "failed", '"no"'))
        for _ in range(2):  # as a worker does whose connection broke
            if ahead == "intent":
                next_one = attempt("2")._replace(delivered=(("1", 1), ("0", 1)))
                assert store.do(Intend(run_key(), 2, next_one, told)) == Done(NOW + 1)
            else:
                assert store.expect(Closed, Close(run_key(), 2, "end", None, outcomes=told)).run.end == "end"
        effects = store.expect(Loaded, Load(run_key())).effects
        assert [(e.path, e.status, e.value, e.outcome_at) for e in effects[:2]] == [
            ("0", "ok", '"é"', NOW + 1),
            ("1", "failed", '"no"', NOW + 1),
        ]
        assert [e.delivered for e in effects[2:]] == ([(("1", 1), ("0", 1))] if ahead == "intent" else [])
        assert store.load(run_key()).stalls == 0

    @pytest.mark.parametrize("ahead", ["intent", "close"])
    def test_a_worker_that_is_fenced_has_its_outcomes_recorded(self, store: Store, ahead: str) -> None:
        store.do(opening(run_key()))
        store.do(Intend(run_key(), 1, attempt()))
        store.do(opening(run_key()))
        told = (Record(run_key(), "0", 1, "ok", "1"),)
        intent, close = Intend(run_key(), 1, attempt("1"), told), Close(run_key(), 1, "end", None, None, told)
        assert store.do(intent if ahead == "intent" else close) == Fenced(store.load(run_key()))
        (effect,) = store.expect(Loaded, Load(run_key())).effects
        assert (effect.status, effect.value) == ("ok", "1")
        assert store.load(run_key()).end is None

    @pytest.mark.parametrize("told", [("ok", "2"), ("failed", "1")])
    def test_what_was_decided_on_an_outcome_that_stands_otherwise_is_refused(
        self, store: Store, told: tuple[str, str]
    ) -> None:
        store.do(opening(run_key()))
        for path in ("0", "1"):
            store.do(Intend(run_key(), 1, attempt(path)))
        stands = store.expect(Recorded, Record(run_key(), "0", 1, "ok", "1")).effect
        outcomes = (Record(run_key(), "0", 1, *told), Record(run_key(), "1", 1, "ok", "3"))
        assert store.do(Intend(run_key(), 1, attempt("2"), outcomes)) == Fenced(store.load(run_key()))
        assert store.do(Close(run_key(), 1, "end", None, None, outcomes)) == Fenced(store.load(run_key()))
        first, second = store.expect(Loaded, Load(run_key())).effects
        assert (first, second.value) == (stands, "3")
        assert store.load(run_key()).end is None
        store.do(Close(run_key(), 1, "end", None))
        assert store.expect(Closed, Close(run_key(), 1, "other", None, None, outcomes)).run.end == "end"

    def test_an_outcome_without_intent_takes_what_comes_behind_it_with_it(self, store: Store) -> None:
        store.do(opening(run_key()))
        outcomes = (Record(run_key(), "0", 1, "ok", "1"),)
        for command in (
            Intend(run_key(), 1, attempt("1"), outcomes),
            Close(run_key(), 1, "end", None, None, outcomes),
        ):
            with pytest.raises(LookupError):
                store.do(command)
        assert store.expect(Loaded, Load(run_key())).effects == ()
        assert store.load(run_key()).end is None

    def test_a_journal_keeps_the_order_of_its_intents_and_every_field(self, store: Store) -> None:
        effects = [
            Effect("2", 1, "model", "openai:x", "d1", "pure", None),
            Effect("10", 1, "tool", "hold 🂡", "d2", "once", '{"a":"\\u0000"}', delivered=(("2", 1),)),
            Effect("10", 2, "tool", "", "d3", "idempotent", "{}", delivered=(("2", 1), ("10", 1))),
            Effect("1.0.1", 1, "sleep", "sleep", "d4", "pure", "5", due=NOW + 5.25),
        ]
        store.do(opening(run_key()))
        for effect in effects:
            store.do(Intend(run_key(), 1, effect))
        store.do(Record(run_key(), "2", 1, "ok", "é\n" * 1_000))
        expected = [effect._replace(intent_at=NOW) for effect in effects]
        expected[0] = expected[0]._replace(status="ok", value="é\n" * 1_000, outcome_at=NOW)
        assert list(store.expect(Loaded, Load(run_key())).effects) == expected
        assert list(store.expect(Opened, opening(run_key())).effects) == expected

    def test_times_are_kept_to_the_microsecond(self, store: Store) -> None:
        store.clock.now = NOW + 0.123457
        store.do(opening(run_key()))
        store.clock.now = NOW + 1.234568
        store.do(Intend(run_key(), 1, attempt()._replace(due=NOW + 5.345679)))
        store.do(Record(run_key(), "0", 1, "ok", "1"))
        store.do(Release(run_key(), 1))
        (effect,) = store.expect(Loaded, Load(run_key())).effects
        assert (effect.intent_at, effect.due, effect.outcome_at) == (NOW + 1.234568, NOW + 5.345679, NOW + 1.234568)
        run = store.load(run_key())
        assert (run.opened_at, run.epoch_at, round(run.held, 6)) == (NOW + 0.123457, NOW + 1.234568, 1.111111)

    # ---- close and release ----

    def test_a_run_is_closed_once(self, store: Store) -> None:
        store.do(opening(run_key()))
        store.clock.now += 1
        first = store.expect(Closed, Close(run_key(), 1, "first", "session"))
        assert (first.run.end, first.run.owner, first.run.closed_at) == ("first", "", NOW + 1)
        assert (first.session_version, first.session) == (1, "session")
        for epoch in (1, 7):
            again = store.expect(Closed, Close(run_key(), epoch, "second", "other"))
            assert again == first
        assert store.expect(Loaded, Load(run_key())).run == first.run

    def test_a_close_says_why_there_is_no_answer(self, store: Store) -> None:
        for number, (reason, doubtful) in enumerate([(None, False), ("deadline", False), ("in_doubt", True)]):
            run = run_key(f"run-{number}")
            store.do(opening(run))
            closed = store.expect(Closed, Close(run, 1, "end", None, reason)).run
            assert (closed.reason, closed.doubtful, closed.resolution) == (reason, doubtful, None)
            assert store.load(run) == closed

    def test_a_close_needs_the_newest_epoch(self, store: Store) -> None:
        assert store.do(Close(run_key(), 1, "end", None)) == Fenced(None)
        store.do(opening(run_key()))
        store.do(opening(run_key()))
        assert store.do(Close(run_key(), 1, "end", None)) == Fenced(store.load(run_key()))
        assert store.load(run_key()).end is None

    def test_two_live_workers_fence_each_other(self, store: Store, make_ledger: Callable[..., Ledger]) -> None:
        second = Store(make_ledger(clock=store.clock), store.clock)
        second.ledger.open()
        store.do(opening(run_key(), "worker-1"))
        store.clock.now += LEASE_SECONDS + 1
        assert second.expect(Opened, opening(run_key(), "worker-2")).run.epoch == 2
        store.expect(Fenced, Intend(run_key(), 1, attempt()))
        store.expect(Fenced, Close(run_key(), 1, "end", None))
        store.expect(Fenced, Release(run_key(), 1))
        second.expect(Done, Intend(run_key(), 2, attempt()))
        store.clock.now += LEASE_SECONDS + 1
        assert store.expect(Opened, opening(run_key(), "worker-1")).run.epoch == 3
        second.expect(Fenced, Close(run_key(), 2, "end", None))
        assert store.expect(Closed, Close(run_key(), 3, "mine", None)).run.end == "mine"
        assert second.expect(Closed, Close(run_key(), 2, "end", None)).run.end == "mine"
        if second.ledger is not store.ledger:
            second.ledger.close()

    def test_a_released_run_is_free_and_not_stalled(self, store: Store) -> None:
        assert store.do(Release(run_key(), 1)) == Fenced(None)
        store.do(opening(run_key()))
        store.clock.now += 2
        store.expect(Done, Release(run_key(), 1))
        store.clock.now += 5
        store.expect(Done, Release(run_key(), 1))
        assert (store.load(run_key()).owner, store.load(run_key()).held) == ("", 2)
        taken = store.expect(Opened, opening(run_key(), "worker-2")).run
        assert (taken.epoch, taken.stalls, taken.held) == (2, 0, 2)
        store.expect(Fenced, Release(run_key(), 1))
        store.do(Close(run_key(), 2, "end", None))
        store.expect(Fenced, Release(run_key(), 2))

    def test_stalls_are_counted_until_there_is_a_new_outcome(self, store: Store) -> None:
        for stalls in range(3):
            assert store.expect(Opened, opening(run_key())).run.stalls == stalls
        store.do(Intend(run_key(), 3, attempt()))
        assert store.load(run_key()).stalls == 2
        store.do(Record(run_key(), "0", 1, "ok", "1"))
        assert store.load(run_key()).stalls == 0
        assert store.expect(Opened, opening(run_key())).run.stalls == 1
        store.do(Record(run_key(), "0", 1, "ok", "1"))
        assert store.load(run_key()).stalls == 1

    @pytest.mark.parametrize(("held", "stalls"), [(STALL_SECONDS - 1, 1), (STALL_SECONDS, 0)])
    def test_a_worker_that_died_after_a_long_time_was_not_killed_by_the_run(
        self, store: Store, held: float, stalls: int
    ) -> None:
        store.do(opening(run_key()))
        store.clock.now += held
        store.do(Renew("worker-1"))
        store.clock.now += LEASE_SECONDS + 1
        run = store.expect(Opened, opening(run_key(), "worker-2")).run
        assert (run.stalls, run.held) == (stalls, held)

    @pytest.mark.parametrize(
        ("kinds", "stalls"), [(("sleep",), 0), (("sleep", "sleep"), 0), (("sleep", "tool"), 1), (("model",), 1)]
    )
    def test_a_worker_that_died_while_its_run_slept_was_not_killed_by_it(
        self, store: Store, kinds: tuple[str, ...], stalls: int
    ) -> None:
        store.do(opening(run_key()))
        for number, kind in enumerate(kinds):
            store.do(Intend(run_key(), 1, attempt(str(number))._replace(kind=kind)))
        store.clock.now += LEASE_SECONDS + 1
        assert store.expect(Opened, opening(run_key(), "worker-2")).run.stalls == stalls

    def test_a_worker_that_died_after_the_sleep_may_have_been_killed(self, store: Store) -> None:
        store.do(opening(run_key()))
        store.do(Intend(run_key(), 1, attempt()._replace(kind="sleep")))
        store.do(Record(run_key(), "0", 1, "ok", "null"))
        store.clock.now += LEASE_SECONDS + 1
        assert store.expect(Opened, opening(run_key(), "worker-2")).run.stalls == 1

    def test_the_time_that_workers_held_a_run_is_added_up(self, store: Store) -> None:
        store.do(opening(run_key()))
        store.clock.now += 3
        store.do(Renew("worker-1"))
        store.clock.now += 100
        taken = store.expect(Opened, opening(run_key(), "worker-2")).run
        assert taken.held == 3
        store.clock.now += 0.5
        assert store.expect(Opened, opening(run_key(), "worker-2")).run.held == 3.5
        store.clock.now += 1.5
        store.do(Release(run_key(), 3))
        assert store.load(run_key()).held == 5
        store.clock.now += 1_000_000
        store.do(Renew("worker-3"))
        assert store.expect(Opened, opening(run_key(), "worker-3")).run.held == 5

    def test_a_lease_that_an_open_run_needs_is_kept(self, store: Store) -> None:
        store.do(opening(run_key()))
        store.clock.now += 3
        store.do(Renew("worker-1"))
        store.clock.now += 10_000_000
        for number in range(3):
            store.do(Renew(f"worker-1{number}"))
        assert store.expect(Opened, opening(run_key(), "worker-2")).run.held == 3
