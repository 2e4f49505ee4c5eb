"""Some thousand simulated schedules; and engines that are broken on purpose, which the simulator must notice."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any, get_args

import pytest

from beam_agents.engine import attempts, host, live
from beam_agents.engine.ahead import Ahead
from beam_agents.engine.end import Refused
from beam_agents.engine.journal import Journal
from beam_agents.engine.outcome import Status
from beam_agents.events import FailureReason
from beam_agents.history import History
from beam_agents.ledger import rules
from beam_agents.ledger.base import Transaction
from beam_agents.ledger.commands import Answer, Done, Intend, Open, Opened, Record, Recorded
from beam_agents.ledger.memory import MemoryLedger
from beam_agents.transforms.cells import Cells
from beam_agents.transforms.emission import Emitter
from tests.simulator.__main__ import shrink, simulate
from tests.simulator.schedule import schedule_of, smaller
from tests.transforms.key_state import Timers

SCHEDULES = 1_200
CHUNKS = 4


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_schedules(chunk: int) -> None:
    failed = {}
    for seed in range(chunk, SCHEDULES, CHUNKS):
        if violations := simulate(schedule_of(seed)).violations:
            failed[seed] = violations
    assert not failed, "replay with: python -m tests.simulator --seed SEED --shrink --verbose"


def test_a_seed_gives_the_same_schedule_and_the_same_events() -> None:
    for seed in (3, 11, 38):
        assert schedule_of(seed) == schedule_of(seed)
        first, second = simulate(schedule_of(seed), verbose=True), simulate(schedule_of(seed), verbose=True)
        assert first.trace == second.trace
        assert first.trace


# ---- engines that are broken on purpose ----


def _fenced_may_intend(patch: pytest.MonkeyPatch) -> None:
    def intend(tx: Transaction, command: Intend) -> Answer:
        if tx.effect(command.run, command.effect.path, command.effect.attempt) is None:
            tx.add_effect(command.run, command.effect._replace(intent_at=tx.now()))
        return Done(tx.now())

    patch.setattr(rules, "_intend", intend)


def _record_overwrites(patch: pytest.MonkeyPatch) -> None:
    def record(tx: Transaction, command: Record) -> Answer:
        effect = tx.effect(command.run, command.path, command.attempt)
        assert effect is not None
        effect = effect._replace(status=command.status, value=command.value, outcome_at=tx.now())
        tx.put_outcome(command.run, effect)
        return Recorded(effect, new=True)

    patch.setattr(rules, "_record", record)


def _fenced_may_close(patch: pytest.MonkeyPatch) -> None:
    close = rules._close

    def closes(tx: Transaction, command: Any) -> Answer:
        run = tx.run(command.run)
        return close(tx, replace(command, epoch=run.epoch) if run else command)

    patch.setattr(rules, "_close", closes)


def _leases_do_not_count(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rules, "_lease_end", lambda tx, run: 0.0)


def _head_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    opens = rules._open

    def stale(tx: Transaction, command: Open) -> Answer:
        answer = opens(tx, command)
        return replace(answer, session=None) if isinstance(answer, Opened) else answer

    patch.setattr(rules, "_open", stale)


def _two_runs_of_a_key(patch: pytest.MonkeyPatch) -> None:
    opens = rules._open

    def opened(tx: Transaction, command: Open) -> Answer:
        head = tx.head(command.run.head)
        if head is not None and head.open_run != command.run.run_id:
            tx.put_head(replace(head, open_run=None))
        return opens(tx, command)

    patch.setattr(rules, "_open", opened)


def _closed_ids_are_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Cells, "emitted_before", lambda self, event: None)


def _once_is_repeated(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attempts.Attempts, "_left_open", lambda self, path: None)


def _outcomes_are_made_again(patch: pytest.MonkeyPatch) -> None:
    settled = Journal.settled

    def forgetful(self: Journal, path: str, retries: int) -> Any:
        effect = settled(self, path, retries)
        return None if effect is not None and effect.value == '"look_up 0"' and effect.attempt == 1 else effect

    patch.setattr(Journal, "settled", forgetful)
    patch.setattr(rules, "_FOLLOWED", get_args(Status))  # the ledger would refuse it too


def _outcomes_stay_behind(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ahead, "take", lambda self: ())


def _intents_stay_fresh(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attempts, "INTENT_FRESH_SECONDS", math.inf)


def _doubt_is_hidden(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(live.LiveRun, "_in_doubt", lambda self, ending: ending)


def _time_does_not_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(live.LiveRun, "_time_is_over", lambda self: None)


def _nobody_looks_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(host.Host, "_ring", lambda self, key, run: None)
    patch.setattr(Timers, "set", lambda self, due, dynamic_timer_tag="": None)


def _transcripts_have_holes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(live, "repair", tuple)
    patch.setattr(History, "trim", lambda self, messages: tuple(messages))


def _emits_another_end(patch: pytest.MonkeyPatch) -> None:
    emits = Emitter.outcome

    def other(self: Any, key: Any, envelope: Any, outcome: Any) -> Any:
        for tag, (named, value), placed in emits(self, key, envelope, outcome):
            changed = tag == "results" and outcome.replayed
            yield tag, (named, value.model_copy(update={"output": "made anew"}) if changed else value), placed

    patch.setattr(Emitter, "outcome", other)


def _session_is_not_written(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Cells, "_put_session", lambda self, session: None)


def _forgetting_leaves_no_mark(patch: pytest.MonkeyPatch) -> None:
    forget = MemoryLedger.forget

    def unmarked(self: MemoryLedger, *arguments: Any) -> int:
        heads = dict(self._heads)
        forgotten = forget(self, *arguments)
        self._heads.update(heads)
        return forgotten

    patch.setattr(MemoryLedger, "forget", unmarked)


def _pruning_leaves_no_tombstone(patch: pytest.MonkeyPatch) -> None:
    prune = MemoryLedger.prune

    def dropped(self: MemoryLedger, *arguments: Any) -> int:
        pruned = prune(self, *arguments)
        self._runs = {key: run for key, run in self._runs.items() if not run.tombstone}
        return pruned

    patch.setattr(MemoryLedger, "prune", dropped)


def _open_runs_are_pruned(patch: pytest.MonkeyPatch) -> None:
    prune = MemoryLedger.prune

    def pruned(self: MemoryLedger, scope: str, agent: str, before: float, limit: int) -> int:
        for key in list(self._open):
            self.put_run(replace(self._runs[key], end="", closed_at=before))
        return prune(self, scope, agent, before, limit)

    patch.setattr(MemoryLedger, "prune", pruned)


def _pruned_runs_are_failures(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(live, "pruned", lambda run: Refused(FailureReason.TOO_OLD, "pruned"))


BROKEN: list[tuple[Callable[[pytest.MonkeyPatch], None], str]] = [
    (_fenced_may_intend, "intent of a fenced worker was taken"),
    (_record_overwrites, "an outcome was overwritten"),
    (_fenced_may_close, "was closed by a fenced worker"),
    (_leases_do_not_count, "was taken from a worker that is alive"),
    (_head_is_forgotten, "a session update was lost"),
    (_two_runs_of_a_key, "a session update was lost"),
    (_closed_ids_are_ignored, "instead of as a duplicate"),
    (_once_is_repeated, "a once call is repeated blind"),
    (_outcomes_are_made_again, "an outcome stands"),
    (_outcomes_stay_behind, "behind an outcome that is not recorded"),
    (_doubt_is_hidden, "is in doubt"),
    (_time_does_not_end, "after the budget of time"),
    (_nobody_looks_again, "no rest"),
    (_transcripts_have_holes, "a tool call without a result in the transcript"),
    (_emits_another_end, "the record says"),
    (_session_is_not_written, "is not the head's"),
    (_forgetting_leaves_no_mark, "was opened after its end"),
    (_pruning_leaves_no_tombstone, "was opened after its end"),
    (_open_runs_are_pruned, "was pruned, but is open"),
    (_pruned_runs_are_failures, "instead of"),
]


@pytest.mark.parametrize(("breaks", "seen"), BROKEN, ids=[breaks.__name__.strip("_") for breaks, _ in BROKEN])
def test_a_broken_engine_is_noticed(
    breaks: Callable[[pytest.MonkeyPatch], None], seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch)
    said: list[str] = []
    for seed in range(1_000):
        said += simulate(schedule_of(seed)).violations
        if any(seen in violation for violation in said):
            return
    pytest.fail(f"nothing like {seen!r} was noticed, but: {said[:5]}")


def test_a_call_on_an_intent_that_is_not_fresh_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a worker that stands still between an intent and its answer: about one in three hundred schedules."""
    _intents_stay_fresh(monkeypatch)
    for seed in range(540, 2_000):
        schedule = schedule_of(seed)
        if any(action.kind == "freeze" and action.lasts > 4.5 for action in schedule.actions):
            said = simulate(replace(schedule, ledger_slow=0.5)).violations
            if any("a recorded answer is paid for again" in violation for violation in said):
                return
    pytest.fail("it was not noticed")


def test_a_failing_schedule_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    _closed_ids_are_ignored(monkeypatch)
    whole = next(schedule for schedule in map(schedule_of, range(1_000)) if simulate(schedule).violations)
    small = shrink(whole)
    assert simulate(small).violations
    assert len(small.events) == 1
    assert len(small.actions) <= 2
    assert all(simulate(one_less).violations == [] for one_less in islice(smaller(small), 2))
