"""One attempt at one model, within its time limit."""

from __future__ import annotations

import asyncio
from typing import Protocol

from beam_agents.errors import ModelError
from beam_agents.messages import ModelRequest, ModelResponse
from beam_agents.models.base import Model


class NotAsked(ModelError):
    """A model was not asked at all: it cannot be connected, or others have found out that it is down."""


class Ask(Protocol):
    """Makes one attempt."""

    async def __call__(
        self, model: Model, request: ModelRequest, /, *, chances: int | None = None, patience: float | None = None
    ) -> ModelResponse:
        """Asks a model once, when its limits let it in.

        Args:
            model: Whom to ask.
            request: What; its settings have the time limit.
            chances: How many more requests of others may fail while this one waits for a model that is down.
            patience: Seconds since the model went down for which this one waits for it; `None` for ever.

        Raises:
            NotAsked: The model is down, and chances or patience have run out.
            ModelError: The request failed or took too long.
        """


async def attempt(
    model: Model, request: ModelRequest, *, chances: int | None = None, patience: float | None = None
) -> ModelResponse:
    """Asks a model once, without limits, for at most the settings' `timeout` seconds.

    Raises:
        ModelError: The request failed or took too long.
    """
    try:
        async with asyncio.timeout(request.settings.timeout):
            return await model.request(request)
    except TimeoutError as error:
        raise timed_out(model, request) from error


def timed_out(model: Model, request: ModelRequest) -> ModelError:
    """What an attempt that took too long came to."""
    limit = request.settings.timeout
    return ModelError(f"model {model.name!r} did not answer within {limit:g} s (ModelSettings.timeout)", retryable=True)
