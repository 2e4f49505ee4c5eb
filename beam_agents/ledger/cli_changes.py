"""What an operator may change: say what a call came to that nobody knows of, and prune."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Literal

from pydantic import JsonValue

from beam_agents.engine.outcome import Outcome
from beam_agents.ledger.cli_desk import Desk, Misused, Refused
from beam_agents.ledger.cli_find import MOST, one_run, uses_of
from beam_agents.ledger.cli_text import duration, moment, table, utc, visible
from beam_agents.ledger.cli_views import CallView, ResolutionView, View, json_text, parsed, resolutions_of
from beam_agents.ledger.commands import (
    Busy,
    CountOld,
    FindRuns,
    FoundRuns,
    Loaded,
    Prune,
    PruneDone,
    Recorded,
    Resolve,
    Resolved,
)
from beam_agents.ledger.records import Effect, Resolution, Run, UseSummary

SHORTEST_AGE = 3600.0
"""Seconds: the outcome of a run closed more lately may not be emitted yet."""

_PRUNED_AT_ONCE = 200
_LONGEST_PAUSE_SECONDS = 1.0


class ResolvedView(View):
    """What became of what a person said about a call."""

    scope: str
    agent: str
    revision: int
    key: JsonValue
    run_id: str
    path: str
    attempt: int
    name: str
    """The tool's."""
    done: Literal["recorded", "noted"]
    """`recorded`: it is the call's outcome, with which the open run goes on. `noted`: the run has ended, and what was
    emitted stands."""
    status: str
    value: JsonValue
    by: str
    closed_at: datetime | None
    still_in_doubt: bool
    """Whether another call of the ended run is in doubt."""

    def lines(self) -> Iterator[str]:
        """For eyes."""
        call = visible(f"{self.name} at {self.path}, attempt {self.attempt}: {self.status} {json_text(self.value)}")
        if self.done == "recorded":
            yield f"recorded as the outcome of {call}"
            yield (
                f"run {visible(self.run_id)} goes on with it as soon as a worker has it, by itself if the job runs; "
                "the call is not made again"
            )
            return
        ended = f"ended at {moment(self.closed_at)}" if self.closed_at else "has ended"
        yield f"noted by {visible(self.by)} for {call}"
        yield f"run {visible(self.run_id)} {ended}: what was emitted for it stands, nothing is emitted or called now"
        yield "another call of it is still in doubt" if self.still_in_doubt else "nothing in it is in doubt any more"


def resolve(desk: Desk, wanted: FindRuns, path: str, attempt: int | None, outcome: Outcome, by: str) -> ResolvedView:
    """Records or notes what a call came to.

    Args:
        desk: The ledger.
        wanted: The run.
        path: The call's place in the run.
        attempt: Of the call; `None` for the last one.
        outcome: What a person found out.
        by: Who says so.

    Raises:
        Refused: The run is driven by a live worker, there is no such call, or its outcome is known.
        Misused: Several runs are meant.
    """
    run, effects = one_run(desk, wanted)
    last = max((effect.attempt for effect in effects if effect.path == path), default=1)
    said = Resolution(path, last if attempt is None else attempt, outcome.status, outcome.value, by)
    effect = next((e for e in effects if (e.path, e.attempt) == (said.path, said.attempt)), None)
    if effect is None:
        raise _no_such_call(run, said, effects)
    answer = desk.ask(Resolve(run.key, said))
    match answer:
        case Busy(until=until):
            raise Refused(
                f"run {run.key.run_id!r} is driven by a live worker, whose lease lasts until {moment(utc(until))} UTC "
                "and is renewed while it lives: it finds out by itself, or ends the run in doubt; resolve it then",
                until=utc(until).isoformat(),
            )
        case Recorded() if (answer.effect.status, answer.effect.value) == (said.status, said.value):
            return _resolved(run, effect, said, "recorded")
        case Recorded():
            raise _known(run, answer.effect)
        case Resolved():
            return _resolved(answer.run, effect, said, "noted")
        case Loaded():
            return _not_taken(answer, run, effect, said)
        case _:
            raise TypeError(f"{desk.ledger!r} answered {answer!r} to a Resolve")


