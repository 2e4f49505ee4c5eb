"""The outside world: it applies what it is asked to, as often as it is asked, and keeps a log."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beam_agents.errors import ModelError, ModelRetry, ToolFailed
from beam_agents.messages import ModelRequest
from beam_agents.tools import CannotHappen, Happened, Unknown
from tests.simulator.loop import Scheduler, SimLoop

if TYPE_CHECKING:
    from tests.simulator.watch import Watch


@dataclass(frozen=True)
class Manners:
    """How the outside behaves; probabilities from 0 to 1."""

    slow: float = 0.0
    """That one way of a call takes seconds."""
    fails: float = 0.0
    """That a call fails before it takes effect, and as much that it fails after."""
    lost: float = 0.0
    """That a request or an answer is lost."""
    refuses: float = 0.0
    """That a tool says no."""
    unknown: float = 0.0
    """That `reconcile` cannot say."""


class World:
    """The other side of all calls; it outlives every worker.

    Attributes:
        applied: How often each call took effect, by idempotency key.
        asked: How often each call was made.
        manners: How it behaves now.
    """

    def __init__(self, scheduler: Scheduler, rng: random.Random, manners: Manners) -> None:
        self.loop = SimLoop(scheduler, "world")
        self.rng = rng
        self.manners = manners
        self.applied: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.models = 0
        self._void: set[tuple[str, int]] = set()
        self._results: dict[str, str] = {}

    def delay(self) -> float:
        """Seconds of one way."""
        if self.rng.random() < self.manners.slow:
            return self.rng.uniform(0.5, 7.0)
        return self.rng.uniform(0.001, 0.2)

    def roll(self, probability: float) -> bool:
        return probability > 0 and self.rng.random() < probability

    def arrive(self, name: str, effect: str, key: str, attempt: int, answer: Any) -> None:
        """A call arrives."""
        manners = self.manners
        if self.roll(manners.fails):
            answer(RuntimeError("not now"))
        elif (key, attempt) in self._void:
            answer(RuntimeError("this attempt was given up"))
        elif self.roll(manners.refuses):
            answer(ToolFailed("no") if self.rng.random() < 0.7 else ModelRetry("otherwise"))
        else:
            if effect == "once" or (effect == "idempotent" and key not in self._results):
                self.applied[key] += 1
            result = self._results.setdefault(key, f"{name} {self.applied[key]}")
            answer(RuntimeError("broke off") if self.roll(manners.fails) else result)

    def look_back(self, key: str, attempt: int) -> Any:
        """What became of a call. An attempt that is said not to have happened never will."""
        if self.roll(self.manners.unknown):
            return Unknown("the log is closed")
        if self.applied[key]:
            return Happened(self._results[key])
        self._void.add((key, attempt))
        return CannotHappen()


class Wire:
    """A worker's connection to the world. Its calls go on when the worker is gone."""

    def __init__(self, world: World, watch: Watch, loop: SimLoop, name: str) -> None:
        self._world = world
        self._watch = watch
        self._loop = loop
        self.name = name
        loop.owner = self

    async def call(self, name: str, effect: str, ctx: Any, n: int) -> Any:
        """One attempt of a tool call."""
        self._watch.call_starts(self.name, name, effect, ctx, n)
        key, attempt = ctx.idempotency_key, ctx.attempt
        self._world.asked[key] += 1
        return await self._there_and_back(lambda answer: self._world.arrive(name, effect, key, attempt, answer))

    async def reconcile(self, ctx: Any, n: int) -> Any:
        """Asks what became of a call."""
        world, key, attempt = self._world, ctx.idempotency_key, ctx.attempt
        self._watch.look_starts(self.name, ctx, n)

        def look(answer: Any) -> None:
            answer(RuntimeError("no log") if world.roll(world.manners.unknown / 2) else world.look_back(key, attempt))

        return await self._there_and_back(look)

    async def ask_model(self, request: ModelRequest) -> None:
        """Asks the model; its answer is the agent's to make up."""
        world = self._world
        self._watch.request_starts(self.name, request)

        def think(answer: Any) -> None:
            world.models += 1
            answer(ModelError("busy", retryable=world.rng.random() < 0.7) if world.roll(world.manners.fails) else None)

        await self._there_and_back(think)

    async def _there_and_back(self, happens: Any) -> Any:
        world, future = self._world, self._loop.create_future()

        def settle(value: Any) -> None:
            if future.done():
                return
            if isinstance(value, Exception):
                future.set_exception(value)
            else:
                future.set_result(value)

        def answer(value: Any) -> None:
            if not world.roll(world.manners.lost):
                world.loop.call_later(world.delay(), lambda: self._loop.call_soon_threadsafe(settle, value))

        if not world.roll(world.manners.lost):
            world.loop.call_later(world.delay(), happens, answer)
        return await future
