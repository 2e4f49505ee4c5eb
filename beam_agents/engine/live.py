"""A run in a worker: opens it, carries out its effects, keeps its budget of time, closes it."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue, ValidationError

from beam_agents.codec import digest
from beam_agents.context import RunContext
from beam_agents.engine import effects
from beam_agents.engine.end import End, Ended, Refused
from beam_agents.engine.execution import Code, Request
from beam_agents.engine.journal import Journal
from beam_agents.engine.machine import Ending, Machine, Port, describe, reason_of
from beam_agents.engine.outcome import Outcome
from beam_agents.errors import LedgerChanged
from beam_agents.events import FailureReason
from beam_agents.history import Session
from beam_agents.ledger.base import (
    LEASE_SECONDS,
    Busy,
    Close,
    Closed,
    Conflict,
    Done,
    Effect,
    Intend,
    Open,
    Opened,
    OtherOpen,
    Record,
    Recorded,
    Release,
    RunKey,
    StateAhead,
)
from beam_agents.messages import repair

if TYPE_CHECKING:
    from beam_agents.engine.host import Host

_LOGGER = logging.getLogger(__name__)

MAX_STALLS = 5
"""Openings without a new outcome after which a run is given up: it kills its worker."""

INTENT_FRESH_SECONDS = LEASE_SECONDS * 0.6
"""An intent acknowledged longer ago than this is confirmed again before the call: another worker may have the run."""

REPLAY_VARIABLE = "BEAM_AGENTS_REPLAY"
"""Environment variable; `always` drops and rebuilds each coroutine at every suspension, for tests."""


@dataclass(frozen=True)
class Task:
    """One event for one key: what a driver gives to the worker."""

    run: RunKey
    key: Any
    """The Beam key."""
    event: str
    """The event as canonical JSON."""
    digest: str
    session_version: int = 0
    session: str | None = None
    """The key's session as Beam's state has it, to begin a head that does not exist yet."""
    ledger_identity: str | None = None
    """The ledger that Beam's state remembers."""
    event_time: int | None = None
    """Of the event, microseconds since 1970; `None` where time does not matter."""
    session_ttl: int | None = None
    """Microseconds of event time after which a key's session starts anew."""
    network_forbidden: bool = False
    """Whether models that use the network are refused."""
    batch: bool = False
    """Whether the wall-clock budget counts only the time that a worker held the run."""


class Parked(Exception):
    """The worker let the run go; any worker may open it again."""


class _Fenced(Exception):
    """Another worker has the run, or it has ended."""


class _NotStarted(Exception):
    """The run has ended, or is being let go, before this effect was started."""


