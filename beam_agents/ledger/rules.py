"""What each command does to the ledger: the rules that every backend shares.

Each is a function of the records it reads inside one transaction. All of them may be given twice: a worker that
lost the connection after the commit gives its commands again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from beam_agents.ledger.base import (
    LEASE_SECONDS,
    Answer,
    Busy,
    Close,
    Closed,
    Command,
    Conflict,
    Done,
    Fenced,
    FindClosed,
    FindOrphans,
    FoundClosed,
    Head,
    HeadIs,
    Intend,
    Lease,
    Load,
    Loaded,
    Open,
    Opened,
    Orphans,
    OtherOpen,
    ReadHead,
    Record,
    Recorded,
    Release,
    Renew,
    Run,
    RunKey,
    StateAhead,
    Transaction,
)

_FOLLOWED = ("error", "not_happened")
"""Outcomes after which another attempt may follow."""


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
        return Closed(run, tx.effects(run.key), head.session_version, head.session)
    if run is None:
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
        run = replace(
            run,
            epoch=run.epoch + 1,
            owner=command.owner,
            epoch_at=now,
            held=run.held + (max(0.0, seen - run.epoch_at) if run.owner else 0.0),
            stalls=run.stalls + (1 if run.owner else 0),
            nonce=command.nonce,
        )
    tx.put_run(run)
    # The opener is alive right now, so its run is not an orphan before its first renewal.
    tx.put_lease(Lease(command.owner, renewed_at=now, until=now + LEASE_SECONDS))
    return Opened(run, tx.effects(run.key), head.session_version, head.session)


def _lease_end(tx: Transaction, run: Run) -> float:
    lease = tx.lease(run.owner) if run.owner else None
    return lease.until if lease else 0.0


def _intend(tx: Transaction, command: Intend) -> Answer:
    run = tx.run(command.run)
    if run is None or run.end is not None or run.epoch != command.epoch:
        return Fenced(run)
    now = tx.now()
    path, attempt = command.effect.path, command.effect.attempt
    if tx.effect(command.run, path, attempt) is None:
        before = tx.effect(command.run, path, attempt - 1) if attempt > 1 else None
        if before is not None and before.status not in (None, *_FOLLOWED):
            return Recorded(before, new=False)
        tx.add_effect(command.run, replace(command.effect, intent_at=now))
    return Done(now)


def _record(tx: Transaction, command: Record) -> Answer:
    effect = tx.effect(command.run, command.path, command.attempt)
    if effect is None:
        raise LookupError(f"outcome without intent: {command.run} {command.path} attempt {command.attempt}")
    if effect.status is not None:
        return Recorded(effect, new=False)
    effect = replace(effect, status=command.status, value=command.value, outcome_at=tx.now())
    tx.put_outcome(command.run, effect)
    run = tx.run(command.run)
    if run is not None and run.stalls:
        tx.put_run(replace(run, stalls=0))
    return Recorded(effect, new=True)


def _close(tx: Transaction, command: Close) -> Answer:
    run = tx.run(command.run)
    if run is None:
        return Fenced(None)
    head = tx.head(command.run.head) or Head(command.run.head)
    if run.end is None:
        if run.epoch != command.epoch:
            return Fenced(run)
        run = replace(run, end=command.end, closed_at=tx.now(), owner="")
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
