"""`RunAgent`: an agent as a transform over keyed events."""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from types import GenericAlias
from typing import Any, get_args

import apache_beam as beam
from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions
from apache_beam.pipeline import AppliedPTransform, Pipeline
from apache_beam.pvalue import PCollection
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms.window import GlobalWindows
from apache_beam.typehints.native_type_compatibility import convert_to_beam_type
from apache_beam.typehints.typehints import Any as AnyHint
from apache_beam.typehints.typehints import UnionConstraint, coerce_to_kv_type

from beam_agents.agent_base import AgentBase
from beam_agents.codec import digest, key_of
from beam_agents.errors import ConfigurationError, NetworkModelForbidden
from beam_agents.events import Duplicate, Emitted, Identified, RunFailure, RunResult, TraceRecord
from beam_agents.ledger.base import Ledger
from beam_agents.ledger.memory import EphemeralLedger
from beam_agents.ledger.urls import ledger_from
from beam_agents.models.network import check_network_allowed, network_models_forbidden
from beam_agents.template import field_names, members
from beam_agents.transforms.batch import BatchDoFn
from beam_agents.transforms.coders import AnyKey, register
from beam_agents.transforms.doorbell import Doorbell
from beam_agents.transforms.emission import DUPLICATES, EMITTED, RESULTS, TRACE
from beam_agents.transforms.envelope import FAILURES, Admit, EventId
from beam_agents.transforms.flink import prepare_for_flink
from beam_agents.transforms.streaming import StreamingDoFn
from beam_agents.transforms.use import AgentUse, WhenFull
from beam_agents.transforms.windows import RestoreWindows, window_coder


@dataclass(frozen=True, kw_only=True)
class AgentOutputs:
    """The outputs of `RunAgent`: each value with its key, its event's time and the input's window."""

    results: PCollection[Any]
    """(key, `RunResult`): one for each event that was decided."""
    failures: PCollection[Any]
    """(key, `RunFailure`): one for each event that has no answer, with the reason and the transcript."""
    duplicates: PCollection[Any]
    """(key, `Duplicate`): events that came again."""
    trace: PCollection[Any]
    """(key, `TraceRecord`): one for each step, when its run has ended."""
    emitted: PCollection[Any]
    """(key, `Emitted`): what workflows gave to `ctx.emit`."""


