"""The driver for bounded input: a key's events one after the other, the keys of a bundle side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from beam_agents.engine.end import Ended, Refused, conflict
from beam_agents.engine.live import Parked
from beam_agents.engine.worker import this_worker
from beam_agents.transforms.emission import Emission, Emitter, place
from beam_agents.transforms.envelope import Envelope
from beam_agents.transforms.use import AgentUse

if TYPE_CHECKING:
    from beam_agents.engine.host import Host

Outcome = tuple[Envelope, Ended | Refused | None]
"""What an event came to; `None` for a duplicate."""


class BatchDoFn(beam.DoFn):
    """Runs the grouped events of each key in the order of their time; emits when the bundle ends.

    Args:
        use: The agent and where it runs.
    """

    def __init__(self, use: AgentUse) -> None:
        self._use = use
        self._emitter = Emitter(use.agent, use.scope)
        self._chains: list[tuple[Any, Future[list[Outcome]]]] = []

    def setup(self) -> None:
        """Joins the worker."""
        self._host: Host = self._use.join()

    def teardown(self) -> None:
        """Leaves the worker."""
        self._use.leave(self._host)

    def start_bundle(self) -> None:
        """Begins with no keys."""
        self._chains = []

    def process(self, element: tuple[Any, Iterable[bytes]]) -> None:
        """Starts a key's first run."""
        key, encoded = element
        envelopes = sorted(map(Envelope.from_json, encoded), key=lambda e: (e.micros, e.run_id, e.digest))
        chain = asyncio.run_coroutine_threadsafe(self._chain(key, envelopes), this_worker().loop)
        self._chains.append((key, chain))

    def finish_bundle(self) -> Iterator[TaggedOutput]:
        """Waits for all keys, and emits."""
        for key, chain in self._chains:
            for envelope, outcome in chain.result():
                for emission in self._emissions(key, envelope, outcome):
                    yield TaggedOutput(*place(emission))
        self._chains = []

    def _emissions(self, key: Any, envelope: Envelope, outcome: Ended | Refused | None) -> Iterator[Emission]:
        if outcome is None:
            yield self._emitter.duplicate(key, envelope)
        else:
            yield from self._emitter.outcome(key, envelope, outcome)

    async def _chain(self, key: Any, envelopes: list[Envelope]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        digests: dict[str, str] = {}
        last: Ended | Refused | None = None
        async with self._host.run_slots(self._use.max_open_runs):
            for envelope in envelopes:
                before = digests.get(envelope.run_id)
                if before is None:
                    digests[envelope.run_id] = envelope.digest
                    last = await self._run(key, envelope, last)
                    outcomes.append((envelope, last))
                elif before == envelope.digest:
                    outcomes.append((envelope, None))
                else:
                    outcomes.append((envelope, conflict(envelope.run_id)))
        return outcomes

    async def _run(self, key: Any, envelope: Envelope, last: Ended | Refused | None) -> Ended | Refused:
        session: dict[str, Any] = {}
        if self._use.ephemeral and isinstance(last, Ended):  # no head remembers it
            session = {"session": last.session, "session_version": last.session_version}
        while True:
            handle = self._host.start(self._use.task(key, envelope, batch=True, **session))
            try:
                return await asyncio.wrap_future(handle.done)
            except Parked:  # let go by a DoFn that is gone, as this one came
                continue
            finally:
                self._host.forget(handle.run)
