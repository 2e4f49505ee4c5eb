"""Fault points: a worker process ends at the place that a test names, and nothing is done twice by the next one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest

from beam_agents.engine.fault_points import FAULT_VARIABLE, FaultPoints
from beam_agents.errors import ConfigurationError
from beam_agents.ledger.records import Effect, RunKey
from beam_agents.testing import CRASH_STATUS, FAULT_POINTS, FaultPoint, crash_at, crash_at_each

PROGRAM = Path(__file__).with_name("crashing_worker.py")
RUN = RunKey("scope", "agent", 1, '"k"', "1")


def effect(path: str = "0", kind: str = "tool") -> Effect:
    return Effect(path, 1, kind, "name", "digest", "once", None)


class Ended(BaseException):
    """In the place of the end of the process."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(status: int) -> None:
        assert status == CRASH_STATUS
        raise Ended

    monkeypatch.setattr("os._exit", end)


def ended(points: FaultPoints, point: FaultPoint, at: Effect | None) -> bool:
    try:
        points.reached(point, RUN, at)
    except Ended:
        return True
    return False


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("crashes")
    done = subprocess.run([sys.executable, PROGRAM, folder], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return cast(dict[str, Any], json.loads(done.stdout))


AFTER_CRASH: dict[str, tuple[int, str | None, bool]] = {
    "after_intent": (0, None, False),
    "before_call": (0, None, False),
    "after_call": (1, None, False),
    "after_outcome": (1, "ok", False),
    "after_close": (1, "ok", True),
    "in_parallel": (1, "ok", False),
}
"""How often the first of two tools was called, what the ledger says of it, and whether the run is closed."""


@pytest.mark.parametrize("point", FAULT_POINTS)
def test_a_worker_dies_there_and_the_next_does_nothing_twice(report: dict[str, Any], point: str) -> None:
    seen, crash = report[point], report[point]["after_crash"]
    assert seen["crashed"] == CRASH_STATUS
    assert (crash["calls"].count("first"), crash["outcomes"]["first.1"], crash["closed"]) == AFTER_CRASH[point]
    assert crash["answer"] == ""
    if point == "in_parallel":
        assert crash["outcomes"]["second.1"] is None
    assert seen["ended"] == 0
    assert Counter(seen["in_the_end"]["calls"]) == {"model": 2, "first": 1, "second": 1}
    assert (seen["in_the_end"]["closed"], seen["in_the_end"]["answer"]) == (True, "answered")


def test_nothing_happens_when_none_is_asked_for(ends: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FAULT_VARIABLE, raising=False)
    points = FaultPoints.from_environment()
    assert points.point == ""
    assert not any(ended(points, point, effect()) for point in FAULT_POINTS)


def test_the_environment_names_the_point_and_the_time(ends: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in crash_at("after_call", time=3).items():
        monkeypatch.setenv(name, value)
    points = FaultPoints.from_environment()
    assert not ended(points, "before_call", effect())
    assert [ended(points, "after_call", effect()) for _ in range(4)] == [False, False, True, False]


def test_only_the_named_kind_of_effect_counts(ends: None) -> None:
    points = FaultPoints(crash_at("after_call", kind="tool")[FAULT_VARIABLE])
    assert [ended(points, "after_call", effect(kind=kind)) for kind in ("model", "sleep", "tool")] == [
        False,
        False,
        True,
    ]


def test_a_run_has_no_kind(ends: None) -> None:
    assert ended(FaultPoints(crash_at("after_close", kind="tool")[FAULT_VARIABLE]), "after_close", None)


def test_each_place_is_remembered_across_processes(ends: None, tmp_path: Path) -> None:
    setting = crash_at_each("before_call", tmp_path / "places")[FAULT_VARIABLE]
    assert [ended(FaultPoints(setting), "before_call", effect(path)) for path in ("0", "0", "1.0", "1", "1.0")] == [
        True,
        False,
        True,
        True,
        False,
    ]


NOTHING = ["after_call", "after_call:", "after_call:0", "after_call:-1", "after_call:each", "after_call:each:", ":1"]
NOTHING += ["after_call:3:file", "nowhere:1", "after_call@:1", "after_call@sleep:1"]


@pytest.mark.parametrize("setting", NOTHING)
def test_a_setting_that_means_nothing_is_refused(setting: str) -> None:
    with pytest.raises(ConfigurationError, match=FAULT_VARIABLE) as caught:
        FaultPoints(setting)
    assert repr(setting) in str(caught.value)
    assert "after_intent" in str(caught.value)


def test_a_mistake_is_found_where_the_crash_is_asked_for() -> None:
    with pytest.raises(ConfigurationError, match="'after_lunch:1'"):
        crash_at(cast(FaultPoint, "after_lunch"))
    with pytest.raises(ConfigurationError, match="'after_call:0'"):
        crash_at("after_call", time=0)
