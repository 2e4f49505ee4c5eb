"""The alert log: a SQLite file that is not the agent's, as a paging service would be."""

from __future__ import annotations

import sqlite3
import threading
from datetime import datetime
from typing import Literal

from pydantic import BaseModel

Severity = Literal["warning", "critical"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS alerts (
    request TEXT PRIMARY KEY,
    device TEXT,  -- nothing in a row without device: the request was called off before it arrived
    raised_for TEXT,
    severity TEXT,
    reason TEXT
)
"""


class Alert(BaseModel):
    device: str
    raised_for: datetime
    """The end of the window that it is about."""
    severity: Severity
    reason: str


class AlertLog:
    """A connection to the log, fit for several threads; the file is made if it is not there.

    A request that was called off is turned away however late it arrives, and one that stands cannot be made twice.
    """

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute(_SCHEMA)

    def close(self) -> None:
        self._database.close()

    def raise_alert(self, request: str, alert: Alert) -> Alert:
        """Writes an alert.

        Raises:
            sqlite3.IntegrityError: This request was made, or called off, before.
        """
        row = (request, alert.device, alert.raised_for.isoformat(), alert.severity, alert.reason)
        with self._lock:
            self._database.execute("INSERT INTO alerts VALUES (?, ?, ?, ?, ?)", row)
        return alert

    def find_or_call_off(self, request: str) -> Alert | None:
        """The alert of a request; if there is none, the request is called off and there never will be."""
        with self._lock:
            self._database.execute("INSERT OR IGNORE INTO alerts (request) VALUES (?)", (request,))
        return next(iter(self._alerts("request = ?", request)), None)

    def newest(self, device: str, before: datetime) -> Alert | None:
        """A device's last alert for a window that ended before `before`."""
        return next(iter(self._alerts("device = ? AND raised_for < ?", device, before.isoformat())), None)

    def all(self) -> list[Alert]:
        """Every alert, the newest first."""
        return self._alerts("1")

    def _alerts(self, condition: str, *values: str) -> list[Alert]:
        query = (
            "SELECT device, raised_for, severity, reason FROM alerts "
            f"WHERE device IS NOT NULL AND {condition} ORDER BY raised_for DESC, device"
        )
        with self._lock:
            rows = self._database.execute(query, values).fetchall()
        return [Alert(**dict(zip(("device", "raised_for", "severity", "reason"), row, strict=True))) for row in rows]
