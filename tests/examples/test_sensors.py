"""The parts of the sensors example: windows, baseline, alert log, rules, labels, and the agent without Beam."""

from __future__ import annotations

import json
import random
import sqlite3
import statistics
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from beam_agents import CannotHappen, FailureReason, Happened, RunContext
from beam_agents.ledger.memory import MemoryLedger
from examples.sensors import generator, rules
from examples.sensors.agent import alert_status, calm, raise_alert, sensor_agent, window_id
from examples.sensors.alerts import Alert, AlertLog
from examples.sensors.labels import Failure, read_failures, report
from examples.sensors.state import RECENT, DeviceState, add_window, usual
from examples.sensors.windows import Statistics, WindowStatistics, WindowStats

START = datetime(2025, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def window(number: int, mean: float, device: str = "d") -> WindowStats:
    start = START + number * HOUR
    numbers = {"count": 6, "mean": mean, "std": 0.1, "min": mean, "max": mean, "slope": 0.0}
    return WindowStats(device=device, start=start, end=start + HOUR, **numbers)


def after(means: list[float]) -> DeviceState:
    state = DeviceState()
    for number, mean in enumerate(means):
        state = add_window(state, window(number, mean))
    return state


QUIET = [50.0 + number % 5 for number in range(100)]  # median 52, MAD 1


# ---- windows ----


def test_statistics_are_those_of_the_standard_library() -> None:
    source = random.Random(1)
    readings = [(1_700_000_000.0 + 300 * n, round(source.gauss(80, 5), 6)) for n in range(12)]
    combine = Statistics()
    sums = combine.create_accumulator()
    for reading in readings:
        sums = combine.add_input(sums, reading)
    values = [value for _, value in readings]
    slope = statistics.linear_regression([t / 3600 for t, _ in readings], values).slope
    assert combine.extract_output(sums) == {
        "count": 12,
        "mean": pytest.approx(statistics.mean(values), abs=1e-6),
        "std": pytest.approx(statistics.stdev(values), abs=1e-6),
        "min": min(values),
        "max": max(values),
        "slope": pytest.approx(slope, abs=1e-5),
    }


def test_statistics_do_not_depend_on_how_they_are_merged() -> None:
    source = random.Random(2)
    readings = [(float(n), source.uniform(-1, 1)) for n in range(50)]
    combine = Statistics()
    found = set()
    for _ in range(20):
        source.shuffle(readings)
        cut = source.randrange(51)
        halves = []
        for part in (readings[:cut], readings[cut:], []):
            sums = combine.create_accumulator()
            for reading in part:
                sums = combine.add_input(sums, reading)
            halves.append(sums)
        found.add(json.dumps(combine.extract_output(combine.merge_accumulators(halves))))
    assert len(found) == 1


def test_a_single_reading_has_neither_spread_nor_slope() -> None:
    combine = Statistics()
    numbers = combine.extract_output(combine.add_input(combine.create_accumulator(), (5.0, -2.5)))
    assert numbers == {"count": 1, "mean": -2.5, "std": 0.0, "min": -2.5, "max": -2.5, "slope": 0.0}


def test_rows_become_windows_of_devices_and_dead_letters() -> None:
    rows: list[dict[str, Any]] = [
        {"timestamp": "2025-01-01 00:00:00", "value": "1"},
        {"timestamp": "2025-01-01T01:59:59+01:00", "value": "3"},
        {"timestamp": "2025-01-01 01:00:00", "value": "5"},
        {"timestamp": "2025-01-01 01:30:00", "value": "7", "device": "b"},
        {"timestamp": "yesterday", "value": "1", "device": "b"},
        {"timestamp": "2025-01-01 01:00:00", "value": "nan"},
        {"timestamp": "2025-01-01 01:00:00"},
    ]
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        windows, bad = pipeline | beam.Create(rows) | WindowStatistics(HOUR, device="a")
        seen = windows | beam.MapTuple(
            lambda key, stats, edge=beam.DoFn.WindowParam, at=beam.DoFn.TimestampParam: (
                key,
                stats.device,
                window_id(stats),
                stats.count,
                stats.mean,
                stats.slope,
                float(edge.end) == stats.end.timestamp() and edge.start <= at < edge.end,
            )
        )
        assert_that(
            seen,
            equal_to(
                [
                    ("a", "a", "a@2025-01-01T01:00:00+00:00", 2, 2.0, 2.000556, True),
                    ("a", "a", "a@2025-01-01T02:00:00+00:00", 1, 5.0, 0.0, True),
                    ("b", "b", "b@2025-01-01T02:00:00+00:00", 1, 7.0, 0.0, True),
                ]
            ),
            "windows",
        )
        letters = bad | beam.MapTuple(lambda key, failure: (key, failure.reason, failure.message))
        assert_that(letters, has_bad_readings, "bad")


def has_bad_readings(letters: list[tuple[Any, Any, str]]) -> None:
    assert sorted(str(key) for key, _, _ in letters) == ["None", "None", "b"]
    assert {reason for _, reason, _ in letters} == {FailureReason.INVALID_EVENT}
    assert sorted(message.split(": ")[1] for _, _, message in letters) == ["timestamp", "value", "value"]


# ---- baseline ----


def test_the_baseline_is_median_and_scaled_mad() -> None:
    found = usual([1.0, 2.0, 3.0, 4.0, 1000.0])
    assert (found.median, found.spread, found.windows) == (3.0, 1.4826, 5)
    assert found.score(3 - 1.4826) == -1.0
    assert usual([5.0] * 10).score(5.0) == 0.0


def test_nothing_is_judged_before_three_days() -> None:
    assert after([*QUIET[:71], 1000.0]).baseline is None
    assert after([*QUIET[:72], 1000.0]).baseline is not None


def test_a_window_is_judged_by_those_before_it() -> None:
    state = after([*QUIET, 60.0])
    assert state.baseline == usual(QUIET)
    assert state.score == pytest.approx((60 - 52) / 1.4826, abs=0.01)


def test_state_stays_bounded() -> None:
    state = after([float(number) for number in range(400)])
    assert (len(state.means), state.means[0]) == (336, 64.0)
    assert len(state.recent) == RECENT
    assert state.recent[-1].mean == 399.0


def test_calm_windows_need_no_model() -> None:
    decided = calm(after([*QUIET, 53.0]), window(100, 53.0))
    assert decided is not None
    assert (decided.status, decided.decided_by) == ("normal", "rule:calm")
    assert calm(after([*QUIET, 60.0]), window(100, 60.0)) is None
    assert calm(after([*QUIET, 40.0]), window(100, 40.0)) is None


# ---- alert log ----


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AlertLog]:
    opened = AlertLog(str(tmp_path / "alerts.db"))
    yield opened
    opened.close()


