"""What is remembered of a device: its last 100 readings, and which of them were unusual when they came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

from pydantic import AwareDatetime, BaseModel

from examples.sensors.production.readings import Assessment, Readings
from examples.sensors.state import LIMIT, usual

KEPT = 100
_LEAST = 20
"""Readings without which nothing is called unusual."""

Score = Callable[[Sequence[float], float], float]
"""How unusual a value is beside usual ones: beyond `LIMIT` it is."""


class Taken(BaseModel):
    """A reading as it is remembered."""

    id: int
    taken: AwareDatetime
    value: float
    unusual: bool


class DeviceState(BaseModel):
    readings: list[Taken] = []
    """The last ones, the newest at the end; corrected ones as they are now."""
    score: float = 0.0
    """Of the reading that came last."""
    unusual: int = 0
    """How many of the newest readings were unusual, one after the other."""


def remember(score: Score, state: DeviceState, change: Readings) -> DeviceState:
    """The state with one change of the table more."""
    row = change.row
    if row is None:
        return state
    others = [one for one in state.readings if one.id != row.id]
    if change.operation == "delete":
        return _state(others, 0.0)
    how = round(score([one.value for one in others if not one.unusual], row.value), 2)
    now = Taken(id=row.id, taken=row.taken, value=row.value, unusual=abs(how) > LIMIT)
    if change.operation == "update":
        return _state([now if one.id == row.id else one for one in state.readings], how)
    return _state([*others, now][-KEPT:], how)


def quiet(patience: int, state: DeviceState, change: Readings) -> Assessment | None:
    """Decides without a model, unless this is the `patience`-th unusual reading in a row, or twice that, and so on."""
    rules = {
        "delete": Assessment(status="withdrawn", summary="the reading is gone", decided_by="rule:withdrawn"),
        "update": Assessment(status="corrected", summary=f"score {state.score}", decided_by="rule:corrected"),
        "snapshot": Assessment(status="normal", summary="from before the start", decided_by="rule:history"),
    }
    if change.operation in rules:
        return rules[change.operation]
    if state.unusual and state.unusual % patience == 0:
        return None
    return Assessment(status="normal", summary=f"score {state.score}", decided_by="rule:quiet")


def out_of_the_usual(values: Sequence[float], value: float) -> float:
    """The robust z-score of `examples.sensors.state`."""
    return usual(list(values)).score(value) if len(values) >= _LEAST else 0.0


def above_the_usual(values: Sequence[float], value: float) -> float:
    """As `out_of_the_usual`, where less is no trouble."""
    return max(0.0, out_of_the_usual(values, value))


def is_open(values: Sequence[float], value: float) -> float:
    """For doors."""
    return 2 * LIMIT if value >= 0.5 else 0.0


def _state(readings: list[Taken], score: float) -> DeviceState:
    return DeviceState(
        readings=readings,
        score=score,
        unusual=sum(1 for _ in takewhile(lambda one: one.unusual, reversed(readings))),
    )
