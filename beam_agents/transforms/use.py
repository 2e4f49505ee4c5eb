"""What a DoFn of `RunAgent` carries to the workers, and the host it joins there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from apache_beam.internal import cloudpickle_pickler
from apache_beam.utils.timestamp import MIN_TIMESTAMP

from beam_agents.agent_base import AgentBase
from beam_agents.codec import key_of, key_text
from beam_agents.engine.task import Task
from beam_agents.engine.worker import this_worker
from beam_agents.errors import ConfigurationError
from beam_agents.ledger.base import Ledger
from beam_agents.ledger.records import Run, RunKey
from beam_agents.transforms.envelope import Envelope

if TYPE_CHECKING:
    from beam_agents.engine.host import Host

WhenFull: TypeAlias = Literal["fail", "block"]
"""What becomes of an event of a key with too many that wait."""


@dataclass(frozen=True)
class AgentUse:
    """One use of an agent in a pipeline.

    The agent travels as bytes, so that all DoFns of a worker process share one copy of it: one set of model clients
    and dependencies.
    """

    pickled: bytes
    identity: str
    """Digest of the pickled agent; the name under which copies find each other."""
    ledger: Ledger
    scope: str
    network_forbidden: bool
    ephemeral: bool
    """No ledger was given: nothing outlives the process, and runs start over after a crash."""
    dedupe_for: timedelta
    session_ttl: timedelta | None
    max_open_runs: int = 10_000
    max_waiting: int | None = None
    when_full: WhenFull = "fail"

    @staticmethod
    def pickle(agent: AgentBase[Any, Any, Any, Any]) -> bytes:
        """The agent as it travels.

        Raises:
            ConfigurationError: Something in it cannot be pickled.
        """
        try:
            pickled: bytes = cloudpickle_pickler.dumps(agent)
        except Exception as error:
            raise ConfigurationError(
                f"agent {agent.name!r} cannot be pickled, which it must be to reach the workers: {error}; make what "
                "cannot travel (connections, locks, clients) within deps=..., on the worker"
            ) from error
        return pickled

    @cached_property
    def agent(self) -> AgentBase[Any, Any, Any, Any]:
        """The agent."""
        agent: AgentBase[Any, Any, Any, Any] = cloudpickle_pickler.loads(self.pickled)
        return agent

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "agent"}

    def join(self) -> Host:
        """Joins the host in this worker process."""
        return this_worker().join(self.agent, self.identity, self.ledger, self.scope)

    def find(self) -> Host | None:
        """The host in this worker process, if a DoFn has joined it."""
        return this_worker().find(self.identity, self.ledger, self.scope)

    def leave(self, host: Host) -> None:
        """Leaves it."""
        this_worker().leave(host)

    def run_key(self, key: Any, envelope: Envelope, revision: int | None = None) -> RunKey:
        """The run of an event, under the agent's revision unless it began under another."""
        agent = self.agent
        return RunKey(self.scope, agent.name, revision or agent.revision, key_text(key), envelope.run_id)

    def task_of_record(self, run: Run) -> Task:
        """The task of an open run, whose event may never come back."""
        envelope = Envelope(run_id=run.key.run_id, event=run.event, digest=run.digest, micros=0)
        return replace(self.task(key_of(run.key.key), envelope, run.key), event_time=run.event_time)

    def task(self, key: Any, envelope: Envelope, run: RunKey | None = None, **more: Any) -> Task:
        """The task of an event.

        Args:
            key: The Beam key.
            envelope: The event.
            run: Its run, if that is not the agent's at its revision of today.
            more: More of the task.
        """
        return Task(
            run=run or self.run_key(key, envelope),
            key=key,
            event=envelope.event,
            digest=envelope.digest,
            event_time=envelope.micros if envelope.micros > MIN_TIMESTAMP.micros else None,
            session_ttl=None if self.session_ttl is None else self.session_ttl // timedelta(microseconds=1),
            network_forbidden=self.network_forbidden,
            pure_only=self.ephemeral,
            **more,
        )
