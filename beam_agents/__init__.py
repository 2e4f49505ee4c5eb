"""AI agents that live in event streams: stateful Apache Beam transforms that do nothing twice."""

from beam_agents.agent import Agent
from beam_agents.budget import Budget, Usage
from beam_agents.context import RunContext
from beam_agents.engine.host import WorkerStatus
from beam_agents.engine.worker import worker_status
from beam_agents.errors import (
    BeamAgentsError,
    ConfigurationError,
    FailRun,
    LedgerChanged,
    ModelError,
    ModelRetry,
    RunFailed,
    ToolError,
    ToolFailed,
)
from beam_agents.events import Duplicate, Emitted, FailureReason, RunFailure, RunResult, TraceRecord
from beam_agents.history import History
from beam_agents.limits import ModelLimits
from beam_agents.messages import ModelSettings
from beam_agents.models.base import Model, Price
from beam_agents.output import InvalidOutput
from beam_agents.template import Template
from beam_agents.tools import CannotHappen, Happened, Tool, Unknown, tool
from beam_agents.transforms.run_agent import AgentOutputs, RunAgent
from beam_agents.workflow import workflow

__all__ = [
    "Agent",
    "AgentOutputs",
    "BeamAgentsError",
    "Budget",
    "CannotHappen",
    "ConfigurationError",
    "Duplicate",
    "Emitted",
    "FailRun",
    "FailureReason",
    "Happened",
    "History",
    "InvalidOutput",
    "LedgerChanged",
    "Model",
    "ModelError",
    "ModelLimits",
    "ModelRetry",
    "ModelSettings",
    "Price",
    "RunAgent",
    "RunContext",
    "RunFailed",
    "RunFailure",
    "RunResult",
    "Template",
    "Tool",
    "ToolError",
    "ToolFailed",
    "TraceRecord",
    "Unknown",
    "Usage",
    "WorkerStatus",
    "tool",
    "worker_status",
    "workflow",
]
