"""Limits as users set them: shared by a worker process, for tools, for all workers, over the wire."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web

from beam_agents import (
    Agent,
    Budget,
    ConfigurationError,
    ModelError,
    ModelLimits,
    RunContext,
    RunFailed,
    tool,
    workflow,
)
from beam_agents.engine.gate import Gate
from beam_agents.engine.limiter import Limiter
from beam_agents.engine.limits import MODEL_CALLS, TOOL_CALLS, TOOL_THREADS, WorkerLimits
from beam_agents.models import FallbackModel, FunctionModel, OpenAIModel, say
from beam_agents.testing import Fault, MockChatServer, ScriptedModel, calls

ECHO = FunctionModel(lambda request: say("Hello."), name="echo")


def served(url: str = "http://127.0.0.1:9/v1", **limits: Any) -> OpenAIModel:
    return OpenAIModel("m", base_url=url, limits=ModelLimits(**limits))


class Allowing:
    """A rate limiter with Beam's interface."""

    def __init__(self, refusals: int = 0, domain: str = "d") -> None:
        self.domain = domain
        self.refusals = refusals
        self.asked: list[str] = []

    def allow(self, **_: Any) -> bool:
        self.asked.append(threading.current_thread().name)
        if self.refusals == 1:
            self.refusals = 0
            raise ConnectionError("no limiter")
        if self.refusals:
            self.refusals -= 1
            return False
        return True


# ---- declaring them ----


@pytest.mark.parametrize("name", ["in_flight", "requests_per_minute", "tokens_per_minute"])
@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_a_limit_that_lets_nothing_through_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"ModelLimits\({name}={value!r}\): give a whole number"):
        ModelLimits(**{name: value})


def test_other_wrong_limits_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="give a RateLimiter"):
        ModelLimits(shared="envoy:8081")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="tool 'look': in_flight=0"):
        tool(effect="pure", in_flight=0, name="look")(lambda: 1)
    with pytest.raises(ConfigurationError, match="after="):
        FallbackModel(ECHO, ECHO, after=timedelta(seconds=-1))


@pytest.mark.parametrize("variable", [MODEL_CALLS, TOOL_CALLS, TOOL_THREADS])
def test_the_limits_of_a_process_come_from_its_environment(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    def bounds() -> list[int | None]:
        made = WorkerLimits()
        return [limiter.limits.in_flight for limiter in (made.models, made.async_tools, made.thread_tools)]

    assert bounds() == [20_000, 20_000, 256]
    monkeypatch.setenv(variable, "7")
    assert 7 in bounds()
    monkeypatch.setenv(variable, "many")
    with pytest.raises(ConfigurationError, match=f"environment variable {variable}='many'"):
        bounds()


# ---- sharing them ----


def test_one_server_s_model_has_one_limiter_for_all_agents() -> None:
    worker = WorkerLimits()
    first, second = worker.of_host(lambda: True), worker.of_host(lambda: True)
    shared = Allowing()

    one = first.of_model(served(in_flight=3, shared=shared))[0]

    assert second.of_model(pickle.loads(pickle.dumps(served(in_flight=3, shared=Allowing()))))[0] is one
    assert second.of_model(served("http://127.0.0.1:10/v1", in_flight=3))[0] is not one
    assert first.of_model(ECHO)[0] is second.of_model(ECHO)[0]
    assert first.of_model(ECHO)[0] is not second.of_model(FunctionModel(lambda request: None, name="echo"))[0]  # type: ignore[arg-type, return-value]


def test_unequal_limits_are_refused_as_long_as_the_other_agent_is_there() -> None:
    worker, users = WorkerLimits(), 1
    first, second = worker.of_host(lambda: users > 0), worker.of_host(lambda: True)
    first.check(FallbackModel(served(in_flight=3), ECHO), [])

    with pytest.raises(ConfigurationError, match=r"model 'openai:m' has ModelLimits\(in_flight=3.*in_flight=4"):
        second.check(served(in_flight=4), [])
    with pytest.raises(ConfigurationError, match="give the same everywhere"):
        second.check(served(in_flight=3, shared=Allowing(domain="other")), [])
    users = 0
    second.check(served(in_flight=4), [])


# ---- tools ----


def test_a_tool_s_calls_in_flight_are_bounded_over_all_runs() -> None:
    in_flight, most, lock = 0, 0, threading.Lock()

    @tool(effect="pure", in_flight=2)
    def look(n: int) -> int:
        nonlocal in_flight, most
        with lock:
            in_flight += 1
            most = max(most, in_flight)
        time.sleep(0.02)
        with lock:
            in_flight -= 1
        return n

    @workflow(tools=[look])
    async def four(ctx: RunContext[Any, Any, Any], event: dict[str, Any]) -> list[int]:
        return list(await ctx.gather(*(ctx.call(look, n=n) for n in range(4))))

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: four.run_sync({}).output, range(4)))

    assert results == [[0, 1, 2, 3]] * 4
    assert most == 2


