"""The crash yardstick in its short form: some conversations, all fault points, ours alone, and how it judges."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from beam_agents.testing import FAULT_POINTS

if find_spec("bfcl_eval") is None:
    pytest.skip("needs the benchmark: pip install --no-deps bfcl-eval mpmath", allow_module_level=True)

from benchmarks.crash.client import Server, running_server
from benchmarks.crash.effects import CHANGING
from benchmarks.crash.passes import Passed
from benchmarks.crash.scenarios import Scenario, Simulators, entries, scenario
from benchmarks.crash.tables import Row, as_json, as_text, summed

ROOT = Path(__file__).parents[2]
SCENARIOS = 4


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


def test_nothing_is_done_twice_at_any_fault_point(tmp_path: Path) -> None:
    """In a process of its own: it forks, which a process with threads should not."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.crash",
        f"--out={tmp_path}",
        "--systems=ours",
        f"--scenarios={SCENARIOS}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    rows = {row["fault_point"]: row for row in json.loads((tmp_path / "crash.json").read_text())}
    assert set(rows) == {"none", *FAULT_POINTS}
    for point, row in rows.items():
        assert point in done.stdout
        assert row["system"] == "ours"
        assert (row["scenarios"], row["right_states"]) == (SCENARIOS, SCENARIOS), point
        twice = (row["duplicate_effects"], row["answers_paid_twice"], row["in_doubt"], row["failed"])
        assert twice == (0, 0, 0, 0), point
        assert (row["crashes"] > 0) == (point != "none")


def test_the_table_says_which_tools_change_a_state() -> None:
    """A tool that is called in none of these conversations is not seen to change anything."""
    changing, called = set(), set()
    for name in list(entries())[::10]:
        simulators = Simulators(entries()[name])
        for call in scenario(name).calls:
            before = simulators.digest()
            simulators.call(call.tool, call.arguments)
            called.add(call.tool)
            if simulators.digest() != before:
                changing.add(call.tool)
        assert simulators.digest() == scenario(name).final_state
    assert changing <= CHANGING
    assert len(called) > 30


@pytest.fixture
def told() -> Scenario:
    return scenario("multi_turn_base_50")


def send(server: Server, told: Scenario, at: int, *, effect: str = "once", key: str = "") -> Any:
    call = told.calls[at]
    return server.post(
        "/call",
        scenario=told.id,
        call=call.position,
        key=key,
        tool=call.tool,
        arguments=call.arguments,
        effect=effect,
    )


def begin(server: Server, told: Scenario) -> None:
    server.post("/begin", scenario=told.id)


def verdict(server: Server, told: Scenario) -> Any:
    return server.get("/verdict", scenario=told.id)


def test_the_ground_truth_leaves_the_right_state(server: Server, told: Scenario) -> None:
    begin(server, told)
    assert not verdict(server, told)["right"]
    for at in range(len(told.calls)):
        send(server, told, at)
    came = verdict(server, told)
    assert (came["right"], came["duplicates"], len(came["log"])) == (True, 0, len(told.calls))


def test_a_call_that_comes_twice_is_applied_and_counted_twice(server: Server, told: Scenario) -> None:
    begin(server, told)
    at = next(at for at, call in enumerate(told.calls) if call.tool in CHANGING)
    for _ in range(2):
        send(server, told, at, key="k")
    assert verdict(server, told)["duplicates"] == 1
    assert len(verdict(server, told)["log"]) == 2


def test_an_idempotent_call_is_made_once_for_its_key(server: Server, told: Scenario) -> None:
    begin(server, told)
    results = [send(server, told, 0, effect="idempotent", key=key) for key in ("k", "k", "other")]
    assert results[0] == results[1]
    assert len(verdict(server, told)["log"]) == 2


def test_reconcile_is_told_what_happened(server: Server, told: Scenario) -> None:
    begin(server, told)
    assert server.post("/asked", scenario=told.id, key="k") == {"happened": False, "result": None}
    result = send(server, told, 0, key="k")["result"]
    assert server.post("/asked", scenario=told.id, key="k") == {"happened": True, "result": result}


def test_the_model_follows_the_ground_truth_and_is_paid_for_each_request(server: Server, told: Scenario) -> None:
    begin(server, told)
    said = [server.post("/model", scenario=told.id, position=at) for at in range(len(told.turns[0].steps) + 1)]
    assert [call["name"] for step in said[:-1] for call in step["calls"]] == [
        call.tool for step in told.turns[0].steps for call in step
    ]
    assert "answer" in said[-1]
    assert verdict(server, told)["paid_twice"] == 0
    server.post("/model", scenario=told.id, position=0)
    assert verdict(server, told)["paid_twice"] == 1
    with pytest.raises(RuntimeError, match="after the conversation's end"):
        server.post("/model", scenario=told.id, position=1000)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/begin", {"scenario": "none"}), ("/asked", {"scenario": "none", "key": "k"})],
)
def test_an_unknown_conversation_is_refused(server: Server, path: str, body: dict[str, str]) -> None:
    with pytest.raises(RuntimeError, match=r"404.*'none'"):
        server.post(path, **body)


def test_rows_of_scenarios_are_summed() -> None:
    verdict = {"right": True, "duplicates": 2, "paid_twice": 1}
    rows = [
        Row.of("ours", "after_call", Passed(3, in_doubt=1, failed=1), verdict, 0.26),
        Row.of("ours", "after_call", Passed(1), verdict | {"right": False}, 0.5),
        Row.of("ours", "after_close", Passed(0), verdict, 1.0),
    ]
    first, second = as_json(summed(rows))
    assert first == {
        "system": "ours",
        "fault_point": "after_call",
        "scenarios": 2,
        "right_states": 1,
        "duplicate_effects": 4,
        "answers_paid_twice": 2,
        "in_doubt": 1,
        "failed": 1,
        "crashes": 4,
        "seconds": 0.8,
    }
    assert second["fault_point"] == "after_close"
    assert "right states" in as_text(summed(rows))
