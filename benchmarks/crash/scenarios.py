"""The scenarios of the Berkeley Function Calling Leaderboard, multi-turn, with the simulators of their tools."""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib
import inspect
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from benchmarks.crash.effects import CHANGING

Effect = Literal["once", "pure"]

_CATEGORY = "multi_turn_base"
_SOURCES = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
_SIMULATORS = {  # class: module and file of descriptions
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "VehicleControlAPI": "vehicle_control",
}
_STATELESS = "MathAPI"
_UNSTEADY = frozenset({"_last_modified", "_api_description", "parent"})
"""Attributes that are no part of a state: a clock's, a text, and the way back to the owner."""
_MOST_PARALLEL = 4
"""Calls in one step; that they may run side by side is tried in every order."""


@dataclass(frozen=True)
class Call:
    """A call of the ground truth."""

    position: str
    """`turn.step.index`, each from 0."""
    tool: str
    arguments: dict[str, Any]

    @property
    def index(self) -> int:
        """Its place among the calls of its step."""
        return int(self.position.rpartition(".")[2])

    def same(self, tool: str, arguments: dict[str, Any]) -> bool:
        """Whether a call that was made is this one."""
        return self.tool == tool and self.arguments == arguments


@dataclass(frozen=True)
class Turn:
    """What a user says, and what the model does about it: the calls of a step side by side, the steps in order."""

    user: str
    steps: tuple[tuple[Call, ...], ...]


@dataclass(frozen=True)
class Scenario:
    """A conversation."""

    id: str
    turns: tuple[Turn, ...]
    tools: tuple[dict[str, Any], ...]
    """Name, description, JSON schema of the parameters, and effect of each tool."""
    final_state: str
    """Digest of the simulators when the ground truth has run once."""

    @property
    def calls(self) -> list[Call]:
        """The ground truth in order."""
        return [call for turn in self.turns for step in turn.steps for call in step]


class Simulators:
    """The simulators of one scenario, each in its first state.

    Args:
        entry: The scenario as the package has it.
    """

    def __init__(self, entry: dict[str, Any]) -> None:
        self._instances: dict[str, Any] = {}
        self._methods: dict[str, str] = {}
        for name in entry["involved_classes"]:
            instance = getattr(importlib.import_module(f"{_SOURCES}.{_SIMULATORS[name]}"), name)()
            if name != _STATELESS:
                instance._load_scenario(copy.deepcopy(entry["initial_config"].get(name, {})), long_context=False)
            self._instances[name] = instance
            for method, _ in inspect.getmembers(instance, inspect.ismethod):
                if not method.startswith("_"):
                    self._methods[method] = name

    def parameters(self, tool: str) -> list[str]:
        """The names of a tool's parameters, in order."""
        return list(inspect.signature(getattr(self._instances[self._methods[tool]], tool)).parameters)

    def call(self, tool: str, arguments: dict[str, Any]) -> str:
        """Makes a call, and says what it returned as the leaderboard's own runner does."""
        try:
            # Copied: a simulator that keeps or gives out a list must not share it with the log.
            result = getattr(self._instances[self._methods[tool]], tool)(**copy.deepcopy(arguments))
            return result if isinstance(result, str) else json.dumps(result, default=str)
        except Exception as error:
            return f"Error during execution: {error}"

    def digest(self) -> str:
        """Names the state of all simulators, their random generators included."""
        state = {name: _plain(instance) for name, instance in self._instances.items()}
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return [[_plain(key), _plain(item)] for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if hasattr(value, "getstate"):
        return repr(value.getstate())
    if hasattr(value, "__dict__"):
        return {name: _plain(item) for name, item in vars(value).items() if name not in _UNSTEADY}
    return value if value is None or isinstance(value, (str, int, float, bool)) else repr(value)


@cache
def entries() -> dict[str, dict[str, Any]]:
    """The scenarios as the package has them, with their ground truth.

    Raises:
        ModuleNotFoundError: The package is not installed.
    """
    return {entry["id"]: entry for entry in _read_entries()}


def _read_entries() -> Iterator[dict[str, Any]]:
    spec = find_spec("bfcl_eval")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the scenarios are missing: pip install --no-deps bfcl-eval mpmath")
    folder = Path(spec.origin).parent / "data"
    name = f"BFCL_v4_{_CATEGORY}.json"
    truths = {entry["id"]: entry["ground_truth"] for entry in _lines(folder / "possible_answer" / name)}
    for entry in _lines(folder / name):
        yield entry | {"ground_truth": truths[entry["id"]], "folder": str(folder / "multi_turn_func_doc")}


def _lines(file: Path) -> Iterator[Any]:
    with file.open() as lines:
        yield from map(json.loads, lines)


@cache
def scenario(id_: str) -> Scenario:
    """A scenario with its calls in steps.

    Raises:
        KeyError: There is none of that name.
    """
    entry = entries()[id_]
    simulators = Simulators(entry)
    turns = []
    for number, (said, written) in enumerate(zip(entry["question"], entry["ground_truth"], strict=True)):
        parsed = [_parse(text, simulators) for text in written]
        steps, simulators = _steps(parsed, simulators)
        turns.append(
            Turn(
                user="\n".join(message["content"] for message in said),
                steps=tuple(
                    tuple(Call(f"{number}.{step}.{index}", *call) for index, call in enumerate(calls))
                    for step, calls in enumerate(steps)
                ),
            )
        )
    return Scenario(id_, tuple(turns), tuple(_tools(entry)), simulators.digest())


def _parse(text: str, simulators: Simulators) -> tuple[str, dict[str, Any]]:
    """A call that is written as Python."""
    node = ast.parse(text, mode="eval").body
    assert isinstance(node, ast.Call), text
    tool = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
    given = zip(simulators.parameters(tool), map(ast.literal_eval, node.args), strict=False)
    named = ((str(keyword.arg), ast.literal_eval(keyword.value)) for keyword in node.keywords)
    # As JSON carries them: the ground truth has tuples.
    arguments: dict[str, Any] = json.loads(json.dumps(dict(itertools.chain(given, named))))
    return tool, arguments


_Written = tuple[str, dict[str, Any]]


def _steps(calls: Sequence[_Written], before: Simulators) -> tuple[list[list[_Written]], Simulators]:
    """The calls in steps: a step goes on as long as its calls come to the same in every order.

    Returns:
        The steps, and the simulators after them.
    """
    steps: list[list[_Written]] = []
    for call in calls:
        if steps and len(steps[-1]) < _MOST_PARALLEL and _in_any_order([*steps[-1], call], before):
            steps[-1].append(call)
        else:
            if steps:
                before = _after(steps[-1], before)[0]
            steps.append([call])
    return steps, _after(steps[-1], before)[0] if steps else before


def _after(calls: Sequence[_Written], before: Simulators) -> tuple[Simulators, list[str]]:
    after = copy.deepcopy(before)
    return after, [after.call(*call) for call in calls]


def _in_any_order(calls: list[_Written], before: Simulators) -> bool:
    found = set()
    for order in itertools.permutations(range(len(calls))):
        after, results = _after([calls[index] for index in order], before)
        found.add((after.digest(), *(result for _, result in sorted(zip(order, results, strict=True)))))
    return len(found) == 1


def _tools(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name in entry["involved_classes"]:
        for described in _lines(Path(entry["folder"]) / f"{_SIMULATORS[name]}.json"):
            yield {
                "name": described["name"],
                "description": described["description"],
                "parameters": described["parameters"],
                "effect": "once" if described["name"] in CHANGING else "pure",
            }
