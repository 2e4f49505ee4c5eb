"""The contract of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from beam_agents.limits import ModelLimits
from beam_agents.messages import ModelRequest, ModelResponse


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a model costs, in US dollars for a million tokens."""

    input: float
    output: float

    def of(self, input_tokens: int, output_tokens: int) -> float:
        """US dollars of one answer."""
        return (input_tokens * self.input + output_tokens * self.output) / 1_000_000


class Model(ABC):
    """A language model, or something that stands in for one.

    An instance is pickled with the agent and unpickled in each worker, perhaps several times, so it holds no
    live client: make those in `connect`, which is called once on each worker's event loop. An answer may depend
    on the request alone, never on how often or where the model was asked: after a crash the same request is
    asked again in another process.
    """

    network: bool = True
    """Whether it sends requests over a network; such models can be forbidden (`forbid_network_models`)."""

    limits: ModelLimits = ModelLimits()
    """How much of it a worker process may use; without limits, a model that is down or asks for a pause is heeded."""

    @property
    def server(self) -> str | None:
        """Names the model and where it is: instances with the same share their limits, and what is known of outages.
        `None` for an instance that stands for itself, as those do that work offline.
        """
        return self.name if self.network else None

    @property
    @abstractmethod
    def name(self) -> str:
        """The name under which answers are journaled, for example `openai:gpt-5-mini`."""

    @property
    def price(self) -> Price | None:
        """What it costs; `None` where that is not known, and then a cost budget cannot be kept."""
        return None

    @abstractmethod
    async def request(self, request: ModelRequest) -> ModelResponse:
        """Answers one request: a single attempt, the engine does the retries.

        Raises:
            ModelError: The request failed; it says whether and when to try again.
        """

    async def connect(self) -> None:
        """Opens clients; called once in each worker process before the first request, on its event loop."""

    async def close(self) -> None:
        """Closes what `connect` opened."""
