"""For tests: models that need no network, a chat server that fails on demand, and the switch for network models."""

from beam_agents.models.function import FunctionModel, calls, say
from beam_agents.models.network import forbid_network_models
from beam_agents.testing.chat_server import Fault, MockChatServer
from beam_agents.testing.examples import example
from beam_agents.testing.schema_driven import SchemaModel
from beam_agents.testing.scripted import ScriptedModel, UnexpectedModelCall

__all__ = [
    "Fault",
    "FunctionModel",
    "MockChatServer",
    "SchemaModel",
    "ScriptedModel",
    "UnexpectedModelCall",
    "calls",
    "example",
    "forbid_network_models",
    "say",
]
