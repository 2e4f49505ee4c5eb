"""The whole fraud demo: a first run, a second one on the same ledger, a file of the user's, wrong options."""

import csv
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from examples.common import read_jsonl
from examples.fraud.agent import fraud_agent
from examples.fraud.bank import Bank
from examples.fraud.generator import blocklist, merchants
from examples.fraud.main import main
from examples.fraud.rules import NAME, fraud_rules

OUTPUTS = ("results.jsonl", "failures.jsonl", "duplicates.jsonl", "trace.jsonl")
PAYMENT = {
    "txn_id": "t-1",
    "card": "card-1",
    "time": "2026-01-05T12:00:00Z",
    "amount": 50.0,
    "merchant": "b-000",
    "city": "Berlin",
    "latitude": 52.52,
    "longitude": 13.41,
}


def demo(out: Path, *options: str) -> None:
    main([f"--out={out}", *options])


def holds(path: Path) -> tuple[int, int]:
    with closing(Bank(path)) as bank:
        return bank.count_holds()


def headline(captured: pytest.CaptureFixture[str]) -> str:
    return captured.readouterr().out.splitlines()[-1]


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {name.removesuffix(".jsonl"): read_jsonl(folder / name) for name in OUTPUTS}


def test_a_second_run_writes_the_same_files_and_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo(tmp_path, "--events=150")
    summary = capsys.readouterr().out
    first = {name: (tmp_path / name).read_bytes() for name in OUTPUTS}
    made, twice = holds(tmp_path / "bank.db")
    demo(tmp_path, "--events=150")
    assert {name: (tmp_path / name).read_bytes() for name in OUTPUTS} == first
    assert headline(capsys) == f"0 decided, {len(first['results.jsonl'].splitlines())} replayed, 0 tool calls"
    assert holds(tmp_path / "bank.db") == (made, twice)
    assert made > 0
    assert twice == 0
    assert NAME in summary


def test_every_line_comes_out_once(tmp_path: Path) -> None:
    demo(tmp_path, "--events=150")
    out = read(tmp_path)
    lines = (tmp_path / "payments.jsonl").read_text().splitlines()
    assert len(lines) == len(out["results"]) + len(out["failures"]) + len(out["duplicates"])
    assert len(out["duplicates"]) == 3
    reasons = sorted(failure["reason"] for failure in out["failures"])
    assert reasons == ["id_conflict", *["invalid_event"] * 4, "missing_key"]


def test_injected_fraud_is_stopped_and_the_bank_holds_what_the_verdicts_say(tmp_path: Path) -> None:
    demo(tmp_path, "--events=300", "--seed=2")
    results = read(tmp_path)["results"]
    stopped = {row["run_id"] for row in results if row["output"]["decision"] != "approve"}
    injected = json.loads((tmp_path / "injected.json").read_text())
    assert injected.keys() <= stopped
    hold_ids = [row["output"]["hold_id"] for row in results if "hold_id" in row["output"] and row["output"]["hold_id"]]
    assert len(hold_ids) == len(set(hold_ids)) == holds(tmp_path / "bank.db")[0]
    assert {row["output"]["decided_by"] for row in results} == {NAME, "rule:small"}


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_file_of_the_users(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"mine.{form}"
    payments = [PAYMENT, PAYMENT | {"txn_id": "t-2", "amount": 5, "note": "not a field"}]
    with path.open("w", newline="") as file:
        if form == "csv":
            writer = csv.DictWriter(file, [*PAYMENT, "note"])
            writer.writeheader()
            writer.writerows(payments)
        else:
            file.writelines(json.dumps(payment) + "\n" for payment in payments)
    demo(tmp_path / "out", f"--input={path}")
    out = read(tmp_path / "out")
    assert [row["output"]["decision"] for row in out["results"]] == ["hold", "approve"]
    assert out["failures"] == []
    assert {step["name"] for step in out["trace"]} == {NAME, "blocklist", "merchant", "hold_card"}


def test_a_replayed_bundle_changes_nothing(tmp_path: Path) -> None:
    demo(tmp_path / "once", "--events=100")
    demo(tmp_path / "twice", "--events=100", "--direct_runner_bundle_repeat=1")
    assert (tmp_path / "once/failures.jsonl").read_bytes() == (tmp_path / "twice/failures.jsonl").read_bytes()
    runs = [[row["run_id"] for row in read(tmp_path / name)["results"]] for name in ("once", "twice")]
    assert runs[0] == runs[1]
    assert holds(tmp_path / "once/bank.db") == holds(tmp_path / "twice/bank.db")


def test_the_agent_runs_without_beam(tmp_path: Path) -> None:
    def open_bank() -> Bank:
        bank = Bank(tmp_path / "bank.db")
        bank.set_up(merchants().items(), blocklist().items())
        return bank

    agent = fraud_agent(fraud_rules(), open_bank)
    result = agent.run_sync(agent.read_event(PAYMENT), key="card-1")
    assert result.output.decision == "hold"
    assert result.usage.steps == 3
    assert result.usage.tool_calls == 3
    assert holds(tmp_path / "bank.db") == (1, 0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--evnts=100"], "--evnts"),
        (["--events=3"], "at least 50"),
        (["--input=nowhere.csv"], "no such file"),
        (["--base-url=http://localhost:1"], "--model"),
    ],
)
def test_wrong_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    with pytest.raises(SystemExit):
        demo(tmp_path, *options)
    assert complaint in capsys.readouterr().err


def test_a_model_that_cannot_be_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--model nobody"):
        demo(tmp_path, "--model=nobody")
