"""The rows of the table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, fields
from itertools import groupby
from typing import Any

from benchmarks.crash.passes import Passed


@dataclass(frozen=True)
class Row:
    """What one fault point, or one scenario of it, has come to."""

    system: str
    fault_point: str
    scenarios: int = 0
    right_states: int = 0
    """Scenarios whose simulators are in the state that the ground truth leaves."""
    duplicate_effects: int = 0
    """Calls that change a state, beyond those of the ground truth."""
    answers_paid_twice: int = 0
    """Model requests beyond the first for each position of the conversation."""
    in_doubt: int = 0
    """Runs that ended without knowing what a call came to, and said so."""
    failed: int = 0
    """Runs that ended without an answer, those in doubt included."""
    crashes: int = 0
    seconds: float = 0.0
    """All passes one after the other, however many were made at once."""

    @classmethod
    def of(cls, system: str, fault_point: str, passed: Passed, verdict: dict[str, Any], seconds: float) -> Row:
        """The row of one scenario."""
        return cls(
            system=system,
            fault_point=fault_point,
            scenarios=1,
            right_states=int(verdict["right"]),
            duplicate_effects=verdict["duplicates"],
            answers_paid_twice=verdict["paid_twice"],
            in_doubt=passed.in_doubt,
            failed=passed.failed,
            crashes=passed.crashes,
            seconds=seconds,
        )

    def __add__(self, other: Row) -> Row:
        counts = (one + two for one, two in zip(astuple(self)[2:], astuple(other)[2:], strict=True))
        return Row(self.system, self.fault_point, *counts)


def summed(rows: Iterable[Row]) -> list[Row]:
    """One row for each system and fault point, from rows that are in that order."""
    sums = []
    for (system, point), group in groupby(rows, key=lambda row: (row.system, row.fault_point)):
        sums.append(sum(group, Row(system, point)))
    return sums


def as_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows as `crash.json` has them."""
    return [asdict(row) | {"seconds": round(row.seconds, 1)} for row in rows]


def as_text(rows: Iterable[Row]) -> str:
    """The rows for eyes."""
    names = [field.name for field in fields(Row)]
    lines = [[name.replace("_", " ") for name in names]]
    lines += [[f"{value:,.0f}" if isinstance(value, (int, float)) else value for value in astuple(row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) if at < 2 else cell.rjust(width) for at, (cell, width) in enumerate(cells))
        for cells in (zip(line, widths, strict=True) for line in lines)
    )
