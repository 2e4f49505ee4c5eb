"""What the kill tests' zeros are worth: the check finds each kind of damage that is done to a good load."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.flink.load_check import Verdicts, check, query
from tests.flink.load_job import OUTCOMES, SCOPE, Event, Line, load_agent
from tests.flink.load_server import Answer, Call, ask, serving

FED = {"event-1": "key", "event-2": "key"}


@dataclass
class Load:
    """Two events, carried out without Beam: what the sinks would have seen, and the outside world."""

    folder: Path
    address: str
    seen: list[Line]

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.db"

    def ask(self, *, kind: str, name: str, step: str | None = None, key: str = "another") -> Answer:
        """A request for the first event."""

        call = Call(kind=kind, name=name, run="event-1", step=step or name, key=key, pid=1)
        return asyncio.run(ask(self.address, call))

    def asked_before(self, kind: str) -> str:
        """The step of a request that the outside world has answered."""
        [[step], *_] = query(
            self.folder / "outside.db", "SELECT step FROM calls WHERE kind = ? AND run = 'event-1'", kind
        )
        return str(step)

    def changed(self, **changes: object) -> Line:
        """The first line with another content."""
        return self.seen[0].model_copy(update=changes)

    def emit_plainly(self, line: Line) -> None:
        with (self.folder / OUTCOMES).open("a") as file:
            file.write(f"{line.model_dump_json()}\n")

    def check(self) -> Verdicts:
        return check(FED, {"key": self.seen}, self.folder, self.ledger)


@pytest.fixture
def load(tmp_path):
    with serving(tmp_path, fastest=0.0, slowest=0.0) as address:
        agent = load_agent(address, recorded=True)
        seen = []
        for run, key in FED.items():
            ledger = f"sqlite:///{tmp_path / 'ledger.db'}"
            result = agent.run_sync(Event(id=run, key=key), key=key, event_id=run, ledger=ledger, scope=SCOPE)
            outcome = result.output.model_dump_json()
            seen.append(Line(key=key, run=run, kind="result", outcome=outcome, at=time.time(), pid=os.getpid()))
        made = Load(tmp_path, address, seen)
        for line in seen:
            made.emit_plainly(line)
        yield made


def test_a_load_that_went_well_has_no_findings(load):
    found = load.check()

    assert found.wrong() == {}
    assert (found.results, found.answers_paid, found.lines_again, found.reconciled) == (2, 8, 0, 0)


def test_lines_that_the_plain_sink_sees_again_after_a_restore_are_allowed(load):
    load.emit_plainly(load.changed(at=0.0, pid=2))

    assert load.check().lines_again == 1
    assert load.check().wrong() == {}


DAMAGE: dict[str, Callable[[Load], object]] = {
    "lost": lambda load: load.seen.pop(),
    "twice": lambda load: load.seen.append(load.seen[0]),
    "duplicates": lambda load: load.seen.append(load.changed(kind="duplicate", outcome="")),
    "strangers": lambda load: load.seen.append(load.changed(run="event-9")),
    "contradictory": lambda load: load.emit_plainly(load.changed(kind="deadline", outcome="too late")),
    "in_doubt": lambda load: load.seen.__setitem__(0, load.changed(kind="in_doubt", outcome="nobody knows")),
    "failures: deadline": lambda load: load.seen.__setitem__(0, load.changed(kind="deadline", outcome="too late")),
    "state_wrong": lambda load: load.seen.__setitem__(0, load.changed(outcome=load.seen[1].outcome)),
    "once_twice": lambda load: load.ask(kind="once", name="charge"),
    "once_missing": lambda load: load.seen.__setitem__(0, load.changed(outcome=_other_charge(load.seen[0]))),
    "idempotent_twice": lambda load: load.ask(kind="idempotent", name="notify"),
    "paid_again": lambda load: load.ask(kind="model", name="outside", step=load.asked_before("model")),
    "calls_again": lambda load: load.ask(kind="pure", name="look_up"),
}


@pytest.mark.parametrize("finding", DAMAGE)
def test_damage_is_found(load, finding):
    DAMAGE[finding](load)

    assert load.check().wrong().get(finding) == 1


def _other_charge(line: Line) -> str:
    return json.dumps(json.loads(line.outcome) | {"charge": 99})


def test_an_idempotent_call_with_the_same_key_is_applied_once_and_a_cancelled_charge_is_turned_away(load):
    first = load.ask(kind="idempotent", name="notify", key="one")
    assert load.ask(kind="idempotent", name="notify", key="one") == first

    assert load.ask(kind="reconcile", name="charge", key="two").receipt is None
    assert load.ask(kind="once", name="charge", key="two").cancelled