def alert(number: int, device: str = "d") -> Alert:
    return Alert(device=device, raised_for=START + number * HOUR, severity="warning", reason="hot")


def test_the_newest_alert_is_that_of_the_device_before_the_window(log: AlertLog) -> None:
    for number in (1, 5, 9):
        log.raise_alert(f"r{number}", alert(number))
    log.raise_alert("other", alert(6, "other"))
    assert log.newest("d", before=START + 9 * HOUR) == alert(5)
    assert log.newest("d", before=START + 1 * HOUR) is None
    assert [found.raised_for for found in log.all()] == [START + n * HOUR for n in (9, 6, 5, 1)]


def test_a_request_that_was_made_is_found(log: AlertLog) -> None:
    log.raise_alert("r", alert(1))
    assert log.find_or_call_off("r") == alert(1)
    with pytest.raises(sqlite3.IntegrityError):
        log.raise_alert("r", alert(1))


def test_a_request_that_was_called_off_is_turned_away_when_it_arrives(log: AlertLog) -> None:
    assert log.find_or_call_off("r") is None
    with pytest.raises(sqlite3.IntegrityError):
        log.raise_alert("r", alert(1))
    assert log.find_or_call_off("r") is None
    assert log.all() == []


def test_reconcile_says_what_became_of_an_alert(log: AlertLog) -> None:
    def context(attempt: int) -> RunContext[WindowStats, DeviceState, AlertLog]:
        made = RunContext(key="d", event=window(1, 70.0), state=DeviceState(), deps=log, run_id="r")
        return made.for_call("call-1", attempt)

    assert alert_status(context(1), "warning", "hot") == CannotHappen()
    with pytest.raises(sqlite3.IntegrityError):
        raise_alert(context(1), "warning", "hot")
    made = raise_alert(context(2), "warning", "hot")
    assert alert_status(context(2), "warning", "hot") == Happened(made)
    assert log.all() == [made]


# ---- labels, generator ----


def test_the_report_tells_hits_misses_and_false_alarms(tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    file.write_text(
        '[["2025-01-01 10:00:00.000000", "2025-01-01 20:00:00"], ["2025-01-03 00:00:00", "2025-01-03 02:00:00"]]'
    )
    failures = read_failures(file)
    lines = report(failures, [alert(30), alert(12), alert(16)], timedelta(weeks=2))
    assert lines == [
        "failure 2025-01-01 10:00 to 2025-01-01 20:00: alerted 2025-01-01 12:00, 3.0 h before the middle",
        "failure 2025-01-03 00:00 to 2025-01-03 02:00: missed",
        "1 of 2 failures alerted, 1 false alarms in 2.0 weeks (0.50 a week)",
    ]


def test_a_failure_of_one_device_is_not_found_by_an_alert_for_another() -> None:
    failure = Failure(device="d", start=START, end=START + 5 * HOUR)
    assert failure.holds(alert(3))
    assert not failure.holds(alert(3, "other"))
    assert Failure(start=START, end=START + 5 * HOUR).holds(alert(3, "other"))


def test_the_generator_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    first = generator.write_readings(tmp_path / "a.csv", seed=3)
    assert generator.write_readings(tmp_path / "b.csv", seed=3) == first
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert generator.write_readings(tmp_path / "c.csv", seed=4) != first
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 1 + 21 * 144 * 3


# ---- the agent, without Beam ----


def test_the_offline_model_alerts_after_three_windows_and_once_a_day(tmp_path: Path) -> None:
    path = str(tmp_path / "alerts.db")
    agent = sensor_agent(rules.MODEL, lambda: AlertLog(path))
    ledger, statuses = MemoryLedger(), []
    for number, mean in enumerate(QUIET + [70.0] * 30):
        event = window(number, mean)
        statuses.append(agent.run_sync(event, key="d", event_id=window_id(event), ledger=ledger).output.status)
    assert set(statuses[:100]) == {"normal"}
    statuses = statuses[100:]
    assert statuses[:4] == ["watch", "watch", "alert", "known"]
    assert statuses.count("alert") == 2
    log = AlertLog(path)
    assert [found.raised_for for found in log.all()] == [START + 127 * HOUR, START + 103 * HOUR]
    assert log.all()[-1].severity == "critical"
    log.close()