def _not_taken(answer: Loaded, before: Run, effect: Effect, said: Resolution) -> ResolvedView:
    """What stands in the record instead; the same as was said if the first answer to this was lost.

    Raises:
        Refused: It is something else.
    """
    run = answer.run
    if run is None or run.tombstone:
        raise Refused(f"run {before.key.run_id!r} is gone: it was pruned just now")
    now = next((e for e in answer.effects if (e.path, e.attempt) == (said.path, said.attempt)), effect)
    call = f"{now.name} at {now.path}, attempt {now.attempt}, of run {run.key.run_id!r}"
    for noted in resolutions_of(run):
        if (noted.path, noted.attempt) == (said.path, said.attempt):
            if (noted.status, noted.value, noted.by) == (said.status, said.value, said.by):
                return _resolved(run, now, said, "noted" if now.status in (None, "in_doubt") else "recorded")
            view = ResolutionView.of(noted)
            raise Refused(f"{call}, was resolved already: {view.text()}", resolution=view.model_dump(mode="json"))
    if now.status is not None:
        if run.end is None and (now.status, now.value) == (said.status, said.value):
            return _resolved(run, now, said, "recorded")
        raise _known(run, now)
    raise Refused(
        f"{call}, is {now.effect}: "
        + ("the worker that goes on with the run makes it again" if run.end is None else "nothing of it is in doubt")
        + ", and nobody has to say what it came to"
    )


def _resolved(run: Run, effect: Effect, said: Resolution, done: Literal["recorded", "noted"]) -> ResolvedView:
    key = run.key
    return ResolvedView(
        scope=key.scope,
        agent=key.agent,
        revision=key.revision,
        key=parsed(key.key),
        run_id=key.run_id,
        path=said.path,
        attempt=said.attempt,
        name=effect.name,
        done=done,
        status=said.status,
        value=parsed(said.value),
        by=said.by,
        closed_at=None if run.closed_at is None else utc(run.closed_at),
        still_in_doubt=run.doubtful,
    )


def _no_such_call(run: Run, said: Resolution, effects: Sequence[Effect]) -> Refused:
    tools = [effect for effect in effects if effect.kind == "tool"]
    there = "; ".join(f"{e.name} at {e.path}, attempt {e.attempt}, {e.status or 'open'}" for e in tools) or "none"
    return Refused(
        f"run {run.key.run_id!r} has no call at path {said.path!r}, attempt {said.attempt}; its tool calls: {there}",
        calls=[CallView.of(effect).model_dump(mode="json") for effect in tools],
    )


def _known(run: Run, effect: Effect) -> Refused:
    later = "; the run is about to end in doubt with it: resolve it then" if effect.status == "in_doubt" else ""
    at = "" if effect.outcome_at is None else f", recorded at {moment(utc(effect.outcome_at))} UTC"
    return Refused(
        f"{effect.name} at {effect.path}, attempt {effect.attempt}, of run {run.key.run_id!r} has an outcome: "
        f"{effect.status} {effect.value}{at}{later}",
        call=CallView.of(effect).model_dump(mode="json"),
    )


class PrunedUse(View):
    """What was dropped of one use of an agent, or would be."""

    scope: str
    agent: str
    runs: int
    """Made tombstones."""
    tombstones: int
    """Dropped; those of runs that are pruned now are among them if they are old enough."""
    doubtful_kept: int
    """Old enough, and kept: a person has to resolve them first."""


