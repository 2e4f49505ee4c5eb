"""`beam-agents ledger`: what an operator sees of a ledger, and prunes of it."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from ledger_terminal import DAY, Terminal, begin, end, hold, run_key

from beam_agents import FailureReason
from beam_agents.ledger.base import LedgerUnavailable
from beam_agents.ledger.cli_desk import Desk, Refused
from beam_agents.ledger.cli_text import duration, keys_of, shorten, table, visible
from beam_agents.ledger.commands import Answer, Close, Command, Record, Summarize, Summary
from beam_agents.ledger.memory import MemoryLedger
from beam_agents.ledger.postgres import PostgresLedger
from beam_agents.ledger.records import Effect
from beam_agents.ledger.sqlite import SqliteLedger


@pytest.fixture
def terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(f"sqlite:///{tmp_path / 'runs.db'}", capsys)


def test_runs_are_chosen_and_the_newest_come_first(terminal: Terminal) -> None:
    with terminal.book(3 * DAY) as ledger:
        begin(ledger, run_key("answered"))
        end(ledger, run_key("answered"))
    with terminal.book(2 * DAY) as ledger:
        begin(ledger, run_key("failed", "other", key="7"))
        end(ledger, run_key("failed", "other", key="7"), FailureReason.DEADLINE, "the budget\nis used up")
    with terminal.book(1 * DAY) as ledger:
        begin(ledger, run_key("asleep"), Effect("0", 1, "sleep", "sleep", "d", "pure", None, due=time.time() + DAY))

    def ids(*options: str) -> list[str]:
        return [run["run_id"] for run in terminal.document("runs", *options)["runs"]]

    assert ids() == ["asleep", "failed", "answered"]
    assert ids("--limit", "2") == ["asleep", "failed"]
    assert ids("--open") == ["asleep"]
    assert ids("--failed") == ["failed"]
    assert ids("--scope", "fraud") == ["asleep", "answered"]
    assert ids("--agent", "none") == []
    assert ids("--key", "card-1") == ["asleep", "answered"]
    assert ids("--key", "7") == ["failed"]
    assert ids("--run", "answered") == ["answered"]
    assert ids("--revision", "2") == []
    assert ids("--revision", "1", "--limit", "1") == ["asleep"]

    lines = terminal.lines("runs")
    assert "left at sleep until " in lines[2]
    assert lines[4].strip() == "deadline after 0.0 s: the budget\\nis used up"
    assert lines[6].strip() == "answer after 0.0 s"
    failed = terminal.document("runs", "--failed")["runs"][0]
    assert (failed["key"], failed["reason"], failed["driven"], failed["waits_for"]) == (7, "deadline", None, [])
    assert "'0' is no whole number above 0" in terminal.misused("runs", terminal.url, "--limit", "0")


def test_an_ambiguous_id_lists_the_candidates(terminal: Terminal) -> None:
    with terminal.book(60) as ledger:
        begin(ledger, run_key("r"))
        begin(ledger, run_key("r", revision=2))
        begin(ledger, run_key("r", key='"card-2"'))
    why = terminal.refused(2, "run", "--run", "r")
    assert "several runs have the id 'r'" in why
    assert why.count("--scope fraud --agent holding --key ") == 3
    document = json.loads(terminal.run("run", "--run", "r", "--json", code=2)[0])
    assert {each["revision"] for each in document["candidates"]} == {1, 2}
    chosen = terminal.document("run", "--run", "r", "--key", "card-1", "--revision", "2")
    assert chosen["run"]["revision"] == 2


def test_a_run_is_shortened_unless_it_is_asked_for_in_full(terminal: Terminal) -> None:
    said = "a very long story \x1b[31m" * 30
    with terminal.book(60) as ledger:
        begin(ledger, run_key("r" * 50, scope="s" * 90), hold())
        ledger.apply([Record(run_key("r" * 50, scope="s" * 90), "0", 1, "ok", json.dumps(said))])
    short, full = (
        "\n".join(terminal.lines("run", "--run", "r" * 50)),
        terminal.lines("run", "--run", "r" * 50, "--full"),
    )
    assert "…" in short
    assert any(line.count("a very long story") == 30 for line in full)
    assert "\x1b" not in short + "".join(full)
    _, row, _ = terminal.lines("runs")
    assert "r" * 50 in row
    assert "sss…" in row
    assert terminal.document("run", "--run", "r" * 50)["calls"][0]["value"] == said


def test_the_page_of_a_run(terminal: Terminal) -> None:
    with terminal.book(60) as ledger:
        begin(ledger, run_key("r"), Effect("0", 1, "model", "gpt", "d", "pure", None), hold("1"))
        ledger.apply([Record(run_key("r"), "0", 1, "ok", '{"text":"hm"}'), Record(run_key("r"), "1", 1, "ok", "7")])
        end(ledger, run_key("r"))
    lines = terminal.lines("run", "--run", "r")
    assert lines[0] == "run       r, key card-1, scope fraud, agent holding, revision 1"
    assert lines[2] == 'event     {"amount": 1}'
    assert lines[3].split() == ["PATH", "ATTEMPT", "KIND", "NAME", "EFFECT", "ASKED", "(UTC)", "SECONDS", "OUTCOME"]
    assert lines[5] == '    -> {"text": "hm"}'
    assert lines[6].split()[:5] == ["1", "1", "tool", "hold_card", "once"]
    assert lines[7:9] == ['    {"card": "card-1"}', "    -> 7"]
    assert lines[9].startswith("ended     20")
    assert lines[9].endswith(": answer after 0.0 s")
    assert lines[10] == '    -> "held"'


def test_an_end_that_another_release_wrote_is_shown_as_such(terminal: Terminal) -> None:
    with terminal.book() as ledger:
        begin(ledger, run_key("r"))
        ledger.apply([Close(run_key("r"), 1, '{"schema_version":9}', None)])
    run = terminal.document("runs")["runs"][0]
    assert (run["state"], run["reason"]) == ("unknown", None)
    assert "does not know" in run["message"]


def test_prune_drops_what_is_old(terminal: Terminal) -> None:
    for ago, names in ((400 * DAY, ("a", "b")), (40 * DAY, ("c", "d", "e")), (DAY, ("f",))):
        with terminal.book(ago) as ledger:
            for name in names:
                begin(ledger, run_key(name))
                end(ledger, run_key(name))
    with terminal.book(40 * DAY) as ledger:
        begin(ledger, run_key("doubtful", "other"), hold())
        end(ledger, run_key("doubtful", "other"), FailureReason.IN_DOUBT)
        begin(ledger, run_key("open", "other", key='"card-2"'))

    before = terminal.document("show")
    foreseen = terminal.document("prune", "--older-than", "30d", "--dry-run")
    fraud = {"scope": "fraud", "agent": "holding", "runs": 5, "tombstones": 0, "doubtful_kept": 0}
    other = {"scope": "other", "agent": "holding", "runs": 0, "tombstones": 0, "doubtful_kept": 1}
    assert (foreseen["dry_run"], foreseen["uses"]) == (True, [fraud | {"tombstones": 2}, other])
    assert terminal.document("show") == before

    lines = terminal.lines("prune", "--older-than", "30d", "--scope", "other")
    assert lines[1].split() == ["other", "holding", "0", "0", "1"]
    done = terminal.document("prune", "--older-than", "30d")
    assert done["uses"] == [fraud | {"tombstones": 2}, other]
    uses = {use["scope"]: use for use in terminal.document("show")["uses"]}
    assert (uses["fraud"]["ended"], uses["fraud"]["tombstones"]) == (1, 3)
    pruned_to = datetime.fromisoformat(uses["fraud"]["pruned_to"]).timestamp()
    assert time.time() - pruned_to == pytest.approx(40 * DAY, abs=3600)
    assert (uses["other"]["open"], uses["other"]["doubtful"], uses["other"]["pruned_to"]) == (1, 1, None)

    again = terminal.lines("prune", "--older-than", "12h", "--agent", "holding", "--dry-run")
    assert again[1].split() == ["fraud", "holding", "1", "0", "0"]
    assert "WOULD BE PRUNED  TOMBSTONES WOULD BE DROPPED" in again[0]
    forgotten = terminal.document("prune", "--older-than", "12h", "--tombstones-older-than", "20d", "--dry-run")
    assert forgotten["uses"][0] == fraud | {"runs": 1, "tombstones": 3}
    assert again[-1] == "nothing was changed"
    assert "has no run 'c'" in terminal.refused(1, "run", "--run", "c")


def test_prune_refuses_what_is_too_young(terminal: Terminal) -> None:
    with terminal.book(DAY):
        pass
    assert "59 min is less than 1 h:" in terminal.refused(2, "prune", "--older-than", "59min")
    assert "--tombstones-older-than: 1 d is less than --older-than, 2 d:" in terminal.refused(
        2, "prune", "--older-than", "2d", "--tombstones-older-than", "1d"
    )
    assert "'2 weeks' is no age" in terminal.misused("prune", terminal.url, "--older-than", "2 weeks")
    assert terminal.lines("prune", "--older-than", "2d") == ["it has no runs"]
    assert "no runs of scope 'x'; it has: no runs" in terminal.refused(1, "prune", "--older-than", "2d", "--scope", "x")


def test_looking_makes_no_ledger(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "runs.db"
    said = ("--run", "r", "--path", "0", "--done", "1", "--by", "ann")
    for command in (("show",), ("runs",), ("run", "--run", "r"), ("prune", "--older-than", "2d"), ("resolve", *said)):
        assert f"there is no ledger {str(file)!r}" in terminal.refused(1, *command)
    assert list(file.parent.iterdir()) == []
    file.touch()
    assert "is an empty file" in terminal.refused(1, "show")
    assert file.stat().st_size == 0
    file.write_text("not a database, but long enough to be taken for one" * 100, encoding="utf-8")
    assert "is not an SQLite database" in terminal.refused(1, "show")


def test_a_ledger_without_runs_says_so(terminal: Terminal) -> None:
    with terminal.book():
        pass
    ledger, identity, schema, empty = terminal.lines("show")
    assert (ledger, empty) == (f"ledger    {terminal.url}", "it has no runs")
    assert terminal.document("show")["identity"] == identity.split()[1]
    assert schema == f"schema    version {terminal.document('show')['schema_version']}"
    assert terminal.document("show")["schema_version"] == SqliteLedger.schema_version
    assert terminal.document("show")["uses"] == []


def test_the_table_of_uses(terminal: Terminal) -> None:
    with terminal.book(60) as ledger:
        begin(ledger, run_key("r"))
    _, _, _, header, row = terminal.lines("show")
    assert header.split()[:5] == ["SCOPE", "AGENT", "OPEN", "DRIVEN", "ORPHANED"]
    assert row.split() == ["fraud", "holding", "1", "0", "1", "0", "0", "0", "never"]


@pytest.mark.parametrize("url", ["memory:", "memory:name", "mysql://ann:geheim@host/db", "sqlite:///", "runs.db"])
def test_a_url_names_a_ledger_that_others_have(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "geheim" not in Terminal(url, capsys).refused(2, "show")


def test_a_password_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    url = "postgresql://ann:geheim@127.0.0.1:1/db"
    assert "names no database" in (why := Terminal(url.removesuffix("/db"), capsys).refused(2, "show"))
    with pytest.raises(Refused) as refused:
        Desk(PostgresLedger(url), patience=0.1).__enter__()
    assert "ann@127.0.0.1:1/db" in str(refused.value)
    assert "geheim" not in why + str(refused.value)


class Busy(MemoryLedger):
    """A ledger that is away for the first times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def apply(self, commands: Any) -> list[Answer]:
        self.times -= 1
        if self.times >= 0:
            raise LedgerUnavailable("locked")
        return super().apply(commands)


def test_a_busy_ledger_is_asked_again() -> None:
    command: Command = Summarize()
    with Desk(Busy(2)) as desk:
        assert desk.expect(Summary, command) == Summary(())
    with Desk(Busy(1_000), patience=0.3) as desk, pytest.raises(Refused, match=r"tried for 0\.3 s: locked"):
        desk.ask(command)


def test_a_table_fits() -> None:
    lines = table(("NAME", "N", "ID"), [("n" * 200, "7", "i" * 90), ("x", "12", "y")], whole=("ID",))
    assert [len(line) for line in lines] <= [120] * 3
    assert lines[1].startswith("n" * 20)
    assert lines[1].endswith("i" * 90)
    assert lines[2].split() == ["x", "12", "y"]
    assert shorten("abcdef", 4) == "abc…"
    assert visible("a\tb\x1b[0m\u202eé") == "a\\tb\\x1b[0m\\u202eé"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (60, "1 min"),
        (3_599, "59 min 59 s"),
        (7_260, "2 h 1 min"),
        (90_000, "1 d 1 h"),
        (30 * DAY, "30 d"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("typed", "forms"),
    [
        ("card-1", ['"card-1"']),
        ("7", ['"7"', "7"]),
        ('["a", 1]', ['"[\\"a\\", 1]"', '["a",1]']),
        ('"card-1"', ['"\\"card-1\\""', '"card-1"']),
    ],
)
def test_a_key_is_found_as_it_is_typed(typed: str, forms: list[str]) -> None:
    assert keys_of(typed) == forms
