"""A limit on calls: how many are under way, how many in a minute, and none while a model is down."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from beam_agents.codec import named
from beam_agents.engine.fair_queue import FairQueue
from beam_agents.engine.gate import Gate
from beam_agents.engine.rate import Rate
from beam_agents.engine.threads import in_thread
from beam_agents.errors import ModelError
from beam_agents.limits import ModelLimits
from beam_agents.messages import AssistantMessage, ModelRequest, ModelResponse
from beam_agents.models.attempt import NotAsked

if TYPE_CHECKING:
    from apache_beam.io.components.rate_limiter import RateLimiter

_LOGGER = logging.getLogger(__name__)

_SHORTEST_TIMER = 0.001
_OK = 200

_SHARED_CALLS = 4
"""Threads in which one shared limiter is asked at a time: Beam's may sleep in theirs until it allows a request."""

_SHARED_PAUSES = (0.1, 5.0)
"""Seconds, the first and the longest, between two questions to a shared limiter that says no."""

_CHARACTERS_PER_TOKEN = 4
_FIRST_GUESS = 256.0
"""Tokens of an answer, as long as none was seen."""


@dataclass(slots=True)
class Permit:
    """What one call holds of a limit."""

    tokens: float
    generation: int
    used: bool = False
    """Whether the call was made; what was not used is put back."""


@dataclass(eq=False, slots=True)
class _Waiter:
    key: str
    tokens: float
    chances: int | None
    patience: float | None
    admitted: asyncio.Future[Permit]


