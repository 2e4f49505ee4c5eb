"""The models of one use of an agent in a worker process: connected once, and closed in the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from beam_agents.models.base import Model

_LOGGER = logging.getLogger(__name__)

_CONNECT_SECONDS = 5.0
"""How long closing waits for a model that is still being connected."""

_KEPT = 32
"""Connected models, from which on each new one lets go of those that nobody asks: code may make a model in each run."""

_IDLE_SECONDS = 900.0
"""How long a model was not asked that may be let go; no request takes as long."""


@dataclass
class _Connection:
    """A model's client in this process."""

    model: Model
    """Held, so that its id is no other model's."""
    made: asyncio.Task[None]
    asked_at: float
    """On the monotonic clock."""


class Connections:
    """Connects models, on the worker's loop."""

    def __init__(self) -> None:
        self._connections: OrderedDict[int, _Connection] = OrderedDict()

    def __len__(self) -> int:
        return len(self._connections)

    async def connect(self, model: Model) -> None:
        """Connects a model once; after a failure, anew at the next request."""
        known, now = self._connections.pop(id(model), None), time.monotonic()
        made = known.made if known is not None else None
        if made is None or (made.done() and (made.cancelled() or made.exception())):
            made = asyncio.ensure_future(model.connect())
        self._connections[id(model)] = _Connection(model, made, now)  # the one that was asked last is last
        while len(self._connections) > _KEPT and self._oldest().asked_at < now - _IDLE_SECONDS:
            await _disconnect(self._connections.popitem(last=False)[1])
        await asyncio.shield(made)

    async def close(self) -> None:
        """Closes all of them."""
        while self._connections:
            await _disconnect(self._connections.popitem(last=False)[1])

    def _oldest(self) -> _Connection:
        return next(iter(self._connections.values()))


async def _disconnect(connection: _Connection) -> None:
    try:
        await asyncio.wait_for(connection.made, _CONNECT_SECONDS)
        await connection.model.close()
    except Exception as error:
        _LOGGER.warning("closing model %r failed: %r", connection.model.name, error)
