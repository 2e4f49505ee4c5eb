"""What became of the readings, counted from the tables of the plant and of those on duty."""

from __future__ import annotations

from pydantic import BaseModel

from examples.production.folder import Running
from examples.sensors.production.duty import received
from examples.sensors.production.plant import counts


class Account(BaseModel):
    """The count."""

    readings: int
    """Rows of the table."""
    corrections: int
    """How often one was changed."""
    open: int
    """Readings of which nothing has come yet as they are now."""
    statuses: dict[str, int]
    """Assessments by what was decided; a reading that was corrected has several."""
    failures: int
    """Idempotency keys of failures that came."""
    alerts: int
    """Idempotency keys of alerts that came."""
    alerts_missing: int
    """Alerts among the assessments that have not come, yet or ever."""
    alerts_twice: int
    """Keys beyond the first one for an alert."""
    posted_again: int
    """Posts with a key that had come before."""
    rolling: int
    """Rows of windows."""
    undelivered: int


def account(running: Running) -> Account:
    """Reads it all."""
    found = counts(running.database("plant"))
    came = received(running.database("duty"))
    told = [one.body["run_id"] for one in came if one.path == "/alerts"]
    failures = len(came) - len(told)
    return Account(
        readings=found.readings,
        corrections=found.corrections,
        open=found.open - failures,
        statuses=found.statuses,
        failures=failures,
        alerts=len(told),
        alerts_missing=len(found.alerts - set(told)),
        alerts_twice=len(told) - len(set(told)),
        posted_again=sum(one.times - 1 for one in came),
        rolling=found.rolling,
        undelivered=found.undelivered,
    )
