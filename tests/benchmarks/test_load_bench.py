"""The load benchmark in its short form: its server, its stamps, its sides on the in-process runner, its figures."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from benchmarks.load import client, ideal
from benchmarks.load.figures import REQUIRED, rounded, table
from benchmarks.load.parts import checkpoint_figures, in_turn
from benchmarks.load.runners import CheckpointsSeen
from benchmarks.load.server import ChatServer, running_server
from benchmarks.load.stamps import EventFailed, Stamps, begin, end
from runners.flink.rest import FlinkRest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with running_server() as running:
        yield running


def test_bench_measures_both_sides_and_writes_its_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.load", f"--out={tmp_path}", "--runners=direct", "--parts=at-once"]
    done = subprocess.run(
        [*command, "--repeats=1", "--events=20"], cwd=ROOT, capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, done.stderr
    bench = json.loads((tmp_path / "bench.json").read_text())
    direct = bench["direct"]
    assert set(REQUIRED) <= set(direct)
    assert direct["events_per_s_over_bare"] == pytest.approx(
        direct["at_once_bare_s_all"][0] / direct["at_once_s_all"][0], rel=0.01
    )
    assert direct["max_in_flight_2000"] is None
    assert "events_per_s_over_bare" in done.stdout
    assert {"machine", "load_before", "load_after"} <= set(bench)
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_server_counts_what_is_in_flight_and_begins_anew(server: ChatServer) -> None:
    server.reset(latency=0.3)
    started = time.perf_counter()
    asyncio.run(ideal.burst(server.base_url, 30))
    assert time.perf_counter() - started >= 0.6
    assert (server.stats().calls, server.stats().in_flight) == (60, 0)
    assert server.stats().most_in_flight == 30
    server.reset()
    assert server.stats().calls == 0


def test_server_calls_the_first_tool_and_then_answers_as_asked(server: ChatServer) -> None:
    first = ideal.first_body("a")
    called, answered = asyncio.run(_ask(server, first))
    assert called["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "look_up"
    assert set(json.loads(answered["choices"][0]["message"]["content"])) == {"ok"}


def test_server_forgets_a_call_whose_client_has_gone(server: ChatServer) -> None:
    server.reset(latency=60)

    async def give_up() -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.2)) as session:
            with pytest.raises(TimeoutError):
                await session.post(f"{server.base_url}/chat/completions", json=ideal.first_body("a"))

    asyncio.run(give_up())
    until = time.monotonic() + 10
    while server.stats().in_flight and time.monotonic() < until:
        time.sleep(0.01)
    assert (server.stats().calls, server.stats().in_flight) == (1, 0)
    server.reset()


def test_both_clients_ask_the_same(server: ChatServer) -> None:
    server.reset()
    for name in ("ours", "raw"):
        cost = asyncio.run(client.cost(name, server.base_url, 20, 5))
        assert 0 < cost.cpu_ms < 1_000
        assert cost.wall_ms > 0
    assert server.stats().calls == 50  # each opens five connections first


def test_stamps_are_read_as_they_come(tmp_path: Path) -> None:
    stamps = Stamps(tmp_path)
    begin(tmp_path, "b1")
    assert stamps.ended("b1") == {}
    (tmp_path / "ended.txt").write_text("b1-0 10.5\nb1-1 11.0\nb2-0 12.0\nb1-2 1")
    assert stamps.ended("b1") == {"b1-0": 10.5, "b1-1": 11.0}
    with (tmp_path / "ended.txt").open("a") as file:
        file.write("3.5\nb1-0 99.0\n")
    assert stamps.ended("b1") == {"b1-0": 10.5, "b1-1": 11.0, "b1-2": 13.5}
    assert stamps.begun("b1") <= time.time()


def test_an_event_that_fails_ends_the_measurement(tmp_path: Path) -> None:
    end(tmp_path, "b1-7", "budget:\n no steps")
    with pytest.raises(EventFailed, match="b1-7 budget: no steps"):
        Stamps(tmp_path).ended("b1")


def test_checkpoints_count_from_the_beginning_of_the_measurement() -> None:
    told: list[dict[str, Any]] = []

    class Rest(FlinkRest):
        def get(self, path: str) -> Any:
            assert path == "/jobs/j/checkpoints"
            return {"history": told[-2:], "counts": {"restored": 1}}

    seen = CheckpointsSeen(Rest("http://127.0.0.1:1"), "j")
    told.append({"id": 1, "status": "FAILED", "end_to_end_duration": 9})
    seen.begin()
    for number, status in ((2, "COMPLETED"), (3, "FAILED"), (4, "IN_PROGRESS")):
        told.append({"id": number, "status": status, "end_to_end_duration": 10 * number})
        seen.look()
    told[-1]["status"] = "COMPLETED"
    assert checkpoint_figures(seen) == {
        "checkpoints_completed": 2,
        "checkpoints_failed": 1,
        "checkpoint_ms_max": 40,
        "checkpoint_ms_median": 30,
        "restarts": 1,
    }


def test_sides_are_measured_in_turn() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    assert in_turn(2, [lambda: side("a"), lambda: side("b")]) == [[1.0, 3.0], [2.0, 4.0]]
    assert order == ["a", "b", "a", "b"]


def test_the_table_leaves_out_single_measurements() -> None:
    figures = rounded({"ratio": 1.23456, "seconds_all": [1.0, 2.0], "none": None, "many": 12_345.6})
    assert figures == {"ratio": 1.2346, "seconds_all": [1.0, 2.0], "none": None, "many": 12_345.6}
    lines = [line.split() for line in table({"flink": figures, "direct": {}}).splitlines()]
    assert lines == [["flink", "direct"], ["ratio", "1.23", "-"], ["none", "-", "-"], ["many", "12346", "-"]]


async def _ask(server: ChatServer, first: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    async with aiohttp.ClientSession() as session:
        answers = []
        body = first
        for _ in range(2):
            async with session.post(f"{server.base_url}/chat/completions", json=body) as answer:
                answers.append(await answer.json())
            body = ideal.second_body(first, answers[0])
        return answers[0], answers[1]
