"""For tests: models without a network, a chat server that fails on demand, crashes, and the switch for real ones."""

from beam_agents.models.function import FunctionModel, calls, say
from beam_agents.models.network import forbid_network_models
from beam_agents.testing.chat_server import Fault, MockChatServer
from beam_agents.testing.examples import example
from beam_agents.testing.faults import CRASH_STATUS, FAULT_POINTS, FaultPoint, crash_at, crash_at_each
from beam_agents.testing.schema_driven import SchemaModel
from beam_agents.testing.scripted import ScriptedModel, UnexpectedModelCall

__all__ = [
    "CRASH_STATUS",
    "FAULT_POINTS",
    "Fault",
    "FaultPoint",
    "FunctionModel",
    "MockChatServer",
    "SchemaModel",
    "ScriptedModel",
    "UnexpectedModelCall",
    "calls",
    "crash_at",
    "crash_at_each",
    "example",
    "forbid_network_models",
    "say",
]
