"""A person says what became of a call, with `beam-agents ledger resolve`."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from ledger_terminal import Terminal, begin, end, hold, run_key
from pydantic import BaseModel

from beam_agents import FailureReason, RunAgent, RunContext, RunFailed, tool, workflow
from beam_agents.ledger.commands import Record, Renew
from beam_agents.ledger.records import Effect

KILLED = 9
NOTHING_IN_DOUBT = "nothing in it is in doubt any more"


class Payment(BaseModel):
    """A payment."""

    id: str
    card: str
    bank: str
    """The file that the bank appends the holds to."""


@tool(effect="once")
def hold_card(ctx: RunContext[Payment, Any, Any], card: str) -> dict[str, int]:
    """Puts a card on hold; for some payments nobody hears of it."""
    bank = Path(ctx.event.bank)
    with bank.open("a", encoding="utf-8") as holds:
        holds.write(f"{card}\n")
    if bank.with_suffix(".kills").exists():
        os._exit(KILLED)
    if bank.with_suffix(".fails").exists():
        raise ConnectionError("lost the bank")
    return {"hold": 1}


@workflow(event_type=Payment, output_type=str)
async def holding(ctx: RunContext[Payment, Any, Any], event: Payment) -> str:
    """Puts the card of a payment on hold."""
    held = await ctx.call(hold_card, card=event.card)
    return f"hold {held['hold']}"


def run_holding(url: str, event: dict[str, str]) -> None:
    holding.run_sync(Payment(**event), key=event["card"], event_id=event["id"], ledger=url)


@pytest.fixture
def terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(f"sqlite:///{tmp_path / 'runs.db'}", capsys)


@pytest.fixture
def payment(tmp_path: Path) -> dict[str, str]:
    return {"id": "p-1", "card": "card-1", "bank": str(tmp_path / "bank.txt")}


@pytest.fixture
def holds(payment: dict[str, str]) -> Callable[[], int]:
    """How often the bank was asked."""
    return lambda: len(Path(payment["bank"]).read_text(encoding="utf-8").splitlines())


@pytest.fixture
def killed(terminal: Terminal, payment: dict[str, str]) -> Terminal:
    """The ledger of a worker that died in a call, minutes ago as far as its lease is concerned."""
    kills = Path(payment["bank"]).with_suffix(".kills")
    kills.touch()
    worker = multiprocessing.get_context("spawn").Process(target=run_holding, args=(terminal.url, payment))
    worker.start()
    worker.join(150)
    assert worker.exitcode == KILLED
    kills.unlink()
    (run,) = terminal.document("runs", "--open")["runs"]
    with terminal.book(60) as ledger:
        ledger.apply([Renew(run["owner"])])
    return terminal


def test_a_run_that_nobody_drives_goes_on_with_what_was_said_of_its_call(
    killed: Terminal, payment: dict[str, str], holds: Callable[[], int]
) -> None:
    assert killed.document("show")["uses"] == [
        {
            "scope": "holding",
            "agent": "holding",
            "open": 1,
            "driven": 0,
            "orphaned": 1,
            "ended": 0,
            "doubtful": 0,
            "tombstones": 0,
            "pruned_to": None,
        }
    ]
    header, row, standing = killed.lines("runs")
    assert header.split()[-3:] == ["REV", "EPOCH", "STALLS"]
    assert row.split()[2:] == ["holding", "holding", "card-1", "p-1", "1", "1", "0"]
    assert "nobody drives it, left at tool hold_card since " in standing

    page = killed.document("run", "--run", "p-1")
    assert (page["event"], page["end"]) == (payment, None)
    (call,) = page["calls"]
    assert (call["path"], call["name"], call["effect"], call["status"]) == ("0", "hold_card", "once", None)
    assert call["arguments"] == {"card": "card-1"}
    assert datetime.fromisoformat(call["intent_at"]).utcoffset() == timedelta(0)

    said = killed.lines("resolve", "--run", "p-1", "--path", "0", "--done", '{"hold": 7}', "--by", "ann")
    assert said[0] == 'recorded as the outcome of hold_card at 0, attempt 1: ok {"hold": 7}'
    assert "p-1 goes on with it" in said[1]
    again = killed.document("resolve", "--run", "p-1", "--path", "0", "--done", '{"hold": 7}', "--by", "ann")
    assert again["done"] == "recorded", "the first answer may have been lost"
    why = killed.refused(1, "resolve", "--run", "p-1", "--path", "0", "--failed", "no hold", "--by", "bob")
    assert "was resolved already: 0, attempt 1, by ann at " in why
    assert killed.lines("run", "--run", "p-1")[-1].startswith("resolved  0, attempt 1, by ann at ")

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        events = pipeline | beam.Create([(payment["card"], payment)])
        out = events | RunAgent(holding, event_id="id", ledger=killed.url)
        outputs = out.results | beam.MapTuple(lambda key, result: result.output)
        assert_that(outputs, equal_to(["hold 7"]))

    assert holds() == 1
    page = killed.document("run", "--run", "p-1")
    assert (page["run"]["state"], page["run"]["epoch"], page["end"]["output"]) == ("answer", 2, "hold 7")
    assert [(noted["path"], noted["by"], noted["value"]) for noted in page["resolutions"]] == [
        ("0", "ann", {"hold": 7})
    ]


def test_a_call_of_an_ended_run_is_noted(terminal: Terminal, payment: dict[str, str], holds: Callable[[], int]) -> None:
    Path(payment["bank"]).with_suffix(".fails").touch()
    with pytest.raises(RunFailed):
        run_holding(terminal.url, payment)
    standing = " ".join(terminal.lines("runs", "--doubtful")[2:])
    assert "in_doubt, to be resolved, after " in standing
    assert "lost the bank" in standing

    options = ("--run", "p-1", "--path", "0", "--failed", "the bank has no hold", "--by", "ann")
    said = terminal.document("resolve", *options)
    assert (said["done"], said["status"], said["value"]) == ("noted", "failed", "the bank has no hold")
    assert terminal.document("resolve", *options) == said, "the first answer may have been lost"
    assert "was resolved already" in terminal.refused(1, "resolve", *options[:-1], "bob")

    assert terminal.lines("runs", "--doubtful") == ["no such runs"]
    assert terminal.lines("run", "--run", "p-1")[-1].startswith("resolved  0, attempt 1, by ann at ")
    with pytest.raises(RunFailed) as again:
        run_holding(terminal.url, payment)
    assert again.value.failure.reason is FailureReason.IN_DOUBT
    assert holds() == 1


def test_two_calls_in_doubt_are_resolved_one_by_one(terminal: Terminal) -> None:
    with terminal.book() as ledger:
        begin(ledger, run_key("r"), hold("0.0.0"), hold("0.1.0"))
        end(ledger, run_key("r"), FailureReason.IN_DOUBT, "nobody knows")
    one, two = (("--run", "r", "--path", path, "--done", "null", "--by", "ann") for path in ("0.0.0", "0.1.0"))
    assert terminal.lines("resolve", *one)[-1] == "another call of it is still in doubt"
    assert terminal.lines("resolve", *two)[-1] == NOTHING_IN_DOUBT
    assert [noted["path"] for noted in terminal.document("run", "--run", "r")["resolutions"]] == ["0.0.0", "0.1.0"]


def test_a_live_worker_is_not_interfered_with(terminal: Terminal) -> None:
    with terminal.book(-3600) as ledger:
        begin(ledger, run_key("r"), hold())
    _, _, standing = terminal.lines("runs")
    assert "tool hold_card since " in standing
    assert "nobody" not in standing
    assert terminal.document("show")["uses"][0]["driven"] == 1
    why = terminal.refused(1, "resolve", "--run", "r", "--path", "0", "--done", "1", "--by", "ann")
    assert "run 'r' is driven by a live worker, whose lease lasts until 20" in why


def test_what_is_known_is_not_resolved(terminal: Terminal) -> None:
    look = Effect("1", 1, "tool", "look_up", "digest", "pure", "{}")
    with terminal.book(60) as ledger:
        begin(ledger, run_key("r"), hold(), look)
        ledger.apply([Record(run_key("r"), "0", 1, "ok", '{"hold":1}')])
    for options, why in (
        (("--path", "0"), "hold_card at 0, attempt 1, of run 'r' has an outcome: ok {\"hold\":1}, recorded at "),
        (
            ("--path", "1"),
            "look_up at 1, attempt 1, of run 'r', is pure: the worker that goes on with the run makes it",
        ),
        (("--path", "7"), "run 'r' has no call at path '7', attempt 1; its tool calls: hold_card at 0, attempt 1, ok;"),
        (("--path", "0", "--attempt", "2"), "run 'r' has no call at path '0', attempt 2"),
    ):
        assert why in terminal.refused(1, "resolve", "--run", "r", *options, "--done", "{}", "--by", "ann")
    assert "has no run 'x', scope 'fraud'" in terminal.refused(
        1, "resolve", "--run", "x", "--scope", "fraud", "--path", "0", "--done", "{}", "--by", "ann"
    )


def test_a_call_that_has_ended_in_doubt_waits_for_the_end_of_its_run(terminal: Terminal) -> None:
    with terminal.book(60) as ledger:
        begin(ledger, run_key("r"), hold())
        ledger.apply([Record(run_key("r"), "0", 1, "in_doubt", '"lost"')])
    why = terminal.refused(1, "resolve", "--run", "r", "--path", "0", "--done", "{}", "--by", "ann")
    assert "the run is about to end in doubt with it: resolve it then" in why


@pytest.mark.parametrize("result", ["held", "", "{'hold': 7}", "NaN", "[1"])
def test_a_result_is_json(terminal: Terminal, result: str) -> None:
    words = ("resolve", terminal.url, "--run", "r", "--path", "0", "--by", "ann", f"--done={result}")
    assert f"{result!r} is not JSON" in terminal.misused(*words)
