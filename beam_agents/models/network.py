"""The switch that forbids models which use the network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from beam_agents.errors import ConfigurationError, NetworkModelForbidden
from beam_agents.models.base import Model
from beam_agents.models.fallback import FallbackModel

SWITCH = "BEAM_AGENTS_NETWORK_MODELS"
"""Environment variable: `forbid` forbids network models, `allow` or nothing allows them."""


def network_models_forbidden() -> bool:
    """Whether the environment of this process forbids models that use the network.

    Raises:
        ConfigurationError: The variable has a value that is not known; a typing error must not cost money.
    """
    value = os.environ.get(SWITCH, "allow")
    if value not in ("allow", "forbid"):
        raise ConfigurationError(f"environment variable {SWITCH}={value!r}: set it to 'forbid' or 'allow', or unset it")
    return value == "forbid"


@contextmanager
def forbid_network_models() -> Iterator[None]:
    """Forbids models that use the network, in this process and in those it starts, until the block ends."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "forbid"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before


def check_network_allowed(model: Model, forbidden: bool) -> tuple[Model, ...]:
    """The models that may be asked in the place of `model`: itself, or those of a `FallbackModel` that are allowed.

    Raises:
        NetworkModelForbidden: None is.
    """
    asked = model.models if isinstance(model, FallbackModel) else (model,)
    allowed = tuple(member for member in asked if not (forbidden and member.network))
    if not allowed:
        raise NetworkModelForbidden(
            f"model {model.name!r} uses the network and {SWITCH}=forbid is set: give a model that works offline "
            "(FunctionModel, ScriptedModel), or unset the variable and leave forbid_network_models()"
        )
    return allowed