class LiveRun:
    """One run on the worker's event loop.

    Args:
        host: The agent, its ledger and what it needs in this process.
        task: The event.
    """

    def __init__(self, host: Host, task: Task) -> None:
        self._host = host
        self._agent = host.agent
        self._task = task
        self._model_calls = 0
        self._tool_calls = 0
        self._settled: asyncio.Queue[str | None] = asyncio.Queue()
        """Paths whose outcome is recorded; `None` when the time is over or the worker lets the run go."""
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._retries: dict[str, int] = {}
        self._failure: BaseException | None = None
        self._parked = False
        self._out_of_time = False

    async def main(self) -> Ended | Refused:
        """Runs to the end.

        Raises:
            LedgerChanged: Beam's state and this ledger do not belong together.
            LedgerError: The ledger refused for good.
            Parked: The worker let the run go.
        """
        while True:
            opened = await self._open()
            if not isinstance(opened, Opened):
                return opened
            try:
                return await self._drive(opened)
            except _Fenced:
                _LOGGER.info("run %r of key %s was taken over; following the ledger", *self._name)

    def park(self) -> None:
        """Asks the run to start nothing more and to let go; what is in flight is still recorded."""
        self._parked = True
        self._settled.put_nowait(None)

    @property
    def _name(self) -> tuple[str, str]:
        return self._task.run.run_id, self._task.run.key

    # ---- opening ----

    async def _open(self) -> Opened | Ended | Refused:
        task, ask = self._task, self._host.ledger.ask
        self._identity = identity = await self._host.ledger.ready()
        if task.ledger_identity not in (None, identity):
            raise LedgerChanged(
                f"the state of key {task.run.key} was written with ledger {task.ledger_identity}, this one is "
                f"{identity}: use the ledger the job had before; with another everything since then would be done again"
            )
        while True:
            nonce = uuid.uuid4().hex
            answer = await ask(
                Open(task.run, task.event, task.digest, self._host.owner, task.session_version, task.session, nonce)
            )
            match answer:
                case Opened():
                    return answer
                case Closed():
                    return self._ended(answer, replayed=True)
                case Conflict():
                    message = f"event id {task.run.run_id!r} was used before for an event with another content"
                    return Refused(FailureReason.ID_CONFLICT, message)
                case StateAhead():
                    raise LedgerChanged(
                        f"the state of key {task.run.key} is at session {task.session_version}, the ledger only at "
                        f"{answer.session_version}: records are missing, and going on would do effects again. Use the "
                        "ledger the job had before, or restore its file"
                    )
                case Busy(until=until):
                    await self._wait(until)
                case OtherOpen(run=other):
                    # Its event may be behind ours in the stream, or never come again: it is ended from its record.
                    await self._host.finish_other(task, other)
                case _:
                    raise TypeError(f"ledger answered {answer!r} to Open")

    async def _wait(self, until: float) -> None:
        if self._parked:
            raise Parked
        await asyncio.sleep(min(1.0, max(0.05, until - time.time())))

    # ---- driving ----

    async def _drive(self, opened: Opened) -> Ended:
        run, agent = opened.run, self._agent
        journal = Journal(opened.effects)
        self._run, self._journal = run, journal
        session = self._session(opened)
        used = run.held if self._task.batch else run.epoch_at - run.opened_at
        remaining = agent.budget.wall_clock.total_seconds() - used
        if run.stalls >= MAX_STALLS:
            return await self._close(self._crash_loop(), session, session.state)
        state: JsonValue = session.state
        try:
            event = agent.read_event_json(self._task.event)
            state = agent.apply_event(session.state, event)
            skipped = agent.decide_without_model(state, event)
        except ValidationError as error:
            message = f"the key's state does not fit {agent.name!r}: {error}"
            return await self._close(Ending(reason=FailureReason.STATE_ERROR, message=message), session, session.state)
        except Exception as error:
            return await self._close(Ending(reason=reason_of(error), message=describe(error)), session, state)
        if skipped is not None:
            return await self._close(Ending(output=skipped), session, state, skipped=True)

        def make_code(port: Port) -> Code:
            self._context = RunContext(
                key=self._task.key,
                event=agent.read_event_json(self._task.event),
                state=agent.read_state(state),
                deps=self._host.deps,
                run_id=run.key.run_id,
                history=session.history,
                model=agent.model,
                settings=agent.settings,
                port=port,
            )
            return agent.body(self._context)

        always_replay = os.environ.get(REPLAY_VARIABLE) == "always"
        machine = self._machine = Machine(make_code, agent.budget, journal, always_replay=always_replay)
        self._out_of_time = remaining <= 0
        timer = asyncio.get_running_loop().call_later(max(0.0, remaining), self._time_is_over)
        try:
            self._begin(machine.start())
            await self._deliver_outcomes(machine)
            assert machine.ending is not None
            machine.ending = await self._finish_jobs(machine.ending)
            ending, final = self._final_state(machine.ending, state)
            return await self._close(ending, session, final, port=machine.port)
        finally:
            timer.cancel()
            machine.drop()
            for job in self._jobs.values():
                job.cancel()
            self._jobs.clear()

    def _session(self, opened: Opened) -> Session:
        """The key's session, empty if it has expired; the head's, since Beam's copy may be older."""
        session = Session.model_validate_json(opened.session) if opened.session else Session()
        now, ttl = self._task.event_time, self._task.session_ttl
        if now is not None and ttl is not None and session.touched is not None and now - session.touched > ttl:
            session = Session()
        return session.model_copy(update={"version": opened.session_version})

    def _crash_loop(self) -> Ending:
        again = f"the run was opened {self._run.stalls + 1} times without getting any further: it stops its worker"
        for effect in self._journal:
            if effect.effect == "once" and effect.status is None:
                message = f"{effect.name}({effect.arguments}) may or may not have happened: {again}"
                return Ending(reason=FailureReason.IN_DOUBT, message=message)
        return Ending(reason=FailureReason.CRASH_LOOP, message=again)

    def _time_is_over(self) -> None:
        self._out_of_time = True
        self._settled.put_nowait(None)

    async def _deliver_outcomes(self, machine: Machine) -> None:
        """Hands one outcome after the other to the code, until it ends or its time is over."""
        while machine.ending is None:
            if self._out_of_time and self._settled.empty():
                machine.stop(FailureReason.DEADLINE, f"the budget of {self._agent.budget.wall_clock} is used up")
                return
            path = await self._settled.get()
            if self._failure is not None:
                raise self._failure
            if self._parked:
                await self._let_go()
            if path is not None:
                settled = self._journal.settled(path, self._retries[path])
                assert settled is not None
                self._begin(machine.deliver(settled))

    def _begin(self, requests: list[Request]) -> None:
        """Starts what the code newly waits for; what is recorded already is delivered in the order it was recorded.

        When the time is over, only recorded outcomes are applied, and what a dead worker left is asked about.
        """
        recorded: list[tuple[float, str]] = []
        for request in requests:
            self._retries[request.path] = request.payload[0].retries if request.kind == "tool" else 0
            settled = self._journal.settled(request.path, self._retries[request.path])
            if settled is not None:
                recorded.append((settled.outcome_at or 0.0, settled.path))
            elif not self._out_of_time or self._left_open(request.path) is not None:
                self._jobs[request.path] = asyncio.create_task(self._carry_out(request))
        for _, path in sorted(recorded, key=lambda item: item[0]):
            self._settled.put_nowait(path)

    def _left_open(self, path: str) -> Effect | None:
        """The `once` attempt at `path` whose outcome is not recorded."""
        attempts = self._journal.attempts(path)
        if attempts and attempts[-1].effect == "once" and attempts[-1].status is None:
            return attempts[-1]
        return None

    async def _finish_jobs(self, ending: Ending) -> Ending:
        """After an end: a `once` call in flight gets its time, since what became of it must be known."""
        once = []
        for path, job in self._jobs.items():
            if self._left_open(path) is not None:
                once.append(job)
            else:
                job.cancel()
        if once:
            await asyncio.wait(once)  # bounded: a call and its reconcile each have a time-out
        if self._failure is not None:
            raise self._failure
        if ending.reason is not FailureReason.IN_DOUBT:
            for effect in self._journal:
                if effect.status == "in_doubt":
                    cause = f"the run ended as {ending.reason}: {ending.message}"
                    message = f"{effect.name}({effect.arguments}) may or may not have happened: {effect.value}; {cause}"
                    return Ending(reason=FailureReason.IN_DOUBT, message=message)
        return ending

    async def _let_go(self) -> None:
        while self._jobs:
            await asyncio.wait(list(self._jobs.values()))
        await self._host.ledger.ask(Release(self._run.key, self._run.epoch))
        raise Parked

    # ---- effects ----

    async def _carry_out(self, request: Request) -> None:
        """Makes attempts until the outcome that the code gets is recorded."""
        done: str | None = None
        try:
            while self._journal.settled(request.path, self._retries[request.path]) is None:
                async with self._host.slots(request.kind):
                    effect, outcome = await self._attempt(request)
                    answer = await self._host.ledger.ask(
                        Record(self._run.key, effect.path, effect.attempt, outcome.status, outcome.value)
                    )
                assert isinstance(answer, Recorded)
                self._journal.put(answer.effect)
                if answer.effect.status == "error":
                    await self._pause(request.path)
            done = request.path
        except _NotStarted:
            pass
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failure = error
        del self._jobs[request.path]
        self._settled.put_nowait(done)

    async def _pause(self, path: str) -> None:
        """Between two attempts of a tool that failed; growing, with jitter."""
        if self._journal.settled(path, self._retries[path]) is None:
            failed = sum(effect.status == "error" for effect in self._journal.attempts(path))
            await asyncio.sleep(random.uniform(0.5, 1.0) * min(10.0, 0.1 * 2**failed))

    async def _attempt(self, request: Request) -> tuple[Effect, Outcome]:
        left = self._left_open(request.path)
        if left is not None:  # a dead worker's; its outcome must be known before anything else
            tool, arguments = request.payload
            return left, await effects.reconcile(tool, self._call_context(left), arguments)
        effect = await self._intend(request)
        if self._stopping:
            return effect, Outcome.of("not_happened", "the run ended before the call was made")
        if request.kind == "sleep":
            await asyncio.sleep(max(0.0, (effect.due or 0.0) - time.time()))
            return effect, Outcome.of("ok", None)
        if request.kind == "model":
            self._model_calls += 1
            self._host.status.model_calls += 1
            model, asked = request.payload
            await self._host.connect(model)
            return effect, await effects.ask_model(model, asked, network_forbidden=self._task.network_forbidden)
        self._tool_calls += 1
        self._host.status.tool_calls += 1
        tool, arguments = request.payload
        return effect, await effects.call_tool(tool, self._call_context(effect), arguments)

    async def _intend(self, request: Request) -> Effect:
        """Records that an attempt is about to be made. A sleep that a dead worker left goes on as it was."""
        attempts = self._journal.attempts(request.path)
        if attempts and attempts[-1].kind == "sleep" and attempts[-1].status is None:
            return attempts[-1]
        if self._stopping:
            raise _NotStarted
        effect = Effect(
            path=request.path,
            attempt=attempts[-1].attempt + 1 if attempts else 1,
            kind=request.kind,
            name=request.name,
            digest=request.digest,
            effect=request.effect,
            arguments=request.arguments,
            delivered=self._journal.take_unsaved(),
            due=time.time() + request.payload if request.kind == "sleep" else None,
        )
        while True:
            asked = time.monotonic()
            answer = await self._host.ledger.ask(Intend(self._run.key, self._run.epoch, effect))
            if not isinstance(answer, Done):
                raise _Fenced
            if time.monotonic() - asked < INTENT_FRESH_SECONDS:
                break
        self._journal.put(replace(effect, intent_at=answer.at))
        return effect

    @property
    def _stopping(self) -> bool:
        return self._parked or self._out_of_time or self._machine.ending is not None

    def _call_context(self, effect: Effect) -> RunContext[Any, Any, Any]:
        # Without the attempt: the other side must see that a second attempt is the same call.
        run = self._task.run
        key = digest(run.scope, run.agent, str(run.revision), run.key, run.run_id, effect.path, effect.digest)
        return self._context.for_call(key, effect.attempt)

    # ---- closing ----

    def _final_state(self, ending: Ending, state: JsonValue) -> tuple[Ending, JsonValue]:
        """The state that the run leaves: its code's when it answered, else what it began with."""
        if ending.reason is not None:
            return ending, state
        try:
            return ending, self._agent.dump_state(self._context.state)
        except ValueError as error:
            message = f"ctx.state does not fit {self._agent.name!r}: {error}"
            return Ending(reason=FailureReason.CODE_ERROR, message=message), state

    async def _close(
        self, ending: Ending, session: Session, state: JsonValue, *, skipped: bool = False, port: Port | None = None
    ) -> Ended:
        end = self._end(ending, port, skipped)
        spoken = tuple(port.remembered) if port else ()
        after = Session(
            version=session.version + 1,
            touched=max(filter(None, (session.touched, self._task.event_time)), default=None),
            history=self._agent.history.trim((*session.history, *spoken)),
            state=state,
        )
        answer = await self._host.ledger.ask(
            Close(self._run.key, self._run.epoch, end.model_dump_json(), after.model_dump_json())
        )
        if not isinstance(answer, Closed):
            raise _Fenced
        return self._ended(answer, replayed=False)

    def _end(self, ending: Ending, port: Port | None, skipped: bool) -> End:
        transcript = repair(port.transcript) if port else ()
        usage = {"usage": port.usage, "emitted": tuple(port.emitted)} if port else {}
        reason, message = ending.reason, ending.message
        if reason is None:
            try:
                output = self._agent.dump_output(ending.output)
            except ValueError as error:
                reason, message = (
                    FailureReason.INVALID_OUTPUT,
                    f"{self._agent.name!r} may not return this: {error}",
                )
            else:
                return End(kind="skipped" if skipped else "answer", output=output, **usage)
        return End(kind="failure", reason=reason, message=message, transcript=transcript, **usage)

    def _ended(self, closed: Closed, *, replayed: bool) -> Ended:
        assert closed.run.end is not None
        return Ended(
            run=closed.run,
            end=End.model_validate_json(closed.run.end),
            effects=closed.effects,
            replayed=replayed,
            session_version=closed.session_version,
            session=closed.session,
            ledger=self._identity,
            model_calls=self._model_calls,
            tool_calls=self._tool_calls,
        )