def test_a_tool_s_slot_is_free_while_its_retry_waits() -> None:
    order: list[str] = []

    @tool(effect="pure", in_flight=1, retries=1)
    async def look(name: str) -> str:
        order.append(name)
        if order == ["first"]:
            raise ConnectionError("down")
        return name

    script = [calls(("look", {"name": "first"}), ("look", {"name": "second"})), "Done."]
    one = Agent("a", model=ScriptedModel(script), tools=[look])

    assert one.run_sync({}).output == "Done."
    assert order == ["first", "second", "first"]


# ---- a limit of all workers ----


def limited_by(shared: Allowing) -> Limiter:
    return Limiter("model 'm'", ModelLimits(shared=shared), Gate())


def test_a_shared_limiter_is_asked_for_each_request_off_the_loop() -> None:
    shared = Allowing(refusals=3)

    async def main() -> int:
        limiter = limited_by(shared)
        permits = await asyncio.gather(*(limiter.take(f"k{n}") for n in range(20)))
        for permit in permits:
            limiter.leave(permit)
        return limiter.in_flight

    assert asyncio.run(main()) == 0
    assert len(shared.asked) >= 23
    assert set(shared.asked) == {"beam-agents-tool"}


def test_a_permission_of_a_shared_limiter_goes_to_the_next_when_a_run_ends() -> None:
    asked, allow = threading.Event(), threading.Event()

    class Slow(Allowing):
        def allow(self, **_: Any) -> bool:
            asked.set()
            return allow.wait(20)

    async def main() -> None:
        limiter = limited_by(Slow())
        first = asyncio.ensure_future(limiter.take("a"))
        await asyncio.to_thread(asked.wait, 20)
        second = asyncio.ensure_future(limiter.take("b"))
        await asyncio.sleep(0)
        first.cancel()
        allow.set()
        limiter.leave(await asyncio.wait_for(second, 20))
        assert (limiter.in_flight, limiter.waiting, first.cancelled()) == (0, 0, True)

    asyncio.run(main())


# ---- over the wire ----


def test_the_server_sees_no_more_than_the_limit() -> None:
    with MockChatServer(lambda body: "Fine.", latency=0.02) as server:
        one = Agent("a", model=served(server.base_url, in_flight=3), prompt="Hello.")
        with ThreadPoolExecutor(12) as pool:
            outputs = list(pool.map(lambda n: one.run_sync({}, key=f"k{n}").output, range(12)))

        assert outputs == ["Fine."] * 12
        assert server.stats["most_in_flight"] == 3


def test_forty_runs_come_back_gently_to_a_server_that_was_down() -> None:
    up, in_flight, most = threading.Event(), 0, 0

    async def answer(body: dict[str, Any]) -> Any:
        nonlocal in_flight, most
        if not up.is_set():
            return web.Response(status=503)
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.3)
        in_flight -= 1
        return "Fine."

    with MockChatServer(answer) as server, ThreadPoolExecutor(40) as pool:
        model, budget = served(server.base_url), Budget(wall_clock=timedelta(minutes=3))
        one = Agent("a", model=model, prompt="Hello.", budget=budget)
        runs = [pool.submit(one.run_sync, {}, key=f"k{n}") for n in range(40)]
        calls_before = -2
        while not 8 <= (number := server.stats["calls"]) <= calls_before + 1:  # until there are only probes
            calls_before = number
            time.sleep(1)
        up.set()

        assert [run.result(150).output for run in runs] == ["Fine."] * 40
        assert server.stats["calls"] <= number + 42
    assert most <= 20, "1, 2, 4, 8, 16, and what was left"


def test_a_server_that_fails_often_is_asked_until_it_answers() -> None:
    faults = [Fault("status", 503), Fault("cut"), Fault("status", 500), Fault("status", 429, 0.1), Fault("status", 502)]
    with MockChatServer(lambda body: "Fine.", faults=faults) as server:
        one = Agent("a", model=served(server.base_url), prompt="Hello.")

        assert one.run_sync({}).output == "Fine."
        assert server.stats["calls"] == 6


def test_a_model_that_stays_down_ends_a_run_by_its_deadline_with_the_transcript() -> None:
    with MockChatServer() as server:
        gone = server.base_url
    one = Agent("a", model=served(gone), prompt="Hello.", budget=Budget(wall_clock=timedelta(seconds=2)))

    with pytest.raises(RunFailed) as caught:
        one.run_sync({})

    failure = caught.value.failure
    assert failure.reason == "deadline"
    assert [message.text for message in failure.transcript] == ["Hello."]


def test_one_failure_does_not_make_other_runs_wait() -> None:
    limiter = Limiter("model 'm'", ModelLimits(), Gate())

    async def main() -> bool:
        permit = await limiter.take("a")
        permit.used = True
        limiter.leave(permit, ModelError("cut", retryable=True))
        return limiter.try_take() is not None

    assert asyncio.run(main())
