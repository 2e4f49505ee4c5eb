"""The endless fraud demo: payments that go on where they were, outputs that stand once, and the whole on Prism."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import Namespace
from collections import Counter
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_agents import FailureReason, RunFailure, RunResult
from examples.common import DEFAULT_RUNNER
from examples.fraud.bank import Bank
from examples.fraud.events import Txn, Verdict
from examples.fraud.feed import LINES_PER_FILE, ROUND, Feeder, endless_payments
from examples.fraud.generator import START
from examples.fraud.kept import KeepOutputs, kept_after, make_file
from examples.fraud.stream import read_arguments, show, stream_parser
from runners.prism import prism_path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 120.0

needs_prism = pytest.mark.skipif(prism_path() is None, reason="Prism is not built: run 'python -m runners.prism'")


def written(folder: Path) -> list[str]:
    return [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def feed(folder: Path, count: int) -> None:
    with Feeder(folder, islice(endless_payments(), count), rate=1e9) as feeder:
        feeder.wait()


def test_made_up_payments_never_repeat_an_id_that_another_round_had():
    lines = list(islice(endless_payments(), 3 * ROUND))
    assert lines == list(islice(endless_payments(), 3 * ROUND))
    rounds = [
        {json.loads(line).get("txn_id") for line in lines[nth * ROUND :][:ROUND] if line[-1] == "}"} for nth in range(3)
    ]
    ids = Counter(id for found in rounds for id in found if id is not None)
    assert set(ids.values()) == {1}
    times = [json.loads(line)["time"] for line in (lines[0], lines[ROUND], lines[2 * ROUND])]
    assert times == sorted(times)


def test_a_feeder_goes_on_where_the_files_end(tmp_path: Path):
    feed(tmp_path, LINES_PER_FILE - 1)
    feed(tmp_path, LINES_PER_FILE + 5)
    assert written(tmp_path) == list(islice(endless_payments(), LINES_PER_FILE + 5))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["payments-00000.jsonl", "payments-00001.jsonl"]


def test_a_line_that_was_cut_off_gets_an_end(tmp_path: Path):
    first, second, third = islice(endless_payments(), 3)
    (tmp_path / "payments-00000.jsonl").write_text(f"{first}\n{second[:20]}")
    feed(tmp_path, 3)
    assert written(tmp_path) == [first, second[:20], third]


def test_outputs_of_a_bundle_that_runs_twice_are_kept_once(tmp_path: Path):
    path = tmp_path / "outputs.db"
    make_file(path)
    failures = [
        ("card", RunFailure(reason=FailureReason.DEADLINE, message="too slow", run_id=f"t-{number}"))
        for number in range(3)
    ]
    options = PipelineOptions([f"--runner={DEFAULT_RUNNER}", "--direct_runner_bundle_repeat=1"])
    for kind in ("first", "first", "second"):
        with beam.Pipeline(options=options) as pipeline:
            pipeline | beam.Create(failures) | KeepOutputs(path, kind)
    kept = list(kept_after(path))
    assert [(line.kind, line.row["run_id"]) for line in kept] == [
        (kind, f"t-{number}") for kind in ("first", "second") for number in range(3)
    ]
    assert list(kept_after(path, kept[3].number)) == kept[4:]


def test_what_comes_out_from_now_on_is_shown_but_for_approvals(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "outputs.db"
    make_file(path)
    keep(path, "results", result("t-0", "hold", "long ago"))
    turns = iter([True, False])

    def goes_on() -> bool:
        keep(path, "results", result("t-1", "approve"), result("t-2", "hold", "on the blocklist"))
        keep(path, "failures", (None, RunFailure(reason=FailureReason.INVALID_EVENT, message="no payment")))
        return next(turns)

    show(Namespace(outputs=path, seconds=None), goes_on)
    *lines, summary = capsys.readouterr().out.splitlines()
    assert lines == ["hold     card-1      12.50 USD  on the blocklist", "failure  invalid_event: no payment"]
    assert summary.endswith("approve 1, failures 1, hold 1")


def result(id: str, decision: Any, *reasons: str) -> tuple[str, RunResult[Txn, Verdict]]:
    event = Txn(
        txn_id=id,
        card="card-1",
        time=START,
        amount=12.5,
        merchant="m-001",
        city="Oslo",
        latitude=59.91,
        longitude=10.75,
    )
    verdict = Verdict(decision=decision, reasons=reasons, decided_by="test")
    return "card-1", RunResult(run_id=id, event=event, output=verdict)


def keep(path: Path, kind: str, *outputs: tuple[Any, Any]) -> None:
    with beam.Pipeline(options=PipelineOptions([f"--runner={DEFAULT_RUNNER}"])) as pipeline:
        pipeline | beam.Create(outputs) | KeepOutputs(path, kind)


def test_paths_are_absolute_for_workers_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    arguments, _ = read_arguments(["--runner=PortableRunner", "--out=here"], stream_parser())
    here = str(tmp_path / "here")
    assert (arguments.out, arguments.payments, arguments.bank) == (here, f"{here}/payments", f"{here}/bank.db")
    assert arguments.ledger == f"sqlite:///{here}/ledger.db"


def test_a_negative_rate_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        read_arguments([f"--out={tmp_path}", "--rate=-1"], stream_parser())
    assert "--rate -1" in capsys.readouterr().err


@needs_prism
def test_the_stream_decides_what_is_appended_and_a_second_start_does_nothing_twice(tmp_path: Path):
    lines = list(islice(endless_payments(), 60))
    demo(tmp_path, lines[:40])
    first = read(tmp_path)
    demo(tmp_path, lines)
    again = read(tmp_path)
    assert {id: again["results"][id] for id in first["results"]} == first["results"]
    valid = {json.loads(line)["txn_id"] for line in lines if is_payment(line)}
    assert again["results"].keys() | again["failures"].keys() >= valid
    with closing(Bank(tmp_path / "bank.db")) as bank:
        assert bank.count_holds()[1] == 0


def is_payment(line: str) -> bool:
    try:
        return "txn_id" in json.loads(line)
    except ValueError:
        return False


def read(folder: Path) -> dict[str, dict[str, str]]:
    """Lines by run id, for each kind."""
    outputs: dict[str, dict[str, str]] = {"results": {}, "failures": {}, "duplicates": {}}
    for _, kind, row in kept_after(folder / "outputs.db"):
        id = row.get("run_id") or row["message"]
        assert kind != "results" or id not in outputs[kind], f"{id} has two results"
        outputs[kind][id] = json.dumps(row)
    return outputs


def demo(folder: Path, lines: list[str]) -> None:
    """Runs the program until each line has come out."""
    payments = folder / "payments"
    payments.mkdir(exist_ok=True)
    make_file(folder / "outputs.db")
    (payments / "given.jsonl").write_text("".join(f"{line}\n" for line in lines))
    ids = {json.loads(line)["txn_id"] for line in lines if is_payment(line)}
    command = [sys.executable, "-m", "examples.fraud.stream", f"--out={folder}", "--rate=0", f"--seconds={LIMIT}"]
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    with process:
        until = time.monotonic() + LIMIT
        while (missing := ids - ids_out(folder)) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        process.terminate()
    assert not missing, f"{len(missing)} are missing:\n{(folder / 'log.txt').read_text()[-4000:]}"


def ids_out(folder: Path) -> set[str]:
    return {kept.row["run_id"] for kept in kept_after(folder / "outputs.db") if kept.row.get("run_id")}
