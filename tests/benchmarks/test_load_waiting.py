"""What the measurements of waiting, memory and latency are made of."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from pathlib import Path
from subprocess import Popen
from sys import executable

import pytest

from benchmarks.load import latency, memory, state, waiting
from benchmarks.load.runners import direct
from benchmarks.load.server import ChatServer


def test_processor_seconds_grow_with_work() -> None:
    before = waiting.processor_seconds(os.getpid())
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert waiting.processor_seconds(os.getpid()) - before >= 0.05


def test_a_process_that_has_ended_is_told() -> None:
    process = Popen([executable, "-c", ""])
    process.wait()
    with pytest.raises(ProcessLookupError, match=str(process.pid)):
        waiting.processor_seconds(process.pid)


def test_waiting_is_measured_above_idle_and_idle_above_bare() -> None:
    figures = waiting.figures(
        by_default=[waiting.Processors(1.0, 5.0)],
        bare=[waiting.Processors(1.0, 7.0), waiting.Processors(1.0, 9.0), waiting.Processors(1.0, 30.0)],
        idle=[waiting.Processors(2.0, 10.0)],
        waiting=[waiting.Processors(3.0, 11.0), waiting.Processors(5.0, 11.0)],
        runs=1_000,
    )
    assert figures["idle_cpu_percent_over_bare"] == 2.0
    assert figures["idle_cpu_percent_over_bare_by_default"] == 6.0
    assert figures["waiting_1000_cpu_percent_over_idle"] == 3.0
    assert figures["bare_task_manager_cpu_percent"] == 9.0
    assert figures["waiting_1000_worker_cpu_percent"] == 4.0


def test_percentiles_are_in_milliseconds() -> None:
    figures = latency.percentiles("gap", [n / 1_000 for n in range(101)])
    assert figures == pytest.approx({"gap_ms_p50": 50.0, "gap_ms_p99": 99.0})
    assert latency.percentiles("gap", [0.1]) == {"gap_ms_p50": None, "gap_ms_p99": None}


def test_the_timing_server_pairs_an_answer_with_the_next_request_of_its_run() -> None:
    with latency.running_timing_server() as server:
        server.reset(latency=0.01)
        _ask(server, "one")
        _ask(server, "two")
        assert latency.gaps(server) == []
        _ask(server, "one")
        [(seconds, in_flight)] = latency.gaps(server)
        assert 0.01 <= seconds < 30
        assert in_flight == 0
        server.reset()
        assert latency.gaps(server) == []


def test_a_burst_that_is_opened_is_a_phase_of_its_own() -> None:
    noted = [(0.5, 3), (0.4, 60), (0.3, 96), (0.2, 100), (0.1, 70), (9.0, 40)]
    assert latency.in_phases(noted, 100) == ([0.5, 0.4], [0.3, 0.2, 0.1])
    assert latency.in_phases([], 100) == ([], [])


def test_gaps_are_measured_in_a_pipeline(tmp_path: Path) -> None:
    with latency.running_timing_server() as server, direct(tmp_path) as runner:
        figures = latency.between_calls(runner, server, 20, feed=False, shortest=0.2, longest=0.3)
    assert figures["most_in_flight"] == 20
    assert figures["answer_to_next_request_ms_p99"] is not None


def test_runs_wait_with_their_transcripts(tmp_path: Path) -> None:
    figures = memory.waiting_runs(tmp_path, 100)
    each = figures["kib_for_a_waiting_run"]
    assert each is not None
    assert memory.TRANSCRIPT / 1_024 < each < 2_000
    assert figures["mib_for_100_waiting_runs"] == pytest.approx(each * 100 / 1_024)


def test_the_ledger_grows_by_the_step(tmp_path: Path) -> None:
    none, some, more = (state.ledger_bytes(tmp_path, steps, 10) for steps in (0, 10, 20))
    assert 200 < (more - some) / 10 < 2_000
    assert none < some < more


def _ask(server: ChatServer, event: str) -> None:
    prompt = json.dumps({"id": event, "burst": "b"})
    body = {"model": "mock", "messages": [{"role": "user", "content": prompt}]}
    request = urllib.request.Request(
        f"{server.base_url}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
        assert answer.status == 200
