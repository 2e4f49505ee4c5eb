"""The table, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from benchmarks.comparison.trial import Outcome

COLUMNS: dict[str, Callable[[Outcome], object]] = {
    "system": lambda outcome: outcome.system,
    "kills": lambda outcome: outcome.kills,
    "lost": lambda outcome: outcome.lost,
    "in failures": lambda outcome: outcome.failed,
    "replied twice": lambda outcome: outcome.replied_twice,
    "effect asked twice": lambda outcome: outcome.asked_twice,
    "effect made twice": lambda outcome: outcome.effects_twice,
    "effect missing": lambda outcome: outcome.effects_missing,
    "look-ups again": lambda outcome: outcome.lookups,
    "model answers paid again": lambda outcome: outcome.answers_paid_again,
    "seconds": lambda outcome: f"{outcome.seconds:.0f}",
    "seconds from kill to reply": lambda outcome: f"{statistics.median(outcome.to_reply or [0]):.1f}",
    "lines": lambda outcome: outcome.lines,
}


def table(outcomes: Sequence[Outcome]) -> str:
    """A row for each system."""
    rows = [list(COLUMNS), ["---", *("--:" for _ in list(COLUMNS)[1:])]]
    rows += [[str(value(outcome)) for value in COLUMNS.values()] for outcome in outcomes]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
