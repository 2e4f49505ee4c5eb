"""What each command does to the ledger: the rules that every backend shares.

Each is a function of the records it reads inside one transaction. All of them may be given twice: a worker that
lost the connection after the commit gives its commands again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

from pydantic import TypeAdapter

from beam_agents.ledger.base import LEASE_SECONDS, Transaction, time_of
from beam_agents.ledger.commands import (
    Answer,
    Busy,
    Close,
    Closed,
    Command,
    Conflict,
    CountOld,
    Done,
    Fenced,
    FindClosed,
    FindOrphans,
    FindRuns,
    FoundClosed,
    FoundRuns,
    HeadIs,
    HorizonIs,
    Intend,
    Load,
    Loaded,
    Open,
    Opened,
    Orphans,
    OtherOpen,
    Prune,
    Pruned,
    PruneDone,
    ReadHead,
    ReadHorizon,
    Record,
    Recorded,
    Release,
    Renew,
    Resolve,
    Resolved,
    StateAhead,
    Summarize,
    Summary,
    TooOld,
)
from beam_agents.ledger.records import Effect, Head, Lease, Resolution, Run, RunKey

STALL_SECONDS = 60.0
"""A worker that died after it had held a run for longer was not killed by it, or so slowly that the budget ends it."""

_FOLLOWED = ("error", "not_happened")
"""Outcomes after which another attempt may follow."""


_RESOLUTIONS = TypeAdapter(list[Resolution])


def carry_out(tx: Transaction, command: Command) -> Answer:
    """Carries out one command."""
    match command:
        case Open():
            return _open(tx, command)
        case Intend():
            return _intend(tx, command)
        case Record():
            return _record(tx, command)
        case Close():
            return _close(tx, command)
        case Release():
            return _release(tx, command)
        case Renew():
            now = tx.now()
            tx.put_lease(Lease(command.owner, renewed_at=now, until=now + LEASE_SECONDS))
            return Done(now)
        case ReadHead():
            return HeadIs(tx.head(command.head))
        case Load():
            run = tx.run(command.run)
            return Loaded(run, tx.effects(command.run) if run else ())
        case FindOrphans():
            return Orphans(tuple(tx.open_runs(command.scope, command.agent, tx.now(), command.limit)))
        case FindClosed():
            since = tx.now() - command.within
            return FoundClosed(tuple(tx.closed_runs(command.scope, command.agent, since, command.limit)))
        case FindRuns():
            return FoundRuns(tuple(tx.find_runs(command)))
        case Summarize():
            return Summary(tuple(tx.uses()))
        case Resolve():
            return _resolve(tx, command)
        case Prune():
            # Tombstones first: what is made one now stays for the next time, so that no limit is counted twice.
            now = tx.now()
            forgotten = tx.forget(command.scope, command.agent, now - command.tombstones_for, command.limit)
            return PruneDone(tx.prune(command.scope, command.agent, now - command.closed_for, command.limit), forgotten)
        case CountOld():
            now = tx.now()
            closed_before, forgotten_before = now - command.closed_for, now - command.tombstones_for
            return PruneDone(*tx.count_old(command.scope, command.agent, closed_before, forgotten_before))
        case ReadHorizon():
            return HorizonIs(tx.horizon(command.scope, command.agent))
        case _:
            assert_never(command)


def _open(tx: Transaction, command: Open) -> Answer:
    now = tx.now()
    head = tx.head(command.run.head) or Head(command.run.head)
    if command.session is not None and head.session_version < command.session_version:
        head = replace(head, session_version=command.session_version, session=command.session)
    if head.session_version < command.session_version:
        return StateAhead(head.session_version)
    run = tx.run(command.run)
    if run is not None and run.digest != command.digest:
        return Conflict(run)
    if run is not None and run.end is not None:
        return Pruned(run) if run.tombstone else Closed(run, tx.effects(run.key), head.session_version, head.session)
    if run is None:
        if head.forgotten_to is not None and time_of(command.event_time) <= head.forgotten_to:
            return TooOld(head.forgotten_to)
        if head.open_run is not None:
            other = tx.run(RunKey(*command.run.head, head.open_run))
            if other is not None and other.end is None:
                return OtherOpen(other, _lease_end(tx, other))
        run = Run(
            command.run,
            command.event,
            command.digest,
            opened_at=now,
            epoch=1,
            owner=command.owner,
            epoch_at=now,
            nonce=command.nonce,
            event_time=command.event_time,
        )
        tx.put_head(replace(head, open_run=command.run.run_id))
    elif not (command.nonce and (run.owner, run.nonce) == (command.owner, command.nonce)):
        until = _lease_end(tx, run)
        if run.owner != command.owner and until > now:
            return Busy(run, until)
        lease = tx.lease(run.owner)
        seen = now if run.owner == command.owner else lease.renewed_at if lease else run.epoch_at
        died = run.owner != ""
        held = max(0.0, seen - run.epoch_at) if died else 0.0
        run = replace(
            run,
            epoch=run.epoch + 1,
            owner=command.owner,
            epoch_at=now,
            held=run.held + held,
            stalls=run.stalls + (died and held < STALL_SECONDS and not _only_sleeps(tx.effects(run.key))),
            nonce=command.nonce,
        )
    tx.put_run(run)
    # The opener is alive right now, so its run is not an orphan before its first renewal.
    tx.put_lease(Lease(command.owner, renewed_at=now, until=now + LEASE_SECONDS))
    return Opened(run, tx.effects(run.key), head.session_version, head.session)


def _only_sleeps(effects: Sequence[Effect]) -> bool:
    """Whether the run did nothing but wait, and so cannot be what killed its worker."""
    waiting = [effect.kind == "sleep" for effect in effects if effect.status is None]
    return bool(waiting) and all(waiting)


def _lease_end(tx: Transaction, run: Run) -> float:
    lease = tx.lease(run.owner) if run.owner else None
    return lease.until if lease else 0.0


def _intend(tx: Transaction, command: Intend) -> Answer:
    as_told = _record_first(tx, command.outcomes)
    run = tx.run(command.run)
    if run is None or run.end is not None or run.epoch != command.epoch or not as_told:
        return Fenced(run)
    now = tx.now()
    path, attempt = command.effect.path, command.effect.attempt
    # Of all attempts, also when the intent is there already: an outcome may come late, from a worker believed dead.
    for number in range(attempt - 1, 0, -1):
        before = tx.effect(command.run, path, number)
        if before is not None and before.status not in (None, *_FOLLOWED):
            return Recorded(before, new=False)
    if tx.effect(command.run, path, attempt) is None:
        tx.add_effect(command.run, command.effect._replace(intent_at=now))
    return Done(now)


def _record(tx: Transaction, command: Record) -> Answer:
    effect = tx.effect(command.run, command.path, command.attempt)
    if effect is None:
        run = tx.run(command.run)
        if run is None or run.tombstone:
            return Fenced(run)
        raise LookupError(f"outcome without intent: {command.run} {command.path} attempt {command.attempt}")
    if effect.status is not None:
        return Recorded(effect, new=False)
    effect = effect._replace(status=command.status, value=command.value, outcome_at=tx.now())
    tx.put_outcome(command.run, effect)
    run = tx.run(command.run)
    if run is not None and run.stalls:
        tx.put_run(replace(run, stalls=0))
    return Recorded(effect, new=True)


def _record_first(tx: Transaction, outcomes: Sequence[Record]) -> bool:
    """Records outcomes that come with another command. Says whether all of them stand as they were told now."""
    answers = [(told, _record(tx, told)) for told in outcomes]
    return all(
        isinstance(answer, Recorded) and (answer.effect.status, answer.effect.value) == (told.status, told.value)
        for told, answer in answers
    )


def _close(tx: Transaction, command: Close) -> Answer:
    as_told = _record_first(tx, command.outcomes)
    run = tx.run(command.run)
    if run is None or run.tombstone:
        return Fenced(run)
    head = tx.head(command.run.head) or Head(command.run.head)
    if run.end is None:
        if run.epoch != command.epoch or not as_told:
            return Fenced(run)
        doubtful = command.reason == "in_doubt"
        run = replace(run, end=command.end, closed_at=tx.now(), owner="", reason=command.reason, doubtful=doubtful)
        tx.put_run(run)
        head = replace(head, session_version=head.session_version + 1, session=command.session, open_run=None)
        tx.put_head(head)
    return Closed(run, tx.effects(run.key), head.session_version, head.session)


def _release(tx: Transaction, command: Release) -> Answer:
    run = tx.run(command.run)
    if run is None or run.end is not None or run.epoch != command.epoch:
        return Fenced(run)
    now = tx.now()
    if run.owner:
        tx.put_run(replace(run, owner="", held=run.held + max(0.0, now - run.epoch_at), epoch_at=now))
    return Done(now)


def _resolve(tx: Transaction, command: Resolve) -> Answer:
    run, found = tx.run(command.run), replace(command.resolution, at=tx.now())
    effect = tx.effect(command.run, found.path, found.attempt) if run and not run.tombstone else None
    if run is None or effect is None:
        return Loaded(run)
    noted = _RESOLUTIONS.validate_json(run.resolution or "[]")
    resolution = _RESOLUTIONS.dump_json([*noted, found]).decode()
    if run.end is None:
        until = _lease_end(tx, run)
        if until > tx.now():
            return Busy(run, until)
        if effect.effect != "once" or effect.status is not None:
            return Loaded(run, tx.effects(run.key))
        recorded = _record(tx, Record(run.key, found.path, found.attempt, found.status, found.value))
        tx.put_run(replace(tx.run(run.key) or run, resolution=resolution))
        return recorded
    waiting = {(e.path, e.attempt) for e in tx.effects(run.key) if e.status == "in_doubt" or _left_open(e)}
    waiting -= {(done.path, done.attempt) for done in noted}
    if (found.path, found.attempt) not in waiting:
        return Loaded(run, tx.effects(run.key))
    waiting.remove((found.path, found.attempt))
    run = replace(run, resolution=resolution, doubtful=bool(waiting))
    tx.put_run(run)
    return Resolved(run)


def _left_open(effect: Effect) -> bool:
    return effect.effect == "once" and effect.status is None
