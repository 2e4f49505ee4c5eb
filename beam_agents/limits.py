"""Limits: how much a worker process asks of a model at one time, and in a minute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beam_agents.errors import ConfigurationError

if TYPE_CHECKING:
    from apache_beam.io.components.rate_limiter import RateLimiter


@dataclass(frozen=True, kw_only=True)
class ModelLimits:
    """The most that one worker process asks of a model, all runs and agents together; `None` for no limit.

    Runs that have to wait are served in turn, key by key; the time counts against their budget of time. Every
    worker process counts for itself: divide a server's quota by their number, or give `shared`.
    """

    in_flight: int | None = None
    """Requests under way at one time."""
    requests_per_minute: int | None = None
    """Spread evenly: a second's worth may be sent at once."""
    tokens_per_minute: int | None = None
    """Input and output together; estimated at four characters each before a request, corrected by its answer."""
    shared: RateLimiter | None = None
    """A rate limiter of Beam's interface (`apache_beam.io.components.rate_limiter`) for all workers together, such as
    `EnvoyRateLimiter`. It is asked once for each request, in a thread."""

    def __post_init__(self) -> None:
        for name in ("in_flight", "requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigurationError(f"ModelLimits({name}={value!r}): give a whole number above zero, or None")
        if self.shared is not None and not callable(getattr(self.shared, "allow", None)):
            raise ConfigurationError(
                f"ModelLimits(shared={self.shared!r}): give a RateLimiter of apache_beam.io.components.rate_limiter"
            )

    def agrees_with(self, other: ModelLimits) -> bool:
        """Whether both say the same; copies of one shared limiter do."""
        return _plain(self) == _plain(other)


def _plain(limits: ModelLimits) -> tuple[Any, ...]:
    shared = limits.shared
    settings = None if shared is None else (type(shared), _settings(shared))
    return limits.in_flight, limits.requests_per_minute, limits.tokens_per_minute, settings


def _settings(limiter: RateLimiter) -> dict[str, Any]:
    """What a limiter was made with: Beam's have no equality, and each worker gets several copies."""
    plain = (str, int, float, bool, list, tuple, dict)
    return {name: value for name, value in vars(limiter).items() if isinstance(value, plain)}
