"""How good the alerts were, where it is known when the machine failed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel

from examples.sensors.alerts import Alert


class Failure(BaseModel):
    """A time in which an alert is right."""

    device: str | None = None
    """`None` for whatever device."""
    start: datetime
    end: datetime

    def holds(self, alert: Alert) -> bool:
        return self.device in (None, alert.device) and self.start <= alert.raised_for <= self.end


def read_failures(path: str | Path) -> list[Failure]:
    """Reads a JSON list of [start, end] pairs, in UTC if they do not say otherwise."""
    pairs = json.loads(Path(path).read_text(encoding="utf-8"))
    return [Failure(start=_utc(start), end=_utc(end)) for start, end in pairs]


def report(failures: Sequence[Failure], alerts: Sequence[Alert], watched: timedelta) -> list[str]:
    """A line for each failure, and the false alarms in a week.

    Args:
        failures: The labelled failures. Labels of this kind lie around the moment of the failure, so "early" is the
            time from the first alert to the middle of the label.
        alerts: All alerts.
        watched: From the first window to the last.
    """
    lines = []
    for failure in failures:
        within = sorted(alert.raised_for for alert in alerts if failure.holds(alert))
        name = f"{failure.device or 'failure'} {failure.start:%Y-%m-%d %H:%M} to {failure.end:%Y-%m-%d %H:%M}"
        if within:
            early = (failure.start + (failure.end - failure.start) / 2 - within[0]) / timedelta(hours=1)
            when = f"{abs(early):.1f} h {'before' if early >= 0 else 'after'} the middle"
            lines.append(f"{name}: alerted {within[0]:%Y-%m-%d %H:%M}, {when}")
        else:
            lines.append(f"{name}: missed")
    found = sum(any(map(failure.holds, alerts)) for failure in failures)
    false = [alert for alert in alerts if not any(failure.holds(alert) for failure in failures)]
    weeks = watched / timedelta(weeks=1)
    lines.append(f"{found} of {len(failures)} failures alerted, {len(false)} false alarms in {weeks:.1f} weeks")
    lines[-1] += f" ({len(false) / weeks:.2f} a week)" if weeks else ""
    return lines


def _utc(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