class AgentOptions(PipelineOptions):
    """The options of pipelines with agents."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--accept_state_older_than_ledger",
            action="store_true",
            help="Go on from a savepoint though runs that were closed after it were pruned from the ledger: what they "
            "came to is not emitted.",
        )


class RunAgent(beam.PTransform[Any, Any]):
    """Runs an agent on each event of a PCollection of (key, event).

    Bounded input takes the batch driver, unbounded input the streaming one; the results are the same.

    Args:
        agent: An `Agent` or a workflow.
        event_id: The field that names an event, or a function of the event. The id must come from the durable source
            (a transaction id, topic-partition-offset), so that it is the same after any replay. Left out only where the
            source gives ids, as `ReadKafka` does: a hash of the content would take two equal readings for one.
        ledger: `"sqlite:///runs.db"` or a `Ledger`. `None` only when every tool is `pure`: runs then start over after
            a crash.
        scope: A stable name for this use of the agent, unique in the pipeline; the agent's name by default. Two jobs
            with the same scope on one ledger go on from each other.
        dedupe_for: How long, in a stream, an event that comes again is known as a duplicate.
        session_ttl: Event time after which a key's conversation and state start anew; `None` for never.
        max_open_runs: How many runs a worker process holds; the events of others wait in Beam's state (in a batch, in
            their bundle) until one ends. A run that waits for its model is some 20 kB and what was said in it.
        max_waiting: How many events of one key wait in a stream while it is busy; `None` for no limit.
        when_full: What becomes of an event of a key with `max_waiting`: `"fail"` puts it into `failures` as
            `overloaded`, `"block"` holds up its bundle until there is room, at most ten seconds, which slows down the
            source and with it all keys.

    Raises:
        ConfigurationError: Something cannot work; it says what to change.
    """

    def __init__(
        self,
        agent: AgentBase[Any, Any, Any, Any],
        *,
        event_id: EventId | None = None,
        ledger: str | Ledger | None = None,
        scope: str | None = None,
        dedupe_for: timedelta = timedelta(days=7),
        session_ttl: timedelta | None = timedelta(days=90),
        max_open_runs: int = 10_000,
        max_waiting: int | None = None,
        when_full: WhenFull = "fail",
    ) -> None:
        super().__init__()
        self.agent = agent
        self.scope: str = scope or str(getattr(agent, "name", ""))
        self._event_id = event_id
        self._check(ledger, dedupe_for, session_ttl)
        self._check_limits(max_open_runs, max_waiting, when_full)
        pickled = AgentUse.pickle(agent)
        ephemeral = ledger is None
        store = EphemeralLedger(uuid.uuid4().hex) if ledger is None else ledger_from(ledger)
        self._use = AgentUse(
            pickled=pickled,
            identity=digest(pickled.hex()),
            ledger=store,
            scope=self.scope,
            network_forbidden=network_models_forbidden(),
            ephemeral=ephemeral,
            dedupe_for=dedupe_for,
            session_ttl=session_ttl,
            max_open_runs=max_open_runs,
            max_waiting=max_waiting,
            when_full=when_full,
        )

    @staticmethod
    def _check_limits(max_open_runs: int, max_waiting: int | None, when_full: WhenFull) -> None:
        for name, number in (("max_open_runs", max_open_runs), ("max_waiting", max_waiting)):
            if number is not None and number < 1:
                raise ConfigurationError(f"RunAgent({name}={number!r}) must be 1 or more")
        if when_full not in get_args(WhenFull):
            raise ConfigurationError(f"RunAgent(when_full={when_full!r}) must be 'fail' or 'block'")

    def _check(self, ledger: str | Ledger | None, dedupe_for: timedelta, session_ttl: timedelta | None) -> None:
        agent, event_id = self.agent, self._event_id
        if not isinstance(agent, AgentBase):
            raise ConfigurationError(f"RunAgent takes an Agent or a workflow, not {agent!r}")
        changing = [tool for tool in agent.tools if tool.effect != "pure"]
        if ledger is None and changing:
            raise ConfigurationError(
                f"agent {agent.name!r} has the tool {changing[0].name!r} with effect={changing[0].effect!r}, which may "
                "not run again after a crash: give RunAgent a ledger, for example ledger='sqlite:///runs.db'"
            )
        for name, time in (("dedupe_for", dedupe_for), ("session_ttl", session_ttl)):
            if time is not None and time <= timedelta(0):
                raise ConfigurationError(f"RunAgent({name}={time!r}) must be above zero")
        if event_id is not None and not callable(event_id):
            if not isinstance(event_id, str) or not event_id:
                raise ConfigurationError(
                    f"RunAgent(event_id={event_id!r}) must name a field of the event, or be a function of the event"
                )
            for member in members(agent.event_type):
                names = field_names(member)
                if names is not None and event_id not in names:
                    raise ConfigurationError(
                        f"RunAgent(event_id={event_id!r}): {member.__name__} has no such field, it has: "
                        f"{', '.join(names)}; name one of them, or give a function of the event"
                    )
        if agent.model is not None and network_models_forbidden():
            try:
                check_network_allowed(agent.model, True)
            except NetworkModelForbidden as error:
                raise ConfigurationError(str(error)) from error

    def default_label(self) -> str:
        """The agent's name."""
        return f"RunAgent({self.scope})"

    def display_data(self) -> dict[str, Any]:
        """What a runner shows of the transform."""
        budget = self.agent.budget
        return {
            "agent": self.agent.name,
            "scope": self.scope,
            "revision": self.agent.revision,
            "model": self.agent.model.name if self.agent.model else "none",
            "tools": ", ".join(f"{tool.name} ({tool.effect})" for tool in self.agent.tools),
            "ledger": "none" if self._use.ephemeral else self._use.ledger.url,
            "budget": f"{budget.steps} steps, {budget.tool_calls} tool calls, {budget.wall_clock}",
        }

    def annotations(self) -> dict[str, str]:
        """The same in the pipeline's proto."""
        return {f"beam_agents:{name}": str(value) for name, value in self.display_data().items()}

    def expand(self, pcoll: PCollection[Any]) -> AgentOutputs:
        """Builds the stages."""
        key_type, value_type = self._types(pcoll)
        if self._event_id is None and value_type is not Any and not _is_identified(value_type):
            raise ConfigurationError(
                f"RunAgent({self.agent.name!r}): give event_id=..., a field of the event that names it for ever or a "
                f"function of the event; only a source's `Identified` has an id already, and these are {value_type}"
            )
        self._check_scope(pcoll.pipeline)
        ledger = None if self._use.ephemeral else self._use.ledger
        prepare_for_flink(pcoll.pipeline, bounded=pcoll.is_bounded, ledger=ledger)
        agent, windowing = self.agent, pcoll.windowing
        types = {
            RESULTS: RunResult[agent.event_type, agent.output_type],  # type: ignore[name-defined]
            FAILURES: RunFailure[agent.event_type],  # type: ignore[name-defined]
            DUPLICATES: Duplicate[agent.event_type],  # type: ignore[name-defined]
            TRACE: TraceRecord,
            EMITTED: Emitted,
        }
        register(agent.event_type, agent.output_type, *types.values())
        admitted = pcoll | "Admit" >> beam.ParDo(
            Admit(agent, self._event_id, self.scope, window_coder(windowing))
        ).with_outputs(FAILURES, main="events")
        refused = admitted[FAILURES]
        refused.element_type = _tuple_of(key_type, types[FAILURES])
        inner_key = AnyKey if key_type is Any else key_type
        events = admitted["events"] | "Global" >> beam.WindowInto(GlobalWindows())
        events.element_type = _tuple_of(inner_key, bytes)
        done = self._drive(events, pcoll, inner_key)
        outputs: dict[str, Any] = {}
        for tag, type_ in types.items():
            pair = _tuple_of(key_type, type_)
            done[tag].element_type = _tuple_of(pair, int, bytes)
            outputs[tag] = done[tag] | f"Restore {tag}" >> RestoreWindows(windowing, value_type=pair)
        outputs[FAILURES] = (refused, outputs[FAILURES]) | "Failures" >> beam.Flatten()
        return AgentOutputs(**outputs)

    def _drive(self, events: Any, pcoll: Any, key_type: Any) -> Any:
        tags = (RESULTS, FAILURES, DUPLICATES, TRACE, EMITTED)
        if pcoll.is_bounded:
            return events | "Group" >> beam.GroupByKey() | "Run" >> beam.ParDo(BatchDoFn(self._use)).with_outputs(*tags)
        # Prism (2.77) lets two bundles of one key run at once when it splits a bundle of a stateful stage, and state
        # is lost then. Other runners do not know the experiment.
        pcoll.pipeline.options.view_as(DebugOptions).add_experiment("prism_disable_sdf_split")
        # Under a TestStream time is virtual for the whole pipeline: what goes on by itself would never be waited for.
        waits = any(isinstance(t, TestStream) for t in _transforms(pcoll.pipeline.transforms_stack[0]))
        if not waits:
            options = pcoll.pipeline.options.view_as(AgentOptions)
            rings = pcoll.pipeline | f"Doorbell({self.scope})" >> Doorbell(
                _Drain(self._use),
                key_type=key_type,
                busy=_Busy(self._use),
                restored=_Restored(self._use, take_old=options.accept_state_older_than_ledger),
                join=_Join(self._use),
            )
            events = (events, rings) | "Ring" >> beam.Flatten()
            events.element_type = _tuple_of(key_type, bytes)
        driver = StreamingDoFn(self._use, waits=waits)
        return events | "Run" >> beam.ParDo(driver).with_outputs(*tags)

    def _types(self, pcoll: PCollection[Any]) -> tuple[Any, Any]:
        """Of the keys and of the events, as far as the pipeline says."""
        element_type = pcoll.element_type
        if element_type in (None, Any, AnyHint):
            return Any, Any
        try:
            key_type, value_type = coerce_to_kv_type(element_type, self.label).tuple_types
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"RunAgent({self.agent.name!r}): its input has elements of {element_type}, not pairs of key and event; "
                "put beam.WithKeys(...) before it"
            ) from error
        # A key that may be None is refused on arrival, and its type has no deterministic coder.
        unclear = key_type == AnyHint or isinstance(key_type, UnionConstraint)
        return Any if unclear else key_type, Any if value_type == AnyHint else value_type

    def _check_scope(self, pipeline: Pipeline) -> None:
        applied = [t for t in _transforms(pipeline.transforms_stack[0]) if isinstance(t, RunAgent)]
        if [other.scope for other in applied].count(self.scope) > 1:  # this one is among them
            raise ConfigurationError(
                f"two RunAgent in this pipeline have the scope {self.scope!r}: their runs could not be told apart; "
                "give one of them scope=..."
            )


