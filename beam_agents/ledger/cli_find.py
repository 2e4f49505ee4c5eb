"""Finds what an operator names: uses of agents, runs, one run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from beam_agents.ledger.cli_desk import Desk, Misused, Refused
from beam_agents.ledger.cli_text import keys_of, utc
from beam_agents.ledger.cli_views import LedgerView, RunPage, RunsView, RunView, UseView, page
from beam_agents.ledger.commands import FindOrphans, FindRuns, FoundRuns, Load, Loaded, Orphans, Summarize, Summary
from beam_agents.ledger.records import Effect, Run, RunKey, UseSummary

MOST = 2**31 - 1
"""A limit for answers of which all are wanted."""

_CANDIDATES = 20


def runs_of(desk: Desk, wanted: FindRuns) -> list[Run]:
    """The runs that are meant, those opened last first.

    Args:
        desk: The ledger.
        wanted: What was asked for, its `key` as it was typed.
    """
    keys = [None] if wanted.key is None else keys_of(wanted.key)
    found = [run for key in keys for run in desk.expect(FoundRuns, replace(wanted, key=key)).runs]
    return sorted(found, key=lambda run: -run.opened_at)[: wanted.limit]


def ledger_view(desk: Desk) -> LedgerView:
    """All uses of agents in a ledger."""
    uses = []
    for use in desk.expect(Summary, Summarize()).uses:
        orphans = desk.expect(Orphans, FindOrphans(use.scope, use.agent, MOST)).runs if use.open else ()
        uses.append(UseView.of(use, len(orphans)))
    return LedgerView(
        ledger=desk.ledger.url,
        identity=desk.ledger.identity,
        schema_version=desk.ledger.schema_version,
        uses=uses,
    )


def uses_of(desk: Desk, scope: str | None, agent: str | None) -> Sequence[UseSummary]:
    """The uses that are meant.

    Raises:
        Refused: There are none.
    """
    uses = desk.expect(Summary, Summarize()).uses
    meant = [use for use in uses if scope in (None, use.scope) and agent in (None, use.agent)]
    if not meant and (scope, agent) != (None, None):
        there = "; ".join(f"scope {use.scope!r}, agent {use.agent!r}" for use in uses) or "no runs"
        asked = ", ".join(f"{name} {value!r}" for name, value in (("scope", scope), ("agent", agent)) if value)
        raise Refused(f"{desk.ledger.url} has no runs of {asked}; it has: {there}")
    return meant


def runs_view(desk: Desk, wanted: FindRuns) -> RunsView:
    """The runs that are meant, with what the open ones wait for."""
    now, runs = time.time(), runs_of(desk, wanted)
    return RunsView(ledger=desk.ledger.url, at=utc(now), runs=_views(desk, runs, now))


def run_page(desk: Desk, wanted: FindRuns) -> RunPage:
    """All about the run that is meant.

    Raises:
        Refused: There is none.
        Misused: There are several.
    """
    now, (run, effects) = time.time(), one_run(desk, wanted)
    orphaned = run.key in _orphans(desk, [run])
    return page(desk.ledger.url, RunView.of(run, effects, now, orphaned=orphaned), run, effects, utc(now))


def one_run(desk: Desk, wanted: FindRuns) -> tuple[Run, Sequence[Effect]]:
    """The run that is meant, with its journal.

    Raises:
        Refused: There is none.
        Misused: There are several.
    """
    found = runs_of(desk, replace(wanted, limit=_CANDIDATES))
    if len(found) > 1:
        names = [run.key for run in found]
        listed = "".join(
            f"\n  --scope {name.scope} --agent {name.agent} --key '{name.key}' --revision {name.revision}"
            for name in names
        )
        raise Misused(
            f"several runs have the id {wanted.run_id!r}; say which:{listed}",
            candidates=[name._asdict() for name in names],
        )
    loaded = desk.expect(Loaded, Load(found[0].key)) if found else Loaded(None)
    if loaded.run is None or loaded.run.tombstone:
        raise Refused(
            f"{desk.ledger.url} has no run {wanted.run_id!r}{_narrowed(wanted)}: it was never opened, or it was pruned"
        )
    return loaded.run, loaded.effects


def _narrowed(wanted: FindRuns) -> str:
    options = (("scope", wanted.scope), ("agent", wanted.agent), ("key", wanted.key), ("revision", wanted.revision))
    return "".join(f", {name} {value!r}" for name, value in options if value is not None)


def _views(desk: Desk, runs: Sequence[Run], now: float) -> list[RunView]:
    orphans = _orphans(desk, runs)
    views = []
    for run in runs:
        effects = desk.expect(Loaded, Load(run.key)).effects if run.end is None else ()
        views.append(RunView.of(run, effects, now, orphaned=run.key in orphans))
    return views


def _orphans(desk: Desk, runs: Sequence[Run]) -> set[RunKey]:
    """The open runs of the same agents that nobody drives."""
    uses = {(run.key.scope, run.key.agent) for run in runs if run.end is None}
    return {
        run.key for scope, agent in sorted(uses) for run in desk.expect(Orphans, FindOrphans(scope, agent, MOST)).runs
    }
