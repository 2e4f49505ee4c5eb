"""From an ended run to the outputs of `RunAgent`, with the event's own time and window."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from beam_agents.agent_base import AgentBase
from beam_agents.engine.emit import duplicate_of, failure_of, outcome_of
from beam_agents.engine.end import Ended, Pruned, Refused, trace_of
from beam_agents.events import Emitted, RunFailure
from beam_agents.transforms.envelope import FAILURES, Envelope

RESULTS = "results"
DUPLICATES = "duplicates"
TRACE = "trace"
EMITTED = "emitted"

Emission = tuple[str, Any, Envelope]
"""Output tag, (key, value), and the event whose time and window the value gets."""


def place(emission: Emission) -> tuple[str, WindowedValue]:
    """An emission as a DoFn in the global window yields it, for `RestoreWindows` to put into its own window."""
    tag, value, envelope = emission
    carried = (value, envelope.micros, bytes.fromhex(envelope.window))
    return tag, GlobalWindows.windowed_value(carried, envelope.timestamp)


class Emitter:
    """Says what is emitted, and counts it. Counts go to metrics, so it is used on bundle threads only.

    Args:
        agent: The agent.
        scope: Names the metrics.
    """

    def __init__(self, agent: AgentBase[Any, Any, Any, Any], scope: str) -> None:
        self._agent = agent
        names = ("decided", "replayed", "failed", "duplicates", "skipped", "model_calls", "tool_calls")
        self._count = {name: Metrics.counter(f"beam_agents.{scope}", name) for name in names}

    def outcome(self, key: Any, envelope: Envelope, outcome: Ended | Refused) -> Iterator[Emission]:
        """All that is emitted for an event."""
        if isinstance(outcome, Pruned):
            yield self.duplicate(key, envelope)
            return
        if isinstance(outcome, Refused):
            self._count["failed"].inc()
            failure = failure_of(self._agent, envelope.run_id, envelope.event, outcome)
            yield FAILURES, (key, failure), envelope
            return
        value = outcome_of(self._agent, outcome)
        self._count["replayed" if outcome.replayed else "decided"].inc()
        self._count["model_calls"].inc(outcome.model_calls)
        self._count["tool_calls"].inc(outcome.tool_calls)
        if isinstance(value, RunFailure):
            self._count["failed"].inc()
            yield FAILURES, (key, value), envelope
        else:
            self._count["skipped"].inc(int(value.skipped))
            yield RESULTS, (key, value), envelope
        for record in trace_of(envelope.run_id, outcome.effects):
            yield TRACE, (key, record), envelope
        for index, emitted in enumerate(outcome.end.emitted):
            yield EMITTED, (key, Emitted(run_id=envelope.run_id, index=index, value=emitted)), envelope

    def duplicate(self, key: Any, envelope: Envelope) -> Emission:
        """What is emitted for an event that came before."""
        self._count["duplicates"].inc()
        return DUPLICATES, (key, duplicate_of(self._agent, envelope.run_id, envelope.event)), envelope
