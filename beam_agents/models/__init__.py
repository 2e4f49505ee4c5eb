"""Models: the contract, chat servers, fallback, and functions in the place of a model."""

from beam_agents.models.base import Model, Price
from beam_agents.models.fallback import FallbackModel
from beam_agents.models.function import FunctionModel, calls, say
from beam_agents.models.network import forbid_network_models
from beam_agents.models.openai_chat import OpenAIModel
from beam_agents.models.resolve import resolve_model

__all__ = [
    "FallbackModel",
    "FunctionModel",
    "Model",
    "OpenAIModel",
    "Price",
    "calls",
    "forbid_network_models",
    "resolve_model",
    "say",
]