class Limiter:
    """Lets calls in, in fair turn by key. It belongs to one event loop.

    Args:
        name: What is limited, for log and errors.
        limits: How much; only `in_flight` matters for what is no model.
        gate: Whether a model is asked at all.
    """

    def __init__(self, name: str, limits: ModelLimits, gate: Gate | None = None) -> None:
        self.name = name
        self.limits = limits
        self.gate = gate
        self.in_flight = 0
        self._most = inf if limits.in_flight is None else limits.in_flight
        self._requests = Rate(limits.requests_per_minute) if limits.requests_per_minute else None
        self._tokens = Rate(limits.tokens_per_minute) if limits.tokens_per_minute else None
        self._queue: FairQueue[_Waiter] = FairQueue()
        self._timer: asyncio.TimerHandle | None = None
        self._output = _FIRST_GUESS
        self._allowed = 0
        self._asking: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        return len(self._queue)

    def tokens_of(self, request: ModelRequest) -> float:
        """How many tokens a request and its answer may have; 0 where they are not counted."""
        if self._tokens is None:
            return 0.0
        output = request.settings.max_tokens
        return _characters(request) / _CHARACTERS_PER_TOKEN + (
            self._output if output is None else min(self._output, output)
        )

    def try_take(self, tokens: float = 0.0) -> Permit | None:
        """Lets a call in if it need not wait."""
        if self._queue or self.limits.shared is not None or self._wait(tokens):
            return None
        return self._admit(tokens)

    async def take(
        self, key: str, tokens: float = 0.0, *, chances: int | None = None, patience: float | None = None
    ) -> Permit:
        """Waits until a call is let in; `leave` when it is done, or is not made.

        Args:
            key: Of the run.
            tokens: How many the request is thought to use.
            chances: How many more requests of others may fail while this one waits for a model that is down; `None`
                for any number.
            patience: Seconds since the model went down for which it is waited for; `None` for ever.

        Raises:
            NotAsked: The model is down, and chances or patience have run out.
        """
        permit = self.try_take(tokens)
        if permit is not None:
            return permit
        loop = asyncio.get_running_loop()
        waiter = _Waiter(key, tokens, chances, patience, loop.create_future())
        if self._lost_patience(waiter, loop.time()):
            raise self._down()
        self._queue.add(key, waiter)
        self._serve()
        try:
            return await waiter.admitted
        except asyncio.CancelledError:
            if waiter.admitted.done() and not waiter.admitted.cancelled() and waiter.admitted.exception() is None:
                self.leave(waiter.admitted.result())
            else:
                self._queue.remove(key, waiter)
                self._serve()
            raise

    def stands(self, permit: Permit) -> bool:
        """Whether nobody has found the model down since the permit was given."""
        return self.gate is None or self.gate.generation == permit.generation

    def leave(self, permit: Permit, outcome: ModelResponse | ModelError | None = None) -> None:
        """A call is done.

        Args:
            permit: What `take` gave.
            outcome: What came of it, if that says anything of the model.
        """
        self.in_flight -= 1
        if self._requests is not None and not permit.used:
            self._requests.use(-1)
        if self._tokens is not None:
            if isinstance(outcome, ModelResponse):
                self._correct(self._tokens, permit, outcome)
            elif isinstance(outcome, ModelError) or not permit.used:
                self._tokens.use(-permit.tokens)
        if self.gate is not None:
            self._tell(self.gate, permit, outcome)
        if self._queue:
            self._serve()

    def _correct(self, rate: Rate, permit: Permit, response: ModelResponse) -> None:
        asked, said = response.tokens.input, response.tokens.output
        if asked is not None and said is not None:
            rate.use(asked + said - permit.tokens)
            self._output += 0.1 * (said - self._output)

    def _tell(self, gate: Gate, permit: Permit, outcome: ModelResponse | ModelError | None) -> None:
        was_open = gate.closed_since is None
        if outcome is not None:
            now = asyncio.get_running_loop().time()
            if isinstance(outcome, ModelResponse) or not outcome.retryable or outcome.status == _OK:
                gate.answered(permit.generation, now)
            elif gate.failed(permit.generation, outcome, now):
                if was_open:
                    _LOGGER.warning("%s is asked less for now: %s", self.name, outcome)
                self._closed(now, anew=was_open)
        gate.leave(permit.generation)
        if not was_open and gate.open_if(nobody_waits=not self._queue):
            _LOGGER.warning("%s answers again", self.name)

    # ---- letting in ----

    def _wait(self, tokens: float) -> float:
        """Seconds until a call may be let in; infinite while it depends on others."""
        if self.in_flight >= self._most:
            return inf
        if self.gate is None or (self.gate.closed_since is None and self._requests is None and self._tokens is None):
            return 0.0
        now = asyncio.get_running_loop().time()
        wait = self.gate.wait(now)
        if self._requests is not None:
            wait = max(wait, self._requests.wait(1, now))
        if self._tokens is not None:
            wait = max(wait, self._tokens.wait(tokens, now))
        return wait

    def _admit(self, tokens: float) -> Permit:
        self.in_flight += 1
        if self._requests is not None:
            self._requests.use(1)
        if self._tokens is not None:
            self._tokens.use(tokens)
        return Permit(tokens, 0 if self.gate is None else self.gate.enter())

    def _serve(self) -> None:
        """Lets in as many as may be; called whenever that may have changed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue:
            waiter = self._queue.first()
            if waiter.admitted.done():  # cancelled, and its task has not noticed yet
                self._queue.pop()
                continue
            wait = self._wait(waiter.tokens)
            if wait > 0:
                if wait < inf:
                    loop = asyncio.get_running_loop()
                    self._timer = loop.call_later(max(wait, _SHORTEST_TIMER), self._serve)
                return
            if self.limits.shared is not None:
                if not self._allowed:
                    self._ask(self.limits.shared)
                    return
                self._allowed -= 1
            self._queue.pop()
            waiter.admitted.set_result(self._admit(waiter.tokens))

    # ---- a model that is down ----

    def _down(self, *, for_good: bool = False) -> NotAsked:
        why = self.gate.error if self.gate is not None else None
        return NotAsked(f"{self.name} was not asked, since it does not answer: {why}", retryable=not for_good)

    def _lost_patience(self, waiter: _Waiter, now: float) -> bool:
        """Whether a waiter has lost its patience; if it may yet, it is looked at again then."""
        if waiter.patience is None or self.gate is None or self.gate.closed_since is None:
            return False
        left = self.gate.closed_since + waiter.patience - now
        if left > 0:
            asyncio.get_running_loop().call_later(left + _SHORTEST_TIMER, self._look_at, waiter)
        return left <= 0

    def _look_at(self, waiter: _Waiter) -> None:
        if not waiter.admitted.done() and self._lost_patience(waiter, asyncio.get_running_loop().time()):
            self._turn_away(waiter, self._down())
            self._serve()

    def _closed(self, now: float, *, anew: bool) -> None:
        """The model has failed for all who wait."""
        for waiter in list(self._queue):
            if waiter.chances == 0:
                self._turn_away(waiter, self._down(for_good=True))
            elif anew and self._lost_patience(waiter, now):
                self._turn_away(waiter, self._down())
            elif waiter.chances is not None:
                waiter.chances -= 1

    def _turn_away(self, waiter: _Waiter, error: NotAsked) -> None:
        self._queue.remove(waiter.key, waiter)
        if not waiter.admitted.done():
            waiter.admitted.set_exception(error)

    # ---- a limit of all workers ----

    def _ask(self, shared: RateLimiter) -> None:
        if len(self._asking) >= min(_SHARED_CALLS, len(self._queue)):
            return
        task = asyncio.ensure_future(self._ask_until_allowed(shared))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask_until_allowed(self, shared: Any) -> None:
        """The permission is the next one's, whoever that is then."""
        pause, longest = _SHARED_PAUSES
        while self._queue:
            try:
                allowed = await in_thread(shared.allow)
            except Exception as error:
                _LOGGER.warning("the shared limit of %s cannot be asked: %s", self.name, named(error))
                allowed = False
            if allowed and self._queue:
                self._allowed += 1
                self._serve()
                pause = _SHARED_PAUSES[0]
                if self._allowed:  # something else is in the way
                    return
            elif not allowed:
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, longest)


def _characters(request: ModelRequest) -> int:
    characters = sum(len(tool.description) + len(str(tool.parameters)) for tool in request.tools)
    for message in request.messages:
        characters += len(message.text or "")
        if isinstance(message, AssistantMessage):
            characters += sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
    return characters
