"""The fraud example from Kafka to Kafka on Flink: its commands as processes, raw counts, what it says of payments."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from beam_agents import RunResult
from examples.fraud.events import Txn, Verdict
from examples.fraud.production import bank
from examples.fraud.production.account import Account, account
from examples.fraud.production.commands import main
from examples.fraud.production.feed import payments
from examples.fraud.production.topics import Decision, decision
from examples.production.folder import Folder, Running
from runners.flink.cluster import FlinkCluster
from tests.production_kit import LIMIT, command, committed, running, up


@pytest.fixture
def everything(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """The folder of a platform that runs, and its `up`."""
    with up("fraud", tmp_path) as started:
        yield started


def outcomes(folder: Path) -> Account:
    """What came of the payments, when nothing is open any more."""
    noted = running(folder)
    until = time.monotonic() + LIMIT
    while (found := account(noted)).open:
        assert time.monotonic() < until, found
        time.sleep(0.2)
    return found


@pytest.mark.flink
@pytest.mark.timeout(900)
def test_each_payment_is_decided_once_and_each_card_held_once(
    everything: tuple[Path, subprocess.Popen[bytes]], capsys: pytest.CaptureFixture[str]
):
    folder, started = everything

    def said(name: str, *options: str) -> str:
        assert main([name, f"--folder={folder}", *options]) == 0
        return capsys.readouterr().out

    sent = list(payments(seed=1, first=0, number=200))
    valid = {line["txn_id"] for line in map(as_object, sent) if line is not None and is_payment(line)}
    assert len(valid) > 150

    assert "200 payments written, from number 0 on" in command("fraud", folder, "feed", "--count=200", "--rate=1000")
    first = outcomes(folder)
    os.kill(running(folder).pids["Kafka"], signal.SIGKILL)
    assert "200 payments written, from number 0 on" in said("feed", "--count=200", "--rate=1000", "--again")
    again = outcomes(folder)

    servers = running(folder).servers
    decided = [Decision.model_validate_json(record.value() or b"") for record in committed(servers, "decisions")]
    assert Counter(each.payment for each in decided) == Counter(valid)
    held = [each for each in decided if each.hold_id is not None]
    table = bank.holds(running(folder).database("bank"))
    assert held
    assert {row.hold_id: row.card for row in table} == {each.hold_id: each.card for each in held}
    assert len(table) == len(held)
    assert again.decisions == first.decisions
    assert (again.payments, again.decided_twice, again.holds, again.holds_unnamed) == (400, 0, len(held), 0)
    assert (
        sum(again.failures.values())
        == len(committed(servers, "failures"))
        == (2 * first.failures["invalid_event"] + first.failures["id_conflict"])
    )
    assert committed(servers, "trace")

    shown = command("fraud", folder, "show")
    assert all(f"(hold {each.hold_id})" in shown for each in held)
    assert Account.model_validate_json(said("status", "--json")) == again
    status = said("status")
    assert "is RUNNING" in status
    assert "; 0 open" in status

    asked = [bank.hold(running(folder).database("bank"), "card-x", "to see", key="the same") for _ in range(2)]
    assert asked[0] == asked[1]
    assert [row.asked for row in bank.holds(running(folder).database("bank")) if row.card == "card-x"] == [2]

    left = running(folder).folders
    processes = FlinkCluster.load(folder / "flink").processes()
    command("fraud", folder, "down")
    assert started.wait(LIMIT) == 0
    assert not folder.exists()
    assert not any(path.exists() for path in left)
    assert not any(process.alive() for process in processes)


def as_object(line: str) -> dict[str, object] | None:
    try:
        return dict(json.loads(line))
    except ValueError:
        return None


def is_payment(row: dict[str, object]) -> bool:
    try:
        Txn.model_validate(row)
    except ValueError:
        return False
    return True


def test_payments_go_on_and_other_seeds_give_others():
    whole = list(payments(seed=1, first=0, number=250))
    assert list(payments(seed=1, first=180, number=70)) == whole[180:]
    ids = [
        {row.get("txn_id") for row in map(as_object, lines) if row is not None} - {None}
        for lines in (whole, payments(seed=2, first=0, number=250))
    ]
    assert len(ids[0]) > 200
    assert not ids[0] & ids[1]


def test_a_decision_says_what_it_is_about():
    payment = next(row for row in map(as_object, payments(seed=1, first=0, number=1)) if row is not None)
    event = Txn.model_validate(payment)
    verdict = Verdict(decision="hold", reasons=("too fast",), hold_id=3, decided_by="a test")
    told = decision(RunResult(run_id=event.txn_id, event=event, output=verdict))
    assert told.model_dump() == verdict.model_dump() | {
        "payment": event.txn_id,
        "card": event.card,
        "time": event.time,
        "amount": event.amount,
    }


def test_nothing_is_open_when_each_payment_has_an_outcome_or_came_before():
    counted = Account(payments=10, repeats=2, decisions={"approve": 5, "hold": 1}, failures={"invalid_event": 1})
    assert counted.open == 1


@pytest.mark.parametrize("name", ["feed", "show", "status"])
def test_commands_say_that_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str):
    assert main([name, f"--folder={tmp_path}"]) == 1
    assert f"nothing runs in {str(tmp_path)!r}" in capsys.readouterr().err


def test_down_where_nothing_runs_does_nothing(tmp_path: Path):
    assert main(["down", f"--folder={tmp_path / 'none'}"]) == 0
    assert not (tmp_path / "none").exists()


def test_a_second_start_in_a_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with Folder(tmp_path).held() as held:
        assert held
        assert main(["up", f"--folder={tmp_path}"]) == 1
    assert "it runs already" in capsys.readouterr().err


def test_what_a_killed_program_left_is_cleared(tmp_path: Path):
    left = tmp_path / "kafka-left"
    left.mkdir()
    folder = Folder(tmp_path / "production")
    with folder.held():
        folder.note(Running(pid=0, keep=False, folders=[left]))
    assert (folder.path / "running.json").stat().st_mode & 0o077 == 0
    assert main(["down", f"--folder={folder.path}"]) == 0
    assert not left.exists()
    assert not folder.path.exists()


@pytest.mark.parametrize("option", ["--count=0", "--rate=0"])
def test_a_feed_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str):
    assert main(["feed", f"--folder={tmp_path}", option]) == 1
    assert option.partition("=")[0] in capsys.readouterr().err


def test_a_model_that_cannot_be_is_refused_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "none"
    with pytest.raises(SystemExit, match="--model nobody"):
        main(["up", f"--folder={folder}", "--model=nobody"])
    assert main(["up", f"--folder={folder}", "--base-url=http://127.0.0.1:1"]) == 1
    assert "--model" in capsys.readouterr().err
    assert not folder.exists()
