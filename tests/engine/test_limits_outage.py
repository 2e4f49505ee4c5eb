"""Many runs and a model that is down, asks for a pause, or is limited; in virtual time, from turn to answer."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from virtual_time import in_virtual_time

from beam_agents import ModelError, ModelLimits, ModelSettings
from beam_agents.engine.effects import ask_model
from beam_agents.engine.limiter import Limiter
from beam_agents.engine.limits import HostLimits, WorkerLimits
from beam_agents.engine.outcome import Outcome
from beam_agents.engine.turn import ModelTurn
from beam_agents.messages import ModelRequest, ModelResponse, TokenCount, UserMessage
from beam_agents.models import FallbackModel, Model, say

REQUEST = ModelRequest(messages=(UserMessage(text="Hi"),))


def now() -> float:
    return asyncio.get_running_loop().time() - 1_000


class Served(Model):
    """A model that takes two seconds, and fails as it is told.

    Args:
        fails: Given the time and how many requests are in flight, the error of a request that is sent then.
    """

    def __init__(
        self,
        fails: Callable[[float, int], ModelError | None] = lambda at, in_flight: None,
        *,
        limits: ModelLimits | None = None,
        name: str = "served",
        tokens: TokenCount | None = None,
    ) -> None:
        self.fails = fails
        self.limits = limits or ModelLimits()
        self.sent: list[float] = []
        self.users: list[str] = []
        self.in_flight = self.most_in_flight = 0
        self._name = name
        self._tokens = tokens or TokenCount()

    @property
    def name(self) -> str:
        return self._name

    async def request(self, request: ModelRequest) -> ModelResponse:
        self.sent.append(now())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            error = self.fails(now(), self.in_flight)
            await asyncio.sleep(0.01 if error is not None else 2.0)
            if error is not None:
                raise error
            return ModelResponse(message=say("Hello."), model=self.name, tokens=self._tokens)
        finally:
            self.in_flight -= 1

    def sent_between(self, begin: float, end: float) -> int:
        return sum(begin <= at < end for at in self.sent)


def down_until(seconds: float, error: ModelError | None = None) -> Callable[[float, int], ModelError | None]:
    failure = error or ModelError("connection refused", retryable=True)
    return lambda at, in_flight: failure if at < seconds else None


def limits_of_one() -> HostLimits:
    return WorkerLimits().of_host(lambda: True)


async def connect(model: Model) -> None:
    await model.connect()


async def ask(
    limits: HostLimits,
    model: Model,
    *,
    key: str = "k",
    request: ModelRequest = REQUEST,
    budget: float = 100_000.0,
    confirmed: list[float] | None = None,
) -> Outcome | None:
    """What `Attempts` does for one model request, with a ledger that takes 10 ms; `None` when the time is over."""

    async def confirm(seconds: float) -> None:
        await asyncio.sleep(seconds + 0.01)
        if confirmed is not None:
            confirmed.append(now())

    try:
        async with (
            asyncio.timeout(budget),
            ModelTurn(limits, key, model, request, forbidden=False) as turn,
        ):
            await asyncio.sleep(0.01)
            return await ask_model(model, request, turn=turn, connect=connect, pause=confirm, network_forbidden=False)
    except TimeoutError:
        return None


async def ask_often(limits: HostLimits, model: Model, runs: int, **more: Any) -> list[Outcome | None]:
    return await asyncio.gather(*(ask(limits, model, key=f"k{run}", **more) for run in range(runs)))


def statuses(outcomes: list[Outcome | None]) -> Counter[str]:
    return Counter("over" if outcome is None else outcome.status for outcome in outcomes)


def test_nothing_stampedes_when_a_model_returns_after_ten_minutes() -> None:
    model, limits = Served(down_until(600)), limits_of_one()

    outcomes = in_virtual_time(ask_often(limits, model, 500))

    assert statuses(outcomes) == {"ok": 500}
    assert model.sent_between(0, 1) <= 500 + 5, "what was on its way when it went down"
    assert 20 <= model.sent_between(1, 600) <= 60, "probes, shared by all"
    back = next(at for at in model.sent if at >= 600)
    assert model.sent_between(back, back + 1.9) == 1
    assert model.sent_between(back, back + 3.9) <= 3
    assert model.sent_between(back, back + 5.9) <= 7
    assert max(model.sent) < 600 + 30 + 30


def test_runs_that_come_while_it_is_down_send_nothing_but_probes() -> None:
    model, limits = Served(down_until(600)), limits_of_one()

    async def main() -> list[Outcome | None]:
        first = asyncio.ensure_future(ask(limits, model, key="first"))
        await asyncio.sleep(120)
        others = await ask_often(limits, model, 500)
        return [await first, *others]

    assert statuses(in_virtual_time(main())) == {"ok": 501}
    assert model.sent_between(0, 600) <= 60
    back = next(at for at in model.sent if at >= 600)
    assert [model.sent_between(back, back + seconds) for seconds in (1.9, 3.9)] == [1, 3]


def test_a_run_whose_budget_ends_first_leaves_no_hole() -> None:
    model, limits = Served(down_until(600)), limits_of_one()

    async def main() -> tuple[list[Outcome | None], list[Outcome | None]]:
        short, long = await asyncio.gather(
            ask_often(limits, model, 200, budget=300.0), ask_often(limits, model, 200, budget=900.0)
        )
        return short, long

    short, long = in_virtual_time(main())

    assert statuses(short) == {"over": 200}
    assert statuses(long) == {"ok": 200}
    (one, everything) = limits.of_model(model)
    assert (one.waiting, one.in_flight, everything.in_flight) == (0, 0, 0)


def test_the_intent_is_confirmed_between_two_requests() -> None:
    model, limits, confirmed = Served(down_until(10)), limits_of_one(), []

    outcome = in_virtual_time(ask(limits, model, confirmed=confirmed))

    assert outcome is not None
    assert outcome.status == "ok"
    assert model.sent[1:] == pytest.approx(confirmed, abs=0.001)


def test_a_pause_that_one_run_is_asked_for_is_kept_by_all() -> None:
    busy = ModelError("slow down", retryable=True, retry_after=20.0, status=429)
    model, limits = Served(lambda at, in_flight: busy if 50 <= at < 51 and in_flight > 10 else None), limits_of_one()

    async def main() -> list[Outcome | None]:
        early = asyncio.ensure_future(ask_often(limits, model, 5))
        await asyncio.sleep(50)
        await early
        return await ask_often(limits, model, 300)

    assert statuses(in_virtual_time(main())) == {"ok": 300}
    first_wave = model.sent_between(50, 51)
    assert first_wave <= 300
    assert model.sent_between(51, 70) == 0
    back = next(at for at in model.sent if at >= 70)
    assert back <= 72.1
    assert model.sent_between(back, back + 1.9) == 1
    assert model.sent_between(back, back + 3.9) <= 3


def test_retries_that_are_counted_end_with_the_model_still_down() -> None:
    model, limits = Served(down_until(100_000)), limits_of_one()
    request = ModelRequest(messages=REQUEST.messages, settings=ModelSettings(retries=2))

    outcomes = in_virtual_time(ask_often(limits, model, 100, request=request, budget=600.0))

    assert statuses(outcomes) == {"error": 100}
    assert "connection refused" in json.loads(outcomes[-1].value if outcomes[-1] else "")
    assert len(model.sent) <= 300


def test_an_answer_that_is_none_is_not_asked_for_again_for_ever() -> None:
    model, limits = Served(down_until(100_000, ModelError("rubbish", retryable=True, status=200))), limits_of_one()

    assert statuses(in_virtual_time(ask_often(limits, model, 1))) == {"error": 1}
    assert len(model.sent) == 4


def test_a_fallback_takes_over_at_once_and_the_first_model_is_not_asked_in_vain() -> None:
    first, second, limits = Served(down_until(600), name="first"), Served(name="second"), limits_of_one()
    model = FallbackModel(first, second)

    async def main() -> float:
        for _ in range(100):
            assert statuses(await ask_often(limits, model, 3)) == {"ok": 3}
        took = now()
        await asyncio.sleep(700 - now())
        before = len(second.sent)
        for _ in range(10):
            await ask_often(limits, model, 3)
        assert len(second.sent) <= before + 4, "the first is back"
        return took

    assert in_virtual_time(main()) < 100 * 2.1
    assert len([at for at in first.sent if at < 600]) < 40


def test_a_fallback_takes_over_after_its_own_time() -> None:
    first, second, limits = Served(down_until(600), name="first"), Served(name="second"), limits_of_one()
    model = FallbackModel(first, second, after=timedelta(seconds=30))

    async def main() -> None:
        await ask_often(limits, model, 20)

    in_virtual_time(main())

    assert min(second.sent) > 25
    assert max(second.sent) < 35


def test_all_models_of_a_fallback_down() -> None:
    first, second = Served(down_until(600), name="first"), Served(down_until(300), name="second")
    limits = limits_of_one()

    outcomes = in_virtual_time(ask_often(limits, FallbackModel(first, second), 100))

    assert statuses(outcomes) == {"ok": 100}
    assert second.sent_between(2, 300) < 60
    assert max(second.sent) < 400


def test_requests_in_flight_and_in_a_minute_are_bounded() -> None:
    limited = ModelLimits(in_flight=10, requests_per_minute=120)
    model, limits = Served(limits=limited), limits_of_one()

    assert statuses(in_virtual_time(ask_often(limits, model, 300))) == {"ok": 300}
    assert model.most_in_flight <= 10
    assert all(model.sent_between(begin, begin + 60) <= 120 for begin in range(0, 120, 7))
    assert max(model.sent) < 155


def test_tokens_are_estimated_before_and_corrected_by_the_answer() -> None:
    used = TokenCount(input=500, output=500)
    model = Served(limits=ModelLimits(tokens_per_minute=60_000), tokens=used)

    assert statuses(in_virtual_time(ask_often(limits_of_one(), model, 200))) == {"ok": 200}
    assert 150 < max(model.sent) < 220, "200,000 tokens at 60,000 a minute"


def test_a_key_with_many_runs_does_not_starve_the_others() -> None:
    model, limits = Served(limits=ModelLimits(in_flight=4)), limits_of_one()
    ended: dict[str, list[float]] = {}

    async def run(key: str) -> None:
        await ask(limits, model, key=key)
        ended.setdefault(key, []).append(now())

    async def main() -> None:
        await asyncio.gather(*(run("busy") for _ in range(200)), *(run("quiet") for _ in range(3)))

    in_virtual_time(main())

    assert max(ended["quiet"]) < 10
    assert max(ended["busy"]) > 90


def test_a_waiter_that_is_cancelled_as_its_turn_comes_takes_nothing() -> None:
    async def main() -> None:
        limiter = Limiter("model 'm'", ModelLimits(in_flight=1))
        held = await limiter.take("a")
        first, second, third = (asyncio.ensure_future(limiter.take(key)) for key in "abc")
        await asyncio.sleep(0)
        first.cancel()
        limiter.leave(held)
        second.cancel()
        limiter.leave(await third)
        assert (limiter.in_flight, limiter.waiting) == (0, 0)
        assert first.cancelled()
        assert second.cancelled()

    in_virtual_time(main())


def test_a_turn_knows_why_there_is_no_answer_yet() -> None:
    model, limits = Served(down_until(600)), limits_of_one()

    async def main() -> None:
        first = asyncio.ensure_future(ask_often(limits, model, 10, budget=60.0))
        await asyncio.sleep(20)
        turn = ModelTurn(limits, "new", model, REQUEST, forbidden=False)
        entering = asyncio.ensure_future(turn.__aenter__())
        await asyncio.sleep(0)
        assert turn.waits
        assert str(turn.trouble) == "connection refused"
        entering.cancel()
        await first
        assert not turn.waits

    in_virtual_time(main())


def test_no_slot_is_held_during_a_pause() -> None:
    failures = iter([ModelError("down", retryable=True, status=500)])
    model = Served(lambda at, in_flight: next(failures, None), limits=ModelLimits(in_flight=1))
    limits = limits_of_one()

    async def main() -> None:
        failing = asyncio.ensure_future(ask(limits, model, key="a"))
        await asyncio.sleep(0.021)
        (one, _) = limits.of_model(model)
        assert (len(model.sent), one.in_flight, failing.done()) == (1, 0, False)
        await failing

    in_virtual_time(main())
