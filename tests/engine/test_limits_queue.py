"""The parts of a limiter: whose turn it is, how much in a minute, and when a model is asked at all."""

from __future__ import annotations

import math

import pytest

from beam_agents.engine.fair_queue import FairQueue
from beam_agents.engine.gate import FAILURES_IN_A_ROW, Gate
from beam_agents.engine.rate import Rate
from beam_agents.errors import ModelError

DOWN = ModelError("refused", retryable=True)


def test_keys_take_turns_and_a_key_keeps_its_order() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(1000):
        queue.add("busy", f"b{number}")
    queue.add("a", "a0")
    queue.add("c", "c0")
    queue.add("a", "a1")

    assert [queue.pop() for _ in range(7)] == ["b0", "a0", "c0", "b1", "a1", "b2", "b3"]
    assert len(queue) == 996


def test_a_waiter_that_leaves_leaves_no_hole() -> None:
    queue: FairQueue[str] = FairQueue()
    for key, waiter in (("a", "a0"), ("b", "b0"), ("a", "a1")):
        queue.add(key, waiter)

    queue.remove("a", "a0")
    queue.remove("a", "not there")
    queue.remove("z", "not there")

    assert (len(queue), queue.first(), list(queue)) == (2, "a1", ["a1", "b0"])
    queue.remove("a", "a1")
    assert (len(queue), queue.pop(), len(queue)) == (1, "b0", 0)


@pytest.mark.parametrize("per_minute", [1, 7, 60, 500, 90_000])
def test_no_minute_has_more_than_its_quota_and_little_of_it_is_left_over(per_minute: int) -> None:
    rate, now, times = Rate(per_minute), 5.0, []
    while now < 5 + 180:
        wait = rate.wait(1, now)
        if wait == 0:
            rate.use(1)
            times.append(now)
        now += wait

    for begin in (5.0, 17.3, 65.0, 100.0):
        used = sum(begin <= time < begin + 60 for time in times)
        assert used <= per_minute
        assert begin == 5.0 or used >= math.floor(0.98 * per_minute) - 1


def test_what_is_larger_than_a_second_waits_until_it_fits() -> None:
    rate = Rate(60_000)
    assert rate.wait(500, 0.0) == 0
    rate.use(500)
    assert rate.wait(10_500, 0.0) == pytest.approx(10, rel=0.02)
    assert rate.wait(10_500, 10.2) == 0


def test_what_was_not_used_is_put_back_and_what_was_used_more_is_owed() -> None:
    rate = Rate(60)
    rate.use(1)
    rate.use(-1)
    assert rate.wait(1, 0.0) == 0
    rate.use(3)
    assert rate.wait(1, 0.0) == pytest.approx(3)


def fail_until_closed(gate: Gate, now: float) -> None:
    for _ in range(FAILURES_IN_A_ROW):
        assert gate.wait(now) == 0
        entered = gate.enter()
        gate.failed(entered, DOWN, now)
        gate.leave(entered)


def test_a_failure_among_answers_closes_nothing() -> None:
    gate = Gate()
    for _ in range(100):
        for _ in range(FAILURES_IN_A_ROW - 1):
            assert not gate.failed(gate.enter(), DOWN, 0.0)
        gate.answered(gate.enter(), 0.0)
    assert gate.closed_since is None


def test_probes_come_one_by_one_with_growing_pauses() -> None:
    gate, now = Gate(random=lambda: 1.0), 0.0
    fail_until_closed(gate, now)
    pauses = []
    for _ in range(9):
        pauses.append(gate.wait(now))
        now += pauses[-1]
        assert gate.wait(now) == 0
        probe = gate.enter()
        assert gate.wait(now) == math.inf
        assert gate.failed(probe, DOWN, now)
        gate.leave(probe)

    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert gate.closed_since == 0


def test_each_answer_lets_one_more_in() -> None:
    gate, now = Gate(random=lambda: 1.0), 0.0
    inside = [gate.enter() for _ in range(100)]
    for generation in inside:
        gate.failed(generation, DOWN, now)
        gate.leave(generation)
    now, most = 1.0, []
    for _ in range(6):
        entered = []
        while gate.wait(now) == 0:
            entered.append(gate.enter())
        most.append(len(entered))
        for generation in entered:
            gate.answered(generation, now)
            gate.leave(generation)
        assert not gate.open_if(nobody_waits=False)
    assert most == [1, 2, 4, 8, 16, 32]
    assert not gate.open_if(nobody_waits=True), "a hundred were in flight before"

    for _ in range(36):
        gate.answered(gate.enter(), now)
    assert gate.open_if(nobody_waits=True)
    assert gate.wait(now) == 0


def test_what_was_sent_before_it_closed_neither_lengthens_the_pause_nor_ends_one_that_was_asked_for() -> None:
    gate = Gate(random=lambda: 0.0)
    before = [gate.enter() for _ in range(20)]
    asked = ModelError("slow down", retryable=True, retry_after=10.0, status=429)

    assert gate.failed(before[0], asked, 0.0)
    assert not gate.failed(before[1], DOWN, 0.0)
    gate.answered(before[2], 0.0)
    assert gate.wait(0.0) == 10
    assert not gate.failed(before[3], ModelError("slower", retryable=True, retry_after=15.0), 1.0)
    assert gate.wait(1.0) == 15


def test_an_answer_to_what_was_sent_before_ends_the_pause_of_a_model_that_was_believed_down() -> None:
    gate = Gate()
    before = gate.enter()
    fail_until_closed(gate, 0.0)
    gate.answered(before, 0.1)

    assert gate.wait(0.1) == 0
    gate.enter()
    assert gate.wait(0.1) == math.inf
