"""Several models in the place of one: the next is asked when one cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from random import random as random_number
from typing import Any

from beam_agents.errors import ConfigurationError, ModelError
from beam_agents.messages import ModelRequest, ModelResponse
from beam_agents.models.attempt import Ask, NotAsked, attempt
from beam_agents.models.base import Model, Price
from beam_agents.models.resolve import resolve_model

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0

_NOT_SERVED_HERE = frozenset({401, 402, 403, 404})


def not_served(error: ModelError) -> bool:
    """Whether another model may do better: a passing failure, a refused key, an unpaid bill or an unknown model.

    A request that is wrong in itself (400, 422) is wrong for the next model too.
    """
    return error.retryable or error.status in _NOT_SERVED_HERE


class FallbackModel(Model):
    """Asks the first model, and the next one when that fails.

    Each model is asked once for each attempt, with the whole `timeout` of the settings for itself; the settings'
    `retries` count rounds over all models. A model that is known to be down or to want a pause, because other runs
    asked it, is passed over without a request; one that is only at its limits is waited for. The response names the
    model that answered.

    Args:
        models: Models or their names (`"openai:NAME"`), the preferred one first.
        on: Which errors send the request to the next model; `not_served` by default. It travels to the workers
            by pickle.
        after: How long a failure that may pass is waited out, and the request tried again, before the next model is
            asked; counted from when the model went down. At once by default.
    """

    def __init__(
        self, *models: Model | str, on: Callable[[ModelError], bool] = not_served, after: timedelta = timedelta(0)
    ) -> None:
        resolved = [resolve_model(model) for model in models]
        if len(resolved) < 2:
            raise ConfigurationError(f"FallbackModel{models!r}: give it two models or more")
        if after < timedelta(0):
            raise ConfigurationError(f"FallbackModel(after={after!r}): give it a time that is not below zero")
        members: list[Model] = []
        for model in resolved:
            members.extend(model.models if isinstance(model, FallbackModel) else (model,))
        self.models: tuple[Model, ...] = tuple(members)
        self.on = on
        self.after = after
        self._connecting: dict[int, asyncio.Task[None]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connecting": {}}

    @property
    def name(self) -> str:
        return "fallback:" + "|".join(model.name for model in self.models)

    @property
    def network(self) -> bool:  # type: ignore[override]
        """Whether one of the models uses the network."""
        return any(model.network for model in self.models)

    @property
    def price(self) -> Price | None:
        """The highest price of any of the models; `None` if one is not known."""
        prices = [model.price for model in self.models]
        known = [price for price in prices if price is not None]
        if len(known) < len(prices):
            return None
        return Price(input=max(price.input for price in known), output=max(price.output for price in known))

    async def request(self, request: ModelRequest) -> ModelResponse:
        return await self.request_from(self.models, request)

    async def request_from(
        self,
        models: tuple[Model, ...],
        request: ModelRequest,
        *,
        ask: Ask = attempt,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = random_number,
    ) -> ModelResponse:
        """Asks some of the models, in the order given.

        Args:
            models: Which.
            request: What.
            ask: Makes one attempt.
            sleep: Waits that many seconds.
            random: Gives numbers from 0 to 1.

        Raises:
            ModelError: All failed. It is the last error that may pass, so that a later round can succeed, and the
                last of all if none may; the others are its notes.
        """
        errors: list[ModelError] = []
        for model in models:
            after = 0.0 if model is models[-1] else self.after.total_seconds()
            try:
                return await self._ask_for(after, model, request, ask, sleep, random)
            except ModelError as error:
                errors.append(error)
                if not (isinstance(error, NotAsked) or self.on(error)):
                    break
        told = next((failed for failed in reversed(errors) if failed.retryable), errors[-1])
        for failed in errors:
            if failed is not told:
                told.add_note(f"another model of {self.name!r} failed, too: {failed}")
        raise told

    async def _ask_for(
        self,
        seconds: float,
        model: Model,
        request: ModelRequest,
        ask: Ask,
        sleep: Callable[[float], Awaitable[None]],
        random: Callable[[], float],
    ) -> ModelResponse:
        """Asks one model until it answers or the time is over."""
        clock = asyncio.get_running_loop().time
        until, bound = clock() + seconds, _FIRST_PAUSE
        while True:
            try:
                await self._connect(model)
                return await ask(model, request, patience=seconds)
            except ModelError as error:
                pause = (error.retry_after or 0.0) + random() * bound
                if isinstance(error, NotAsked) or not error.retryable or clock() + pause >= until:
                    raise
            bound = min(2 * bound, _LONGEST_PAUSE)
            await sleep(pause)

    async def connect(self) -> None:
        """Connects the models that work offline; one that uses the network connects when it is first asked.

        A model that cannot connect is passed over, and tried anew by each later request.
        """
        offline = (self._connect(model) for model in self.models if not model.network)
        await asyncio.gather(*offline, return_exceptions=True)

    async def _connect(self, model: Model) -> None:
        connecting = self._connecting.get(id(model))
        if connecting is None or (connecting.done() and (connecting.cancelled() or connecting.exception())):
            connecting = self._connecting[id(model)] = asyncio.ensure_future(model.connect())
        try:
            await asyncio.shield(connecting)
        except Exception as error:
            if isinstance(error, ModelError):
                raise NotAsked(str(error), retryable=error.retryable, status=error.status) from error
            raise NotAsked(
                f"model {model.name!r} cannot be connected: {type(error).__name__}: {error}", retryable=True
            ) from error

    async def close(self) -> None:
        self._connecting.clear()
        async with AsyncExitStack() as stack:  # one that fails does not keep the others open
            for model in self.models:
                stack.push_async_callback(model.close)

    def __repr__(self) -> str:
        return f"FallbackModel({', '.join(map(repr, self.models))})"
