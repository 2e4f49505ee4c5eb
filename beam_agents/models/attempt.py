"""One attempt at one model, within its time limit."""

from __future__ import annotations

import asyncio

from beam_agents.errors import ModelError
from beam_agents.messages import ModelRequest, ModelResponse
from beam_agents.models.base import Model


async def attempt(model: Model, request: ModelRequest) -> ModelResponse:
    """Asks a model once, for at most the settings' `timeout` seconds.

    Raises:
        ModelError: The request failed or took too long.
    """
    limit = request.settings.timeout
    try:
        async with asyncio.timeout(limit):
            return await model.request(request)
    except TimeoutError as error:
        raise ModelError(
            f"model {model.name!r} did not answer within {limit:g} s (ModelSettings.timeout)", retryable=True
        ) from error
