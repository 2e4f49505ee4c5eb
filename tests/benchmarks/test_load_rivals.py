"""The sides of the measurement of durable steps, and what is said of rivals that are not here."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from pathlib import Path

import pytest

from benchmarks.crash.rivals.install import FOLDER_VARIABLE, folder, python_of
from benchmarks.load import rivals_flink_agents, steps
from benchmarks.load.rivals.step_run import RESULT, WARM_STEPS
from benchmarks.load.server import running_server

LOGGER = "benchmarks.load"


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without environments."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "rivals"))
    return tmp_path / "rivals"


def needs(environment: str) -> pytest.MarkDecorator:
    python = python_of(folder(), environment)
    return pytest.mark.skipif(not python.exists(), reason=f"needs {python}, see $BEAM_AGENTS_RIVALS")


def test_each_step_of_each_run_is_on_the_disk(tmp_path: Path) -> None:
    ran = steps.ours(tmp_path / "ledger.db", runs=3, steps=7)
    assert ran.seconds > 0
    file = sqlite3.connect(tmp_path / "ledger.db")
    made = file.execute("SELECT value, count(*) FROM effects WHERE status = 'ok' GROUP BY value").fetchall()
    file.close()
    assert made == [(f'"{RESULT}"', 3 * 7 + WARM_STEPS)]


def test_the_floor_commits_an_intent_and_an_outcome_for_each_step(tmp_path: Path) -> None:
    ran = steps.bare_sqlite(tmp_path / "bare.db", 100)
    assert ran.stored_bytes / 100 > len(RESULT)
    file = sqlite3.connect(tmp_path / "bare.db")
    assert file.execute("SELECT count(*) FROM steps WHERE value = ?", (RESULT,)).fetchone() == (100 + WARM_STEPS,)
    file.close()


def test_steps_without_rivals_say_why(nowhere: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        figures = steps.measure(tmp_path, repeats=2, steps=10, runs=2)
    assert f"no figures of langgraph and dbos: {nowhere}" in caplog.text
    assert figures["one_run_over_langgraph"] is None
    assert figures["one_run_over_dbos"] is None
    assert figures["dbos_bytes_per_step"] is None
    ratios = figures["one_run_over_bare_sqlite_all"]
    assert isinstance(ratios, list)
    assert len(ratios) == 2
    for name in ("one_run_over_bare_sqlite", "hundred_runs_over_bare_sqlite", "one_run_bytes_per_step"):
        value = figures[name]
        assert isinstance(value, float)
        assert value > 0


@needs("agents")
@pytest.mark.parametrize("name", ["langgraph", "dbos"])
def test_a_rival_makes_its_steps(name: str, tmp_path: Path) -> None:
    ran = steps.rival(name, tmp_path / "rival.db", 30)
    assert ran.seconds > 0
    assert ran.stored_bytes > 0


@needs("agents")
def test_a_rival_that_fails_says_what_it_printed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"'dbos' ended with 1:\n(.|\n)*unable to open database file"):
        steps.rival("dbos", tmp_path / "no folder" / "rival.db", 30)


def test_flink_agents_that_is_not_installed_gives_no_figure(nowhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, LOGGER):
        assert rivals_flink_agents.events_per_s("http://127.0.0.1:1/v1", 1) is None
    assert f"{nowhere}" in caplog.text
    assert "python -m benchmarks.load.rivals_flink_agents install" in caplog.text


def test_a_job_of_flink_agents_that_ends_says_why(nowhere: Path) -> None:
    """Its environment here is an interpreter without it."""
    if shutil.which("java") is None:
        pytest.skip("needs java")
    python = python_of(nowhere, rivals_flink_agents.ENVIRONMENT)
    (python.parents[1] / "lib" / "python3" / "site-packages").mkdir(parents=True)
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho no such release >&2\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(RuntimeError, match="ended with 3:\nno such release"):
        rivals_flink_agents.events_per_s("http://127.0.0.1:1/v1", 1)


@needs(rivals_flink_agents.ENVIRONMENT)
@pytest.mark.long
@pytest.mark.timeout(600)
def test_flink_agents_makes_the_calls_of_the_workload() -> None:
    with running_server() as server:
        rate = rivals_flink_agents.events_per_s(server.base_url, 50)
        assert server.stats().calls == 2 * (rivals_flink_agents.WARM_EVENTS + 50)
    assert rate is not None
    assert rate > 0