def _is_identified(type_: Any) -> bool:
    return isinstance(type_, type) and issubclass(type_, Identified)


def _tuple_of(*types: Any) -> Any:
    """The type of tuples of these, in the form in which Beam keeps it on a PCollection."""
    return convert_to_beam_type(GenericAlias(tuple, types))


def _transforms(applied: AppliedPTransform) -> Iterator[Any]:
    yield applied.transform
    for part in applied.parts:
        yield from _transforms(part)


class _Drain:
    """The keys whose runs have ended in this worker process."""

    def __init__(self, use: AgentUse) -> None:
        self._use = use

    def __call__(self, ticker: int) -> list[Any] | None:
        host = self._use.find()
        return [] if host is None else host.drain(ticker)


class _Join:
    """Has this worker process watch the ledger for runs that have lost their worker."""

    def __init__(self, use: AgentUse) -> None:
        self._use = use

    def __call__(self) -> Callable[[], None]:
        host = self._use.join()
        host.watch(key_of, self._use.task_of_record)
        return partial(self._use.leave, host)


class _Busy:
    """Whether this worker process has live runs."""

    def __init__(self, use: AgentUse) -> None:
        self._use = use

    def __call__(self) -> bool:
        host = self._use.find()
        return host is not None and not host.idle()


class _Restored:
    """Tells this worker process how old the state is that the job goes on from."""

    def __init__(self, use: AgentUse, *, take_old: bool) -> None:
        self._use = use
        self._take_old = take_old

    def __call__(self, at: float) -> bool:
        host = self._use.find()
        if host is not None:
            host.state_is_from(at, take_old=self._take_old)
        return host is not None
