"""The whole sensors example: a first run, a second one on the same ledger, files of the user's."""

from __future__ import annotations

import json
import pickle
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from examples.common import read_jsonl
from examples.sensors.agent import sensor_agent
from examples.sensors.alerts import Alert, AlertLog
from examples.sensors.main import main
from examples.sensors.rules import MODEL, NAME

OUTPUTS = ("results.jsonl", "failures.jsonl", "duplicates.jsonl", "trace.jsonl")
START = datetime(2025, 1, 6, tzinfo=UTC)


def alerts(folder: Path) -> list[Alert]:
    with closing(AlertLog(str(folder / "alerts.db"))) as log:
        return log.all()


@pytest.fixture
def readings(tmp_path: Path) -> Path:
    """Five days of half-hourly readings; the last six hours are hot."""
    file = tmp_path / "press.csv"
    lines = ["timestamp,value"]
    for number in range(240):
        value = 50 + number % 7 + (30 if number >= 228 else 0)
        lines.append(f"{START + number * timedelta(minutes=30):%Y-%m-%d %H:%M:%S},{value}")
    file.write_text("\n".join([*lines, "2025-01-08 00:00:00,broken", ""]))
    return file


def test_the_made_up_machines_are_watched_and_a_second_run_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([f"--out={tmp_path}"])
    said = capsys.readouterr().out
    first = {name: (tmp_path / name).read_bytes() for name in OUTPUTS}
    raised = alerts(tmp_path)
    assert len(read_jsonl(tmp_path / "results.jsonl")) == 3 * 21 * 24
    assert "2 of 2 failures alerted, 0 false alarms" in said
    assert len(raised) == 2
    main([f"--out={tmp_path}"])
    assert capsys.readouterr().out.splitlines()[-1] == "0 decided, 1512 replayed, 0 tool calls"
    assert {name: (tmp_path / name).read_bytes() for name in OUTPUTS} == first
    assert alerts(tmp_path) == raised


def test_a_file_with_labels(tmp_path: Path, readings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps([["2025-01-10 16:00:00", "2025-01-11 02:00:00"], ["2025-01-07", "2025-01-08"]]))
    main([f"--input={readings}", f"--labels={labels}", f"--out={tmp_path}"])
    said = capsys.readouterr().out
    assert "failure 2025-01-10 16:00 to 2025-01-11 02:00: alerted 2025-01-10 21:00, 0.0 h before the middle" in said
    assert "failure 2025-01-07 00:00 to 2025-01-08 00:00: missed" in said
    assert [(alert.device, alert.severity) for alert in alerts(tmp_path)] == [("press", "critical")]
    results = read_jsonl(tmp_path / "results.jsonl")
    assert [result["output"]["status"] for result in results[-6:]] == ["watch", "watch", "alert"] + ["known"] * 3
    assert {result["output"]["decided_by"] for result in results} == {"rule:calm", NAME}
    assert [failure["reason"] for failure in read_jsonl(tmp_path / "failures.jsonl")] == ["invalid_event"]


def test_repeated_bundles_raise_no_second_alert(tmp_path: Path, readings: Path) -> None:
    main([f"--input={readings}", f"--out={tmp_path / 'one'}"])
    main([f"--input={readings}", f"--out={tmp_path / 'two'}", "--direct_runner_bundle_repeat=1"])
    for name in ("results.jsonl", "failures.jsonl", "duplicates.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert alerts(tmp_path / "two") == alerts(tmp_path / "one")
    assert len(alerts(tmp_path / "two")) == 1


def test_longer_windows(tmp_path: Path, readings: Path) -> None:
    main([f"--input={readings}", f"--out={tmp_path}", "--window-hours=6"])
    results = read_jsonl(tmp_path / "results.jsonl")
    assert len(results) == 20
    assert {result["event"]["count"] for result in results} == {12}
    assert [result["output"]["status"] for result in results[-2:]] == ["normal", "watch"]


def test_the_agent_can_be_sent_to_workers(tmp_path: Path) -> None:
    agent = pickle.loads(pickle.dumps(sensor_agent(MODEL, partial(AlertLog, str(tmp_path / "alerts.db")))))
    end = START + timedelta(hours=1)
    event = {"device": "d", "start": START, "end": end, "count": 1, "mean": 1, "std": 0, "min": 1, "max": 1, "slope": 0}
    assert agent.run_sync(event, key="d").output.status == "normal"