class PrunedView(View):
    """What was dropped, or would be."""

    ledger: str
    dry_run: bool
    older_than: float
    """Seconds since the close."""
    tombstones_older_than: float
    uses: list[PrunedUse]

    def lines(self) -> Iterator[str]:
        """For eyes."""
        if not self.uses:
            yield "it has no runs"
            return
        would = "WOULD BE " if self.dry_run else ""
        yield from table(
            ("SCOPE", "AGENT", f"{would}PRUNED", f"TOMBSTONES {would}DROPPED", "IN DOUBT, KEPT"),
            [
                (
                    use.scope,
                    use.agent,
                    str(use.runs),
                    str(use.tombstones),
                    str(use.doubtful_kept),
                )
                for use in self.uses
            ],
        )
        yield (
            f"runs closed more than {duration(self.older_than)} ago, tombstones of runs closed more than "
            f"{duration(self.tombstones_older_than)} ago"
        )
        if self.dry_run:
            yield "nothing was changed"
        elif any(use.runs for use in self.uses):
            yield "savepoints and checkpoints that are older than this can no longer be used with the ledger"


def prune(
    desk: Desk, scope: str | None, agent: str | None, *, closed_for: float, tombstones_for: float, dry_run: bool
) -> PrunedView:
    """Drops what is old, use by use, until there is no more.

    Args:
        desk: The ledger.
        scope: Only of this one.
        agent: Only of this one.
        closed_for: Seconds since the close after which a run is made a tombstone.
        tombstones_for: Seconds since the close after which its tombstone is dropped.
        dry_run: Only counts.

    Raises:
        Refused: There are no runs of this scope and agent.
        Misused: An age is too low.
    """
    if closed_for < SHORTEST_AGE:
        raise Misused(
            f"--older-than: {duration(closed_for)} is less than {duration(SHORTEST_AGE)}: what a run closed so lately "
            "came to may not be emitted yet, and no savepoint older than this could be used any more"
        )
    if tombstones_for < closed_for:
        raise Misused(
            f"--tombstones-older-than: {duration(tombstones_for)} is less than --older-than, {duration(closed_for)}: "
            "tombstones keep old events from being handled again, so they stay longer"
        )
    count = _foreseen if dry_run else _pruned
    uses = [count(desk, use, closed_for, tombstones_for) for use in uses_of(desk, scope, agent)]
    return PrunedView(
        ledger=desk.ledger.url,
        dry_run=dry_run,
        older_than=closed_for,
        tombstones_older_than=tombstones_for,
        uses=uses,
    )


def _pruned(desk: Desk, use: UseSummary, closed_for: float, tombstones_for: float) -> PrunedUse:
    runs = tombstones = 0
    command = Prune(use.scope, use.agent, closed_for, tombstones_for, _PRUNED_AT_ONCE)
    while True:
        began = time.monotonic()
        done = desk.expect(PruneDone, command)
        runs, tombstones = runs + done.runs, tombstones + done.tombstones
        if not done.runs and not done.tombstones:
            break
        # The job's own records come in between.
        time.sleep(min(_LONGEST_PAUSE_SECONDS, time.monotonic() - began))
    kept = _doubtful_kept(desk, use, closed_for)
    return PrunedUse(scope=use.scope, agent=use.agent, runs=runs, tombstones=tombstones, doubtful_kept=kept)


def _foreseen(desk: Desk, use: UseSummary, closed_for: float, tombstones_for: float) -> PrunedUse:
    old = desk.expect(PruneDone, CountOld(use.scope, use.agent, closed_for, tombstones_for))
    kept = _doubtful_kept(desk, use, closed_for)
    return PrunedUse(scope=use.scope, agent=use.agent, runs=old.runs, tombstones=old.tombstones, doubtful_kept=kept)


def _doubtful_kept(desk: Desk, use: UseSummary, closed_for: float) -> int:
    before = time.time() - closed_for
    query = FindRuns(use.scope, use.agent, which="doubtful", limit=MOST)
    return sum(run.closed_at is not None and run.closed_at < before for run in desk.expect(FoundRuns, query).runs)
