"""The comparison of frameworks: its model, its back office, its counts, and a trial of a loop without memory."""

from __future__ import annotations

import ast
import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest

from benchmarks.comparison import install, task
from benchmarks.comparison.lines import lines_of_code
from benchmarks.comparison.model import missing_result, next_turn
from benchmarks.comparison.office_client import Office
from benchmarks.comparison.systems import SYSTEMS, Loop, System
from benchmarks.comparison.table import table
from benchmarks.comparison.trial import carry_out, kill_points, server
from runners.kafka import KafkaServer

PACKAGE = Path(install.__file__).parent


def called(turn: dict[str, Any], result: str | None = "fine") -> list[dict[str, Any]]:
    call = {"id": turn["id"], "type": "function", "function": {"name": turn["name"], "arguments": "{}"}}
    made: list[dict[str, Any]] = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    return made if result is None else [*made, {"role": "tool", "tool_call_id": turn["id"], "content": result}]


def user(number: int) -> dict[str, Any]:
    message = task.messages(number + 1)[number]
    return {"role": "user", "content": message.told}


def step(conversation: list[dict[str, Any]]) -> str:
    _, turn = next_turn(conversation)
    return turn.tool_calls[0].name if turn.tool_calls else "answer"


def test_the_model_looks_up_then_acts_then_answers() -> None:
    looked = called({"id": "a", "name": "look_up_account"})
    assert step([user(0)]) == "look_up_account"
    assert step([user(0), *looked]) == "refund"
    assert step([user(2), *looked]) == "route_to_person"
    assert step([user(4), *looked]) == "answer"
    assert step([user(0), *looked, *called({"id": "b", "name": "refund"})]) == "answer"


def test_the_model_calls_nothing_again_that_it_can_see() -> None:
    before = [user(0), *called({"id": "a", "name": "look_up_account"}), *called({"id": "b", "name": "refund"})]
    assert step([*before, user(1)]) == "look_up_account"
    assert step([*before, user(0)]) == "answer"


def test_a_call_without_a_result_is_refused() -> None:
    whole = [user(0), *called({"id": "a", "name": "look_up_account"})]
    assert missing_result(whole) is None
    assert missing_result([*whole, *called({"id": "b", "name": "refund"}, None), user(1)]) == "b"


def test_the_office_honours_keys_and_only_keys(tmp_path: Path) -> None:
    with server("office", f"--log={tmp_path / 'office.jsonl'}") as url:
        office = Office(url)
        assert office.refund("C1", 5, "M-1") != office.refund("C1", 5, "M-1")
        receipt = office.refund("C1", 5, "M-1", key="k")
        assert office.refund("C1", 5, "M-1", key="k") == office.find_or_cancel("k", 1) == receipt
        assert office.find_or_cancel("other", 1) is None
        with pytest.raises(urllib.error.HTTPError, match="410"):
            office.refund("C1", 5, "M-1", key="other", attempt=1)
        assert office.refund("C1", 5, "M-1", key="other", attempt=2)
    log = (tmp_path / "office.jsonl").read_text().splitlines()
    assert ['"made":true' in line for line in log] == [True, True, True, False, True]


def test_lines_of_code_are_counted_without_comments_and_docstrings() -> None:
    source = (
        '"""Says.\n\nMore."""\n\n# why\nx = """a\nb"""\n\n\ndef f() -> int:\n    """Says."""\n    return 1  # one\n'
    )
    assert lines_of_code(source) == 4


def test_kills_are_spread_over_the_effect_calls() -> None:
    assert kill_points(500, 5) == [40, 120, 200, 280, 360]


@pytest.mark.parametrize("name", install.FRAMEWORKS)
def test_each_framework_is_pinned_and_needs_nothing_of_ours(name: str) -> None:
    pins = (PACKAGE / "rivals" / f"{name}.txt").read_text(encoding="utf-8").split()
    assert pins
    assert all(len(pin.split("==")) == 2 for pin in pins)
    for module in (f"{name}_loop", "loop", "task", "office_client"):
        for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("beam_agents"))


def test_a_framework_that_is_not_installed_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(install.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"python -m benchmarks\.comparison\.install"):
        SYSTEMS["CrewAI"].python()


def test_a_loop_that_remembers_nothing_makes_effects_twice(kafka: KafkaServer, tmp_path: Path) -> None:
    tiny = System("tiny", "tests.benchmarks.tiny_loop", lambda: Path(sys.executable), Loop, ("loop",))
    outcome = carry_out(
        tiny, kafka.servers, tmp_path / "tiny", count=20, kills=2, rate=100, patience=60, latency=0.01, settle=0.5
    )
    assert (outcome.messages, outcome.kills, len(outcome.to_reply)) == (20, 2, 2)
    assert (outcome.lost, outcome.failed, outcome.replied_twice, outcome.effects_missing) == (0, 0, 0, 0)
    assert (outcome.asked_twice, outcome.effects_twice) == (2, 2)
    assert (outcome.lookups, outcome.answers_paid_again) == (2, 4)
    assert outcome.lines > 20
    assert table([outcome]).splitlines()[2].startswith("| tiny | 2 | 0 | 0 | 0 | 2 | 2 | 0 | 2 | 4 |")
