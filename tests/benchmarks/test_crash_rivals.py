"""The rivals of the crash yardstick: what can be tested of them without their environments, and a pass of each with."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import astuple
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.crash import __main__ as yardstick
from benchmarks.crash.client import Server, running_server
from benchmarks.crash.ours import OURS
from benchmarks.crash.passes import Pass
from benchmarks.crash.rivals import install, worker
from benchmarks.crash.rivals.crashing import CRASHED, Calls, Faults
from benchmarks.crash.rivals.systems import RIVALS, Rival
from benchmarks.crash.rivals.yardstick import Call
from benchmarks.crash.systems import SYSTEMS, installed
from benchmarks.crash.tables import Row, as_json

ROOT = Path(__file__).parents[2]
SCENARIO = "multi_turn_base_50"

needs_scenarios = pytest.mark.skipif(
    find_spec("bfcl_eval") is None, reason="needs the benchmark: pip install --no-deps bfcl-eval mpmath"
)


# ---- without their environments ----


@pytest.mark.parametrize("system", worker.PROGRAMS)
def test_each_program_is_there(system: str) -> None:
    """It cannot be imported here: its framework is missing."""
    module, _, name = worker.PROGRAMS[system].partition(":")
    file = Path(worker.__file__).with_name(f"{module}.py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    compile(tree, str(file), "exec")
    (program,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    assert [argument.arg for argument in program.args.args] == ["scenario", "faults", "folder"]
    assert system in SYSTEMS


@pytest.mark.parametrize("name", install.ENVIRONMENTS)
def test_each_environment_is_pinned(name: str) -> None:
    pins = Path(install.__file__).with_name(f"{name}.txt").read_text(encoding="utf-8").split()
    assert pins
    assert all(len(pin.split("==")) == 2 for pin in pins)


def test_rivals_are_compared_where_they_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(install.FOLDER_VARIABLE, str(tmp_path))
    assert installed() == list(OURS)
    for name in install.ENVIRONMENTS:
        python = install.python_of(tmp_path, name)
        python.parent.mkdir(parents=True)
        python.touch()
    assert installed() == [*OURS, *RIVALS]


def test_a_rival_that_is_not_installed_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(install.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"is missing: python -m benchmarks\.crash\.rivals install"):
        RIVALS["dbos"](Pass("http://127.0.0.1:1", SCENARIO, "none", tmp_path))


def test_an_unknown_system_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        yardstick.main([f"--out={tmp_path}", "--systems=ours,nobody"])
    assert "there is no system 'nobody'; there is: ours, " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_few_scenarios_are_taken_from_all_parts() -> None:
    assert yardstick.spread([str(number) for number in range(10)], 3) == ["0", "3", "6"]
    assert yardstick.spread(["a", "b"], 200) == ["a", "b"]


class Died(BaseException):
    """Instead of the end of the process."""


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(status: int) -> None:
        assert status == CRASHED
        raise Died

    monkeypatch.setattr(os, "_exit", die)


class Tools:
    """A scenario whose tools say their names, after what a test does meanwhile."""

    def __init__(self) -> None:
        self.meanwhile: list[Any] = []

    def call(self, call: Call) -> str:
        for action in self.meanwhile[:1]:
            self.meanwhile.clear()
            action()
        return call.tool


def calls_at(point: str, folder: Path, tools: Tools, *, records_each: bool = True) -> Calls:
    scenario: Any = tools
    return Calls(scenario, Faults(point, folder), records_each=records_each)


@pytest.mark.usefixtures("mortal")
@pytest.mark.parametrize("point", ["after_intent", "before_call", "after_call"])
def test_a_process_dies_at_each_call_once(tmp_path: Path, point: str) -> None:
    for boundary in ("0.0.0", "0.1.0"):
        with pytest.raises(Died):
            calls_at(point, tmp_path, Tools()).make(Call(boundary, "look", {}))
        assert calls_at(point, tmp_path, Tools()).make(Call(boundary, "look", {})) == "look"


@pytest.mark.usefixtures("mortal")
def test_a_process_dies_after_what_it_has_made_itself_is_recorded(tmp_path: Path) -> None:
    calls = calls_at("after_outcome", tmp_path, Tools())
    calls.recorded("0.0.0")
    calls.make(Call("0.0.0", "look", {}))
    with pytest.raises(Died):
        calls.recorded("0.0.0")


@pytest.mark.usefixtures("mortal")
@pytest.mark.parametrize("records_each", [True, False])
def test_a_process_dies_while_a_call_beside_it_is_in_flight(tmp_path: Path, records_each: bool) -> None:
    tools = Tools()
    calls = calls_at("in_parallel", tmp_path, tools, records_each=records_each)
    calls.make(Call("0.0.0", "look", {}))
    calls.recorded("0.0.0")  # no other one is in flight

    def beside() -> None:
        calls.make(Call("0.1.1", "look", {}))
        calls.recorded("0.1.1")

    tools.meanwhile.append(beside)
    with pytest.raises(Died):
        calls.make(Call("0.1.0", "look", {}))


# ---- with the server ----


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


@needs_scenarios
def test_each_place_has_conversations_of_its_own(server: Server) -> None:
    one, other = Server(f"{server.url}/one/none"), Server(f"{server.url}/other/none")
    for place in (one, other):
        place.post("/begin", scenario=SCENARIO)
    one.post("/model", scenario=SCENARIO, position=0)
    one.post("/model", scenario=SCENARIO, position=0)
    assert [place.get("/verdict", scenario=SCENARIO)["paid_twice"] for place in (one, other)] == [1, 0]
    with pytest.raises(RuntimeError, match="was not begun"):
        Server(f"{server.url}/third").get("/verdict", scenario=SCENARIO)


PROGRAM = """
import json, sys
from pathlib import Path
from benchmarks.crash.passes import Pass
from benchmarks.crash.rivals.worker import pass_over

