"""Asking a model until it answers or it is clear that it will not."""

from __future__ import annotations

import asyncio
import random as random_numbers
from collections.abc import Awaitable, Callable

from beam_agents.errors import ModelError
from beam_agents.messages import ModelRequest, ModelResponse
from beam_agents.models.attempt import Ask, attempt
from beam_agents.models.base import Model
from beam_agents.models.fallback import FallbackModel
from beam_agents.models.network import check_network_allowed, network_models_forbidden

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0

_OK = 200
_USELESS_ANSWERS = 3
"""How often an answer that was given, and may have been paid, but cannot be read is asked for again by default."""


async def request_with_retries(
    model: Model,
    request: ModelRequest,
    *,
    forbidden: bool = False,
    ask: Ask = attempt,
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
        ask: Makes one attempt.
        sleep: Waits that many seconds.
        random: Gives numbers from 0 to 1.

    Raises:
        NetworkModelForbidden: The model uses the network, and that is forbidden.
        ModelError: It failed for good, or once more than `retries`. There is no bound on the whole time: the caller
            keeps its deadline by cancelling this.
    """
    allowed = check_network_allowed(model, forbidden or network_models_forbidden())
    bound = _FIRST_PAUSE
    left = request.settings.retries
    useless_left = _USELESS_ANSWERS if left is None else left
    while True:
        try:
            if isinstance(model, FallbackModel):
                return await model.request_from(allowed, request, ask=ask, sleep=sleep, random=random)
            return await ask(model, request, chances=left)
        except ModelError as error:
            useless = error.status == _OK
            if not error.retryable or left == 0 or (useless and not useless_left):
                raise
            pause = (error.retry_after or 0.0) + random() * bound
        left = None if left is None else left - 1
        useless_left -= useless
        bound = min(2 * bound, _LONGEST_PAUSE)
        await sleep(pause)
