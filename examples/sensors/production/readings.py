"""What stands in the table of readings, and what an agent says of one."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from pydantic import AwareDatetime, BaseModel, FiniteFloat

from beam_agents import RunResult
from beam_agents.io import Change
from examples.sensors.alerts import Severity

Kind = Literal["temperature", "vibration", "door"]
KINDS: tuple[Kind, ...] = ("temperature", "vibration", "door")


class Reading(BaseModel):
    """A row of the table."""

    id: int
    device: str
    kind: Kind
    value: FiniteFloat
    """Degrees Celsius, mm/s, or 1 for an open door."""
    taken: AwareDatetime
    version: int
    """Counted up when the reading is corrected."""


Readings: TypeAlias = Change[Reading]


class Assessment(BaseModel):
    """An agent's answer."""

    status: Literal["normal", "corrected", "withdrawn", "known", "watch", "alert"]
    severity: Severity | None = None
    """Of an alert."""
    summary: str
    decided_by: str


Result: TypeAlias = RunResult[Readings, Assessment]


class Assessed(Assessment):
    """What stands in the table of assessments."""

    reading: int
    version: int


class Alert(BaseModel):
    """What the webhook is told. The same whenever it is told again."""

    device: str
    kind: Kind
    run_id: str
    reading: int
    taken: AwareDatetime
    severity: Severity
    summary: str


def assessed(result: Result) -> Assessed:
    """The row of a result."""
    row = _row(result)
    return Assessed(**result.output.model_dump(), reading=row.id, version=row.version)


def alert(device: str, result: Result) -> dict[str, Any]:
    """The body of the webhook."""
    row, output = _row(result), result.output
    return Alert(
        device=device,
        kind=row.kind,
        run_id=result.run_id,
        reading=row.id,
        taken=row.taken,
        severity=output.severity or "warning",
        summary=output.summary,
    ).model_dump(mode="json")


def _row(result: Result) -> Reading:
    row = result.event.row
    assert row is not None, "the source has no key for a change without a row"
    return row