def program(scenario, faults, folder):
    for number in range(3):
        faults.reach("before_call", str(number))
    if faults.point == "after_close":
        raise ValueError("cannot go on")

url, name, point, folder = sys.argv[1:]
print(json.dumps(pass_over(program, Pass(url, name, point, Path(folder)))))
"""


@needs_scenarios
@pytest.mark.parametrize(
    ("point", "said"), [("none", '[0, ""]'), ("before_call", '[3, ""]'), ("after_close", "ValueError: cannot go on")]
)
def test_a_worker_starts_again_after_each_crash(server: Server, tmp_path: Path, point: str, said: str) -> None:
    command = [sys.executable, "-c", PROGRAM, server.url, SCENARIO, point, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert said in done.stdout


@needs_scenarios
@pytest.mark.parametrize("system", RIVALS)
def test_a_pass_of_each_rival(server: Server, tmp_path: Path, system: str) -> None:
    rival = Rival(system, RIVALS[system].environment)
    if not install.python_of(install.folder(), rival.environment).exists():
        pytest.skip(f"needs the rivals: python -m benchmarks.crash.rivals install, ${install.FOLDER_VARIABLE}")
    rows = []
    for point in ("none", "after_call"):
        place, folder = Server(f"{server.url}/{system}/{point}"), tmp_path / point
        place.post("/begin", scenario=SCENARIO)
        folder.mkdir()
        passed = rival(Pass(place.url, SCENARIO, point, folder))
        rows.append(Row.of(system, point, passed, place.get("/verdict", scenario=SCENARIO), 1.0))
    rival.close()
    undisturbed, crashed = rows
    assert astuple(undisturbed)[2:9] == (1, 1, 0, 0, 0, 0, 0)
    assert (crashed.failed, crashed.crashes > 0, crashed.duplicate_effects > 0) == (0, True, True)
    assert {row["fault_point"] for row in as_json(rows)} == {"none", "after_call"}
