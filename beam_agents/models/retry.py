"""Asking a model until it answers or it is clear that it will not."""

from __future__ import annotations

import asyncio
import random as random_numbers
from collections.abc import Awaitable, Callable

from beam_agents.errors import ModelError
from beam_agents.messages import ModelRequest, ModelResponse
from beam_agents.models.attempt import attempt
from beam_agents.models.base import Model
from beam_agents.models.fallback import FallbackModel
from beam_agents.models.network import check_network_allowed, network_models_forbidden

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0


async def request_with_retries(
    model: Model,
    request: ModelRequest,
    *,
    forbidden: bool = False,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    random: Callable[[], float] = random_numbers.random,
) -> ModelResponse:
    """Asks a model, again after passing failures, as the request's settings say.

    The pauses grow exponentially with full jitter, as in "Exponential Backoff And Jitter" by Marc Brooker, AWS
    Architecture Blog, 2015: a random time between zero and the doubled bound, so that runs which failed together
    do not come back together. The time a server asks for is waited in addition.

    Args:
        model: Whom to ask.
        request: What; its settings have the time limit of an attempt and the number of retries.
        forbidden: Whether models that use the network are forbidden; the environment's switch counts as well.
        sleep: Waits that many seconds, or raises when the request is wanted no more; also called, with 0, between two
            models of a `FallbackModel`.
        random: Gives numbers from 0 to 1.

    Raises:
        NetworkModelForbidden: The model uses the network, and that is forbidden.
        ModelError: It failed for good, or once more than `retries`. There is no bound on the whole time: the caller
            keeps its deadline by cancelling this.
    """
    allowed = check_network_allowed(model, forbidden or network_models_forbidden())
    bound = _FIRST_PAUSE
    retries_left = request.settings.retries
    while True:
        try:
            if isinstance(model, FallbackModel):
                return await model.request_from(allowed, request, sleep)
            return await attempt(model, request)
        except ModelError as error:
            if not error.retryable or not retries_left:
                raise
            pause = (error.retry_after or 0.0) + random() * bound
        retries_left -= 1
        bound = min(2 * bound, _LONGEST_PAUSE)
        await sleep(pause)
