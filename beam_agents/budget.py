"""Budgets: what a run may use before it is ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from pydantic import BaseModel, ConfigDict

from beam_agents.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that one run may use. A run that would go over it ends in `failures` with its transcript.

    Counts come from the journal, so a crash neither resets nor doubles them. A count is checked before each
    step, so at most the step in flight goes over.
    """

    steps: int = 10
    """Model requests. Ten is several tool rounds; a run that needs more is usually in a loop."""
    tool_calls: int = 50
    """Tool calls, all tools together."""
    tokens: int | None = None
    """Input and output tokens of all steps together; `None` for no bound."""
    cost_usd: float | None = None
    """US dollars of all steps together; kept only for models whose price is known; `None` for no bound."""
    wall_clock: timedelta = timedelta(minutes=5)
    """In a stream, from the run's first opening, crashes included. In a batch, the time that a worker held it."""

    def __post_init__(self) -> None:
        for name in ("steps", "tool_calls", "tokens", "cost_usd"):
            value = getattr(self, name)
            if value is not None and value <= 0 and not (name == "tool_calls" and value == 0):
                raise ConfigurationError(
                    f"Budget({name}={value!r}): a run could not do anything; give {name} a value above zero"
                    + (" or None for no bound" if name in ("tokens", "cost_usd") else "")
                )
        if self.wall_clock <= timedelta(0):
            raise ConfigurationError(f"Budget(wall_clock={self.wall_clock!r}): give it a time above zero")


class Usage(BaseModel):
    """What a run has used."""

    model_config = ConfigDict(frozen=True)

    steps: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = 0.0
    """US dollars; `None` as soon as one answer's price was not known."""

    @property
    def tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens
