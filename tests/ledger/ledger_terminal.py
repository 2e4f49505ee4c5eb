"""`beam-agents ledger` as tests call it, and what they put into a ledger."""

from __future__ import annotations

import json
import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest

from beam_agents import FailureReason, cli
from beam_agents.engine.end import End
from beam_agents.ledger.commands import Close, Intend, Open, Opened
from beam_agents.ledger.records import Effect, RunKey
from beam_agents.ledger.sqlite import SqliteLedger
from beam_agents.testing.ledger_store import FakeClock

DAY = 86_400.0


@dataclass(frozen=True)
class Terminal:
    """`beam-agents ledger` as one calls it."""

    url: str
    capsys: pytest.CaptureFixture[str]

    def book(self, ago: float = 0.0) -> closing[SqliteLedger]:
        """Opens the ledger to write into it, as if it were so many seconds ago."""
        ledger = SqliteLedger(self.url.removeprefix("sqlite:///"), clock=FakeClock(time.time() - ago))
        ledger.open()
        return closing(ledger)

    def run(self, command: str, *options: str, code: int = 0) -> tuple[str, str]:
        """What it printed, on both streams."""
        self.capsys.readouterr()
        assert cli.main(["ledger", command, self.url, *options]) == code
        printed, said = self.capsys.readouterr()
        assert all(len(line) <= 120 for line in printed.splitlines()) or "--full" in options or "--json" in options
        return printed, said

    def lines(self, command: str, *options: str) -> list[str]:
        """What it printed for eyes."""
        printed, said = self.run(command, *options)
        assert said == ""
        return printed.splitlines()

    def document(self, command: str, *options: str) -> Any:
        """What it printed for programs."""
        return json.loads(self.run(command, *options, "--json")[0])

    def refused(self, code: int, command: str, *options: str) -> str:
        """Why it was refused."""
        printed, said = self.run(command, *options, code=code)
        assert printed == ""
        document = json.loads(self.run(command, *options, "--json", code=code)[0])
        assert said == f"beam-agents ledger {command}: {document['error']}\n"
        return said

    def misused(self, *words: str) -> str:
        """Why the arguments are not understood."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main(["ledger", *words])
        assert left.value.code == 2
        return self.capsys.readouterr().err


def run_key(run_id: str, scope: str = "fraud", key: str = '"card-1"', revision: int = 1) -> RunKey:
    return RunKey(scope, "holding", revision, key, run_id)


def hold(path: str = "0", **more: Any) -> Effect:
    return Effect(path, 1, "tool", "hold_card", "digest", "once", '{"card":"card-1"}', **more)


def begin(ledger: SqliteLedger, run: RunKey, *effects: Effect, owner: str = "worker-1") -> int:
    """Opens a run and intends effects; the epoch."""
    (opened,) = ledger.apply([Open(run, '{"amount":1}', "digest", owner)])
    assert isinstance(opened, Opened)
    ledger.apply([Intend(run, opened.run.epoch, effect) for effect in effects])
    return opened.run.epoch


def end(ledger: SqliteLedger, run: RunKey, reason: FailureReason | None = None, message: str = "") -> None:
    """Ends a run that was begun."""
    kind, output = ("failure", None) if reason else ("answer", "held")
    record = End(kind=kind, output=output, reason=reason, message=message)
    ledger.apply([Close(run, 1, record.model_dump_json(), None, reason)])
