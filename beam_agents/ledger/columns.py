"""Records as the SQL ledgers have them in columns. Times and durations are whole microseconds there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from beam_agents.ledger.records import Effect, Run, RunKey

MICROSECONDS = 1_000_000
"""In a second."""


def microseconds(seconds: float | None) -> int | None:
    """As times and durations are stored."""
    return None if seconds is None else round(seconds * MICROSECONDS)


def seconds(stored: int | None) -> float | None:
    """The opposite of `microseconds`."""
    return None if stored is None else stored / MICROSECONDS


def run_of(key: Sequence[Any], columns: Sequence[Any]) -> Run:
    """A run of its key and its other columns, from `event` on."""
    event, digest, opened_at, event_time, epoch, owner, epoch_at, held, stalls, end, closed_at, nonce = columns[:12]
    reason, doubtful, resolution = columns[12:]
    return Run(
        RunKey(*key),
        event,
        digest,
        opened_at / MICROSECONDS,
        epoch,
        owner,
        epoch_at / MICROSECONDS,
        held / MICROSECONDS,
        stalls,
        end,
        seconds(closed_at),
        nonce,
        event_time,
        reason,
        bool(doubtful),
        resolution,
    )


def effect_of(columns: Sequence[Any]) -> Effect:
    """An effect of its columns, without the run's."""
    path, attempt, kind, name, digest, effect, arguments, intent_at, delivered, due, status, value, outcome_at = columns
    return Effect(
        path,
        attempt,
        kind,
        name,
        digest,
        effect,
        arguments,
        intent_at / MICROSECONDS,
        tuple((path, attempt) for path, attempt in json.loads(delivered)) if delivered else (),
        seconds(due),
        status,
        value,
        seconds(outcome_at),
    )
