"""A call's turn: what it waits for before its intent is recorded, and holds while it is made."""

from __future__ import annotations

import asyncio
import random
from types import TracebackType
from typing import Any, Self

from beam_agents.engine.limiter import Limiter, Permit
from beam_agents.engine.limits import HostLimits
from beam_agents.errors import ModelError, NetworkModelForbidden
from beam_agents.messages import ModelRequest, ModelResponse
from beam_agents.models.attempt import NotAsked
from beam_agents.models.base import Model
from beam_agents.models.fallback import FallbackModel
from beam_agents.models.network import check_network_allowed
from beam_agents.tools import Tool

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0


class Turn:
    """An effect's turn, from entering it as a context manager to leaving it. This one is of what needs none.

    Args:
        limits: Of the host.
        key: Of the run.

    Attributes:
        waits: Whether it waits, so that nothing is under way; it may be cancelled then.
    """

    __slots__ = ("_held", "_key", "_limits", "waits")

    def __init__(self, limits: HostLimits, key: str) -> None:
        self._limits = limits
        self._key = key
        self._held: list[tuple[Limiter, Permit]] = []
        self.waits = False

    @property
    def trouble(self) -> ModelError | None:
        """Why a model has not answered yet, if it is one."""
        return None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    async def sleep(self, seconds: float) -> None:
        """A pause between two attempts, while nothing is held."""
        self.waits = True
        try:
            await asyncio.sleep(seconds)
        finally:
            self.waits = False

    def leave(self, outcome: ModelResponse | ModelError | None = None) -> None:
        """Gives back what is held.

        Args:
            outcome: What came of the call, if that says anything of the model.
        """
        while self._held:
            limiter, permit = self._held.pop()
            limiter.leave(permit, outcome)

    async def _take(
        self,
        limiters: tuple[Limiter, ...],
        request: ModelRequest | None = None,
        chances: int | None = None,
        patience: float | None = None,
    ) -> None:
        try:
            for limiter in limiters:
                tokens = 0.0 if request is None else limiter.tokens_of(request)
                permit = limiter.try_take(tokens)
                if permit is None:
                    self.waits = True
                    permit = await limiter.take(self._key, tokens, chances=chances, patience=patience)
                self._held.append((limiter, permit))
        except BaseException:
            self.leave()
            raise
        finally:
            self.waits = False


class ToolTurn(Turn):
    """The turn of a tool call.

    Args:
        limits: Of the host.
        key: Of the run.
        tool: What is called.
    """

    __slots__ = ("_tool",)

    def __init__(self, limits: HostLimits, key: str, tool: Tool[Any]) -> None:
        super().__init__(limits, key)
        self._tool = tool

    async def __aenter__(self) -> Self:
        await self._take(self._limits.of_tool(self._tool))
        return self


class ModelTurn(Turn):
    """The turn of a model request, first before its intent, then before each further request under that intent.

    Args:
        limits: Of the host.
        key: Of the run.
        model: Whom to ask.
        request: What.
        forbidden: Whether models that use the network are forbidden.
    """

    __slots__ = ("_asked", "_failed", "_forbidden", "_model", "_refused", "_request")

    def __init__(self, limits: HostLimits, key: str, model: Model, request: ModelRequest, *, forbidden: bool) -> None:
        super().__init__(limits, key)
        self._model = model
        self._request = request
        self._forbidden = forbidden
        self._asked: Model | None = None
        self._refused: NotAsked | None = None
        self._failed: ModelError | None = None

    @property
    def trouble(self) -> ModelError | None:
        """Why there is no answer yet: how the last request failed, or what others found out."""
        return self._failed or (self._limits.trouble(self._asked) if self._asked is not None else None)

    def leave(self, outcome: ModelResponse | ModelError | None = None) -> None:
        if isinstance(outcome, ModelError):
            self._failed = outcome
        super().leave(outcome)

    async def __aenter__(self) -> Self:
        retries = self._request.settings.retries
        try:
            if isinstance(self._model, FallbackModel):
                await self._take_any(self._model, retries)
            elif not (self._forbidden and self._model.network):
                await self.take(self._model, chances=retries)
        except NetworkModelForbidden:
            pass  # told when it is asked
        except NotAsked as error:
            self._refused = error
        return self

    async def _take_any(self, fallback: FallbackModel, rounds: int | None) -> None:
        members = check_network_allowed(fallback, self._forbidden)
        after, bound = fallback.after.total_seconds(), _FIRST_PAUSE
        while True:
            for member in members:
                try:
                    await self.take(member, patience=0.0 if member is members[-1] else after)
                    return
                except NotAsked as error:
                    down = error
            if rounds == 0:
                raise NotAsked(str(down), retryable=False)
            rounds = None if rounds is None else rounds - 1
            await self.sleep(random.random() * bound)
            bound = min(2 * bound, _LONGEST_PAUSE)

    def holds(self, model: Model) -> bool:
        """Whether this model may be asked now: it is its turn, and nobody has found it down since.

        Raises:
            NotAsked: The model was down for too long before the intent.
        """
        if self._refused is not None:
            raise self._refused
        return (
            bool(self._held) and self._asked is model and all(limiter.stands(permit) for limiter, permit in self._held)
        )

    async def take(self, model: Model, *, chances: int | None = None, patience: float | None = None) -> None:
        """Waits for the turn of a model, in the place of what is held.

        Args:
            model: Which.
            chances: As for `Limiter.take`.
            patience: As for `Limiter.take`.

        Raises:
            NotAsked: The model is down, and chances or patience have run out.
        """
        self.leave()
        self._asked = model
        await self._take(self._limits.of_model(model), self._request, chances, patience)

    def use(self) -> None:
        """Says that the request is sent now."""
        for _, permit in self._held:
            permit.used = True
