"""The sensors from PostgreSQL's changes to a webhook on Flink: its commands as processes, raw counts; and its parts."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import psycopg
import pytest
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import TimestampedValue

from beam_agents import RunAgent
from beam_agents.io import Identified
from beam_agents.io.changes import Change, Operation
from examples.production.folder import Folder, Running
from examples.sensors.production.account import Account, account
from examples.sensors.production.agents import WATCHES, device_agent
from examples.sensors.production.commands import main
from examples.sensors.production.duty import make_duty, received, take
from examples.sensors.production.feed import DEVICES, HISTORY, given, history, in_trouble, troubles
from examples.sensors.production.memory import KEPT, DeviceState, is_open, quiet, remember
from examples.sensors.production.plant import PLANT, ROLE, Given, make_databases, make_tables, written
from examples.sensors.production.readings import Alert, Reading, Readings, Result, alert, assessed
from examples.sensors.production.rolling import EVERY, LENGTH, Rolling, RollingLevels
from examples.sensors.production.rules import MODELS
from runners.flink.cluster import FlinkCluster
from runners.flink.errors import FlinkUnavailable
from runners.flink.install import install_flink, install_job_server
from runners.flink.java import find_java
from runners.postgres import PostgresServer, PostgresUnavailable, install_postgres

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 300.0
PROGRAM = [sys.executable, "-m", "examples.sensors.production"]
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def command(folder: Path, name: str, *options: str) -> str:
    """Runs a command as users do; what it printed."""
    done = subprocess.run(
        [*PROGRAM, name, f"--folder={folder}", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, f"{name} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def installed() -> None:
    try:
        find_java()
        for install in (install_flink, install_job_server, install_postgres):
            install()
    except (FlinkUnavailable, PostgresUnavailable) as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


@pytest.fixture
def everything(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """The folder of a platform that runs, and its `up`."""
    installed()
    folder, log = tmp_path / "production", tmp_path / "up.log"
    with log.open("wb") as out:
        up = subprocess.Popen(
            [*PROGRAM, "up", f"--folder={folder}", "--rest-port=0"], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        until = time.monotonic() + LIMIT
        while b"It runs." not in log.read_bytes():
            assert up.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield folder, up
    finally:
        subprocess.run([*PROGRAM, "down", f"--folder={folder}"], cwd=ROOT, timeout=LIMIT, check=False)
        if up.poll() is None:
            up.kill()
        up.wait()
        print(log.read_text())


def running(folder: Path) -> Running:
    found = Folder(folder).running()
    assert found is not None
    return found


def outcomes(folder: Path) -> Account:
    """What came of the readings, when nothing is open any more."""
    noted = running(folder)
    until = time.monotonic() + LIMIT
    while (found := account(noted)).open or found.alerts_missing:
        assert time.monotonic() < until, found
        time.sleep(0.2)
    return found


def wait_for_a_checkpoint(folder: Path) -> None:
    cluster, job = FlinkCluster.load(folder / "flink"), running(folder).job
    until, before = time.monotonic() + LIMIT, cluster.newest_checkpoint(job)
    while cluster.newest_checkpoint(job) == before:
        assert time.monotonic() < until, cluster.report()
        time.sleep(0.1)


def wait_for_readings(folder: Path, number: int) -> None:
    until = time.monotonic() + LIMIT
    while written(running(folder).database("plant")) < number:
        assert time.monotonic() < until
        time.sleep(0.1)


def wrong_windows(plant: psycopg.Connection[Any], since: datetime) -> list[Any]:
    """Windows of the last readings that are not there, or do not count what stands in the table of readings."""
    return plant.execute(
        """
        WITH wanted AS (
            SELECT r.device, e.ending, count(*) AS readings, avg(r.value) AS mean
            FROM generate_series(date_bin('10 s', %(since)s, 'epoch') + interval '10 s',
                                 (SELECT max(taken) FROM readings), interval '10 s') AS e (ending)
            JOIN readings r ON r.taken >= e.ending - interval '1 min' AND r.taken < e.ending AND r.value <> 'NaN'
            GROUP BY 1, 2
        )
        SELECT * FROM wanted w LEFT JOIN rolling g USING (device, ending)
        WHERE w.readings IS DISTINCT FROM g.readings OR abs(w.mean - g.mean) > 0.00001
        """,
        {"since": since},
    ).fetchall()


@pytest.mark.flink
@pytest.mark.timeout(900)
def test_each_trouble_is_an_alert_once_though_a_worker_dies(
    everything: tuple[Path, subprocess.Popen[bytes]], capsys: pytest.CaptureFixture[str]
):
    folder, up = everything
    since = datetime.now(UTC)

    assert "500 readings written, 9 corrected" in command(folder, "feed", "--count=500", "--rate=200")
    wait_for_a_checkpoint(folder)
    feeding = subprocess.Popen(
        [*PROGRAM, "feed", f"--folder={folder}", "--count=300", "--rate=50"], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    wait_for_readings(folder, HISTORY + 600)
    os.kill(FlinkCluster.load(folder / "flink").workers()[0], signal.SIGKILL)
    assert feeding.wait(LIMIT) == 0
    found = outcomes(folder)

    fed = range(HISTORY + 800)
    broken = sum(math.isnan(given(0, number, NOON).value) for number in fed)
    alerts = [one for one in received(running(folder).database("duty")) if one.path == "/alerts"]
    assert Counter(one.body["device"] for one in alerts) == Counter(troubles(HISTORY, 800))
    assert len({one.body["run_id"] for one in alerts}) == len(alerts)
    assert found.statuses["alert"] == len(alerts) == found.alerts
    assert found.statuses["corrected"] == found.corrections == 14
    assert (found.readings, found.failures) == (len(fed), broken)
    assert (found.alerts_missing, found.alerts_twice, found.undelivered) == (0, 0, 0)

    with psycopg.connect(running(folder).database("plant"), autocommit=True) as plant:
        until = time.monotonic() + LIMIT
        while wrong := wrong_windows(plant, since):
            assert time.monotonic() < until, wrong
            time.sleep(0.5)

    assert Account.model_validate_json(command(folder, "status", "--json")).alerts == len(alerts)
    assert main(["show", f"--folder={folder}"]) == 0
    shown = capsys.readouterr().out
    assert all(one.body["summary"] in shown for one in alerts)
    assert main(["status", f"--folder={folder}"]) == 0
    assert "0 missing, 0 twice" in capsys.readouterr().out

    left = running(folder).folders
    processes = FlinkCluster.load(folder / "flink").processes()
    command(folder, "down")
    assert up.wait(LIMIT) == 0
    assert not folder.exists()
    assert not any(path.exists() for path in left)
    assert not any(process.alive() for process in processes)


def change(operation: Operation, value: float, number: int = 1, **others: Any) -> Readings:
    row = Reading(id=number, device="gate-1", kind="door", value=value, taken=NOON, version=1)
    if operation == "delete":
        return Change[Reading](operation=operation, table="public.readings", before=row)
    return Change[Reading](operation=operation, table="public.readings", after=row, **others)


def test_a_model_is_asked_once_when_a_trouble_begins():
    states = {device.device: DeviceState() for device in DEVICES}
    asked = []
    for number in range(HISTORY + 800):
        reading = given(1, number, NOON)
        if math.isnan(reading.value):
            continue
        event, watch = inserted(number, reading), WATCHES[reading.kind]
        state = states[reading.device] = remember(watch.score, states[reading.device], event)
        if quiet(watch.patience, state, event) is None:
            assert in_trouble(number)
            asked.append((reading.device, state.unusual // watch.patience))
    assert [device for device, time in asked if time == 1] == troubles(HISTORY, 800)
    assert all(len(state.readings) == KEPT for state in states.values())


def inserted(number: int, reading: Given) -> Readings:
    row = Reading(id=number, version=1, **reading._asdict())
    operation: Operation = "insert" if number >= HISTORY else "snapshot"
    return Change[Reading](operation=operation, table="public.readings", after=row)


def test_a_correction_takes_the_readings_place_and_a_withdrawn_one_goes():
    state = DeviceState()
    for number in range(KEPT + 5):
        state = remember(is_open, state, change("insert", 0, number))
    for number in (200, 201, 202):
        state = remember(is_open, state, change("insert", 1, number))
    assert [one.id for one in state.readings] == [*range(8, KEPT + 5), 200, 201, 202]
    assert state.unusual == 3

    corrected = remember(is_open, state, change("update", 0, 201))
    assert [one.id for one in corrected.readings] == [one.id for one in state.readings]
    assert corrected.unusual == 1
    withdrawn = remember(is_open, corrected, change("delete", 0, 201))
    assert withdrawn.unusual == 2
    assert len(withdrawn.readings) == KEPT - 1


@pytest.mark.parametrize("operation", ["snapshot", "update", "delete"])
def test_only_a_new_reading_is_a_cause_to_ask_a_model(operation: Operation):
    trouble = DeviceState(unusual=3)
    assert quiet(3, trouble, change(operation, 1)) is not None
    assert quiet(3, trouble, change("insert", 1)) is None
    assert quiet(4, trouble, change("insert", 1)) is not None


def test_windows_count_a_corrected_reading_as_it_is_now():
    first = Reading(id=1, device="oven-1", kind="temperature", value=180, taken=NOON, version=1)
    second = first.model_copy(update={"id": 2, "value": 190.0, "taken": NOON + EVERY})
    better = second.model_copy(update={"value": 184.0, "version": 2})
    gone = Reading(id=3, device="oven-2", kind="temperature", value=50, taken=NOON, version=1)
    changes = [
        Change[Reading](operation="insert", table="t", after=first),
        Change[Reading](operation="insert", table="t", after=second),
        Change[Reading](operation="update", table="t", before=second, after=better),
        Change[Reading](operation="insert", table="t", after=gone),
        Change[Reading](operation="delete", table="t", before=gone),
    ]
    both = {"readings": 2, "mean": 182.0, "std": round(math.sqrt(8), 6)}
    wanted = [
        ("oven-1", Rolling(ending=NOON + EVERY, readings=1, mean=180.0, std=None)),
        *(("oven-1", Rolling(ending=NOON + n * EVERY, **both)) for n in range(2, 7)),
        ("oven-1", Rolling(ending=NOON + LENGTH + EVERY, readings=1, mean=184.0, std=None)),
        *(("oven-2", Rolling(ending=NOON + n * EVERY, readings=0, mean=None, std=None)) for n in range(1, 7)),
    ]
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        events = [((each.row or gone).device, Identified(id=str(n), event=each)) for n, each in enumerate(changes)]
        assert_that(pipeline | beam.Create(events) | RollingLevels(), equal_to(wanted))


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    try:
        install_postgres()
    except PostgresUnavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    server = PostgresServer(wal_level="logical")
    try:
        server.start()
        make_databases(server.url(), "secret")
        make_tables(server.url("plant"), DEVICES, history(seed=0, now=datetime.now(UTC)))
        make_duty(server.url("duty"))
        yield server
    finally:
        server.remove()


def test_a_request_that_comes_again_is_counted_and_not_entered_again(postgres: PostgresServer):
    duty = postgres.url("duty")
    for key, body in (("a", {"n": 1}), ("a", {"n": 1}), ("b", {"n": 2})):
        take(duty, key, "/alerts", body)
    came = received(duty)
    assert [(one.key, one.body, one.times) for one in came] == [("a", {"n": 1}, 2), ("b", {"n": 2}, 1)]
    assert received(duty, behind=came[0].number) == came[1:]


@pytest.mark.parametrize(
    ("device", "wanted"),
    [
        ("oven-1", [("alert", "critical"), ("known", None)]),
        ("oven-2", [("watch", None), ("known", None)]),
        ("fan-1", [("alert", "warning"), ("known", None), ("known", None)]),
        ("gate-2", [("alert", "critical")]),
    ],
)
def test_the_agents_look_up_what_they_need(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, device: str, wanted: list[tuple[str, str | None]]
):
    monkeypatch.setenv(PLANT.variable, postgres.url("plant", ROLE, "secret"))
    with psycopg.connect(postgres.url("plant")) as plant:
        plant.execute("DELETE FROM rolling")
        plant.execute("INSERT INTO rolling VALUES ('oven-1', 'new', now(), 9, 196, 1)")
        plant.execute("INSERT INTO rolling VALUES ('oven-1', 'old', now() - interval '1 s', 9, 180, 1)")
    numbers = [number for number in range(HISTORY + 800) if given(1, number, NOON).device == device]
    readings = [(number, given(1, number, NOON + number * EVERY)) for number in numbers]
    pairs = [
        (device, Identified(id=str(number), event=inserted(number, reading)))
        for number, reading in readings
        if not math.isnan(reading.value)
    ]
    kind = readings[0][1].kind

    def check(results: list[tuple[str, Result]]) -> None:
        told = sorted((result for _, result in results if not result.skipped), key=lambda one: int(one.run_id))
        assert [(one.output.status, one.output.severity) for one in told] == wanted
        assert len(results) == len(pairs)
        for one in told:
            assert Alert(**alert(device, one)).reading == int(one.run_id) == assessed(one).reading

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        timed = beam.Map(lambda pair: TimestampedValue(pair, int(pair[1].id)))
        events = pipeline | beam.Create(pairs) | timed.with_output_types(tuple[str, Identified[Readings]])
        out = events | RunAgent(device_agent(kind, MODELS[kind]), ledger=None)
        assert_that(out.results, check)
        assert_that(out.failures, equal_to([]), label="no failures")


@pytest.mark.parametrize("option", ["--count=0", "--rate=0"])
def test_a_feed_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str):
    assert main(["feed", f"--folder={tmp_path}", option]) == 1
    assert option.partition("=")[0] in capsys.readouterr().err


def test_each_device_has_its_trouble_after_the_history():
    assert not any(in_trouble(number) for number in range(HISTORY))
    assert troubles(HISTORY, 800) == [device.device for device in DEVICES]
