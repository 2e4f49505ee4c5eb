"""What the tests of pruning a Google Cloud Storage ledger share."""

from dataclasses import replace
from pathlib import Path

import pytest
from gcs_kit import names_in

from beam_agents.ledger.base import Ledger
from beam_agents.ledger.commands import Close, Closed, Intend, Opened, Prune, Record
from beam_agents.ledger.records import RunKey
from beam_agents.testing.ledger_store import attempt, opening

DAY = 86_400.0
HOUR = 3_600.0
SWEEP = "beam_agents.ledger.gcs_sweep.KEPT_SECONDS"
FRESH = "beam_agents.ledger.gcs_states.FRESH_SECONDS"
PRUNE = Prune("scope", "fraud", closed_for=DAY, tombstones_for=100 * DAY)


@pytest.fixture
def swept_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time enough has gone by since each checkpoint."""
    monkeypatch.setattr(SWEEP, -10.0)


def work(
    ledger: Ledger, run: RunKey, calls: int = 3, session: str = "session", event_time: int | None = None
) -> Closed:
    """A run from its event to its end."""
    (answer,) = ledger.apply([replace(opening(run), event_time=event_time)])
    assert isinstance(answer, Opened), answer
    for number in range(calls):
        ledger.apply([Intend(run, answer.run.epoch, attempt(str(number)))])
        ledger.apply([Record(run, str(number), 1, "ok", '"answer"')])
    (closed,) = ledger.apply([Close(run, answer.run.epoch, "end", session)])
    assert isinstance(closed, Closed)
    return closed


def kinds_in(folder: Path) -> dict[str, int]:
    """How many objects there are of each kind."""
    names = [name.split("/")[0] for name in names_in(folder)]
    return {kind: names.count(kind) for kind in sorted(set(names))}
