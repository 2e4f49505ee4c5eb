"""A run in a worker: opens it, drives its code from outcome to outcome, keeps its budget of time, closes it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import time
from collections import Counter
from typing import TYPE_CHECKING

from pydantic import JsonValue

from beam_agents.codec import load, told
from beam_agents.context import RunContext
from beam_agents.engine.ahead import ask, ask_with
from beam_agents.engine.attempts import Attempts
from beam_agents.engine.emit import recorded_event
from beam_agents.engine.end import End, Ended, Refused, conflict, pruned, too_old
from beam_agents.engine.execution import Code
from beam_agents.engine.journal import Journal
from beam_agents.engine.machine import Ending, Machine, Port, describe, doubt, reason_of
from beam_agents.engine.outcome import Fenced
from beam_agents.engine.task import Task
from beam_agents.errors import LedgerChanged, LedgerError, StateMismatch
from beam_agents.events import FailureReason
from beam_agents.history import Session
from beam_agents.ledger.base import LedgerUnavailable
from beam_agents.ledger.commands import (
    Answer,
    Busy,
    Close,
    Closed,
    Command,
    Conflict,
    Open,
    Opened,
    OtherOpen,
    Pruned,
    Record,
    Release,
    StateAhead,
    TooOld,
)
from beam_agents.messages import repair

if TYPE_CHECKING:
    from beam_agents.engine.host import Host

_LOGGER = logging.getLogger(__name__)

MAX_STALLS = 5
"""Openings without a new outcome after which a run is given up: it kills its worker."""

REPLAY_VARIABLE = "BEAM_AGENTS_REPLAY"
"""Environment variable; `always` drops and rebuilds each coroutine at every suspension, for tests."""


class Parked(Exception):
    """The worker let the run go; any worker may open it again."""


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
        self._attempts: Attempts | None = None
        self._machine: Machine | None = None
        self._code_context = contextvars.copy_context()
        self._calls: Counter[str] = Counter()
        self._unrecorded: tuple[Record, ...] = ()
        self._parked = False
        self._out_of_time = False
        self._waiting: asyncio.Future[None] | None = None

    async def main(self) -> Ended | Refused:
        """Runs to the end. Whatever user code or a record does to it is an end, too: what is raised here fails the
        bundle, and a runner tries a failed bundle again for ever.

        Raises:
            LedgerChanged: Beam's state and this ledger do not belong together.
            LedgerError: The ledger refused for good, or broke.
            LedgerUnavailable: The worker ends.
            Parked: The worker let the run go.
        """
        while True:
            opened = await self._open()
            if not isinstance(opened, Opened):
                return opened
            if self._parked:  # before it did anything
                await self._ask(Release(opened.run.key, opened.run.epoch))
                raise Parked
            try:
                return await self._drive(opened)
            except Fenced:
                run = self._task.run
                _LOGGER.info("run %r of key %s was taken over; following the ledger", run.run_id, run.key)

    @property
    def moves(self) -> bool:
        """Whether it does anything but wait for what others do."""
        return self._attempts is None or self._attempts.move

    def park(self) -> None:
        """Asks the run to start nothing more and to let go; what is in flight is still recorded."""
        self._parked = True
        self._stop_starting()

    def _stop_starting(self) -> None:
        if self._attempts is not None:
            self._attempts.stopping = True
        self._look()

    def _look(self) -> None:
        """Has `_run_machine` look what has become of the run."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def _ask(self, command: Command) -> Answer:
        return await ask(self._host.ledger, command)

    # ---- opening ----

    async def _open(self) -> Opened | Ended | Refused:
        task = self._task
        self._identity = identity = await self._host.ledger.ready()
        if task.ledger_identity not in (None, identity):
            raise LedgerChanged(
                f"the state of key {task.run.key} was written with ledger {task.ledger_identity}, this one is "
                f"{identity}: use the ledger the job had before; with another everything since then would be done again"
            )
        while True:
            nonce = str(next(self._host.openings))
            answer = await self._ask(
                Open(
                    task.run,
                    task.event,
                    task.digest,
                    self._host.owner,
                    session_version=task.session_version,
                    session=task.session,
                    nonce=nonce,
                    event_time=task.event_time,
                )
            )
            match answer:
                case Opened():
                    return answer
                case Closed():
                    return self._ended(answer, replayed=True)
                case Conflict():
                    return conflict(task.run.run_id)
                case Pruned():
                    return pruned(answer.run)
                case TooOld():
                    return too_old(task.run.run_id, task.event_time, answer.forgotten_to)
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
                    raise LedgerError(f"the ledger answered {answer!r} to Open")

    async def _wait(self, until: float) -> None:
        if self._parked:
            raise Parked
        await asyncio.sleep(min(1.0, max(0.05, until - time.time())))

    # ---- driving ----

    async def _drive(self, opened: Opened) -> Ended:
        self._run, self._journal, self._unrecorded = opened.run, Journal(opened.effects), ()
        try:
            return await self._go(opened)
        except (Fenced, LedgerError, LedgerUnavailable, Parked, asyncio.CancelledError):
            raise
        except BaseException as error:
            _LOGGER.exception("run %r of key %s could not go on", opened.run.key.run_id, opened.run.key.key)
            ending = Ending(reason=reason_of(error), message=f"the run could not go on: {describe(error)}")
            end = self._failure(ending)
            return await self._close_with(end, end.model_dump_json(), opened.session)

    async def _go(self, opened: Opened) -> Ended:
        run, agent = opened.run, self._agent
        session = self._session(opened)
        if run.stalls >= MAX_STALLS:
            again = f"the run was opened {run.stalls + 1} times without getting any further: it stops its worker"
            return await self._close(Ending(reason=FailureReason.CRASH_LOOP, message=again), session, session.state)
        event, raw, unreadable = recorded_event(agent, self._task.event)
        if raw is not None:
            ending = Ending(reason=FailureReason.INVALID_EVENT, message=unreadable)
            return await self._close(ending, session, session.state)
        state: JsonValue = session.state
        try:
            state = agent.apply_event(session.state, event)
            agent.read_state(state)
            skipped = agent.decide_without_model(state, event)
        except StateMismatch as error:
            mismatch = Ending(reason=FailureReason.STATE_ERROR, message=told(error))
            return await self._close(mismatch, session, session.state)
        except BaseException as error:
            return await self._close(Ending(reason=reason_of(error), message=describe(error)), session, state)
        if skipped is not None:
            return await self._close(Ending(output=skipped), session, state, skipped=True)

        def make_code(port: Port) -> Code:
            self._context = RunContext(
                key=self._task.key,
                event=load(agent.event_type, self._task.event),  # of its own: `on_event` may have changed the other
                state=agent.read_state(state),
                deps=self._host.deps.value,
                run_id=run.key.run_id,
                history=session.history,
                model=agent.model,
                settings=agent.settings,
                port=port,
            )
            return agent.body(self._context)

        always_replay = os.environ.get(REPLAY_VARIABLE) == "always"
        machine = Machine(
            make_code, agent.budget, self._journal, pure_only=self._task.pure_only, always_replay=always_replay
        )
        ending = await self._run_machine(machine)
        ending, final = self._final_state(ending, state)
        return await self._close(ending, session, final, port=machine.port)

    async def _run_machine(self, machine: Machine) -> Ending:
        """Carries out what the code asks for, until it ends or its time is over."""
        loop, budget = asyncio.get_running_loop(), self._agent.budget.wall_clock
        remaining = budget.total_seconds() - (
            self._run.held if self._task.batch else self._run.epoch_at - self._run.opened_at
        )
        self._out_of_time = remaining <= 0
        self._machine, in_context = machine, self._code_context.run
        attempts = self._attempts = Attempts(
            self._host,
            self._run,
            self._journal,
            lambda: self._context,
            self._settled,
            self._look,
            network_forbidden=self._task.network_forbidden,
        )
        ends = loop.time() + max(0.0, remaining)
        timer = loop.call_at(ends, self._time_is_over)
        try:
            in_context(self._start)
            while machine.ending is None:
                if attempts.failure is not None:
                    await attempts.drain()  # what other branches have under way happens all the same
                    raise attempts.failure
                if self._parked:
                    await attempts.drain(max(0.0, ends - loop.time()))
                    await self._ask(Release(self._run.key, self._run.epoch))
                    raise Parked
                if self._out_of_time:
                    why = f"the budget of {budget} is used up{attempts.trouble()}"
                    in_context(machine.stop, FailureReason.DEADLINE, why)
                    break
                self._waiting = loop.create_future()
                await self._waiting
            await attempts.finish()
            assert machine.ending is not None
            return machine.ending
        finally:
            timer.cancel()
            in_context(machine.drop)
            self._unrecorded = attempts.ahead.take()
            attempts.cancel()
            self._calls.update(model=attempts.model_calls, tool=attempts.tool_calls)
            # Neither knows the other from now on: all of a run goes when it ends, and nothing waits for the collector.
            self._attempts = self._machine = None

    def _start(self) -> None:
        assert self._machine is not None
        assert self._attempts is not None
        self._deliver(self._attempts.begin(self._machine.start(), out_of_time=self._out_of_time))

    def _settled(self, path: str) -> None:
        """An effect has come to its outcome. The code runs in its own context, whichever task tells it."""
        self._code_context.run(self._deliver, [path])

    def _deliver(self, paths: list[str]) -> None:
        """Hands outcomes to the code, one after the other, and those that it then asks for and that are recorded."""
        machine, attempts = self._machine, self._attempts
        if machine is None or attempts is None:  # late: the run was broken off
            return
        while paths and machine.ending is None and attempts.failure is None and not self._parked:
            path = paths.pop(0)
            outcome = attempts.outcome(path)
            paths += attempts.begin(machine.deliver(outcome), out_of_time=self._out_of_time)
            if not machine.always_replay:
                self._journal.let_go(path, outcome.attempt)
        if machine.ending is not None:
            self._look()

    def _time_is_over(self) -> None:
        self._out_of_time = True
        self._stop_starting()

    def _in_doubt(self, ending: Ending) -> Ending:
        """The ending, unless a call of the run is in doubt: that must not be hidden behind another reason."""
        if ending.reason is not FailureReason.IN_DOUBT:
            for effect in self._journal:
                if effect.status == "in_doubt" or (effect.effect == "once" and effect.status is None):
                    cause = f"the run ended as {ending.reason or 'answer'}: {ending.message}"
                    return Ending(reason=FailureReason.IN_DOUBT, message=f"{doubt(effect)}; {cause}")
        return ending

    def _session(self, opened: Opened) -> Session:
        """The key's session, empty if it has expired; the head's, since Beam's copy may be older.

        Raises:
            StoredFormUnknown: Another release of this package wrote it.
        """
        session = Session.from_json(opened.session) if opened.session else Session()
        now, ttl = opened.run.event_time, self._task.session_ttl
        if now is not None and ttl is not None and session.touched is not None and now - session.touched > ttl:
            session = Session()
        return session.model_copy(update={"version": opened.session_version})

    # ---- closing ----

    def _final_state(self, ending: Ending, state: JsonValue) -> tuple[Ending, JsonValue]:
        """The state that the run leaves: its code's when it answered, else what it began with."""
        if ending.reason is not None:
            return ending, state
        try:
            final = self._agent.dump_state(self._context.state)
            self._agent.read_state(final)
            return ending, final
        except BaseException as error:
            message = f"ctx.state does not fit {self._agent.name!r}: {told(error) or type(error).__name__}"
            return Ending(reason=FailureReason.CODE_ERROR, message=message), state

    async def _close(
        self, ending: Ending, session: Session, state: JsonValue, *, skipped: bool = False, port: Port | None = None
    ) -> Ended:
        ending = self._in_doubt(ending)
        after = session.model_copy(
            update={
                "version": session.version + 1,
                "touched": max((t for t in (session.touched, self._run.event_time) if t is not None), default=None),
                "state": state,
            }
        )
        try:
            written = self._end(ending, port, skipped).model_dump_json()
            end = End.model_validate_json(written)
            remembered = port.remembered if port else ()
            if remembered or session.history:
                after = after.model_copy(update={"history": self._agent.history.trim((*session.history, *remembered))})
            kept = after.model_dump_json()
            Session.model_validate_json(kept)
        except Exception as error:  # what was said is no message, or holds what JSON cannot
            said = f"what was said in the run cannot be recorded: {describe(error)}"
            message = f"{ending.message}; {said}" if ending.message else said
            end, kept = self._failure(Ending(reason=ending.reason, message=message)), after.model_dump_json()
            written = end.model_dump_json()
        return await self._close_with(end, written, kept)

    def _failure(self, ending: Ending) -> End:
        """A run's end as its record keeps it, without anything that came from the run."""
        ending = self._in_doubt(ending)
        reason = ending.reason or FailureReason.CODE_ERROR
        return End(kind="failure", reason=reason, message=ending.message)

    async def _close_with(self, end: End, written: str, session: str | None) -> Ended:
        kept = session or Session().model_dump_json()
        close = Close(self._run.key, self._run.epoch, written, kept, end.reason)
        answer = await ask_with(self._host.ledger, close, self._unrecorded)
        if not isinstance(answer, Closed):
            raise Fenced
        self._host.faults.reached("after_close", self._run.key)
        mine = answer.run.end == written
        return self._ended(answer, replayed=not mine, end=end if mine else None)

    def _end(self, ending: Ending, port: Port | None, skipped: bool) -> End:
        transcript = repair(port.transcript) if port else ()
        usage = {"usage": port.usage, "emitted": tuple(port.emitted)} if port else {}
        reason, message = ending.reason, ending.message
        if reason is None:
            try:
                output = self._agent.dump_output(ending.output)
                self._agent.read_output(output)
            except BaseException as error:  # validators of the output's type may raise anything
                why = told(error) if isinstance(error, ValueError) else describe(error)
                reason, message = FailureReason.INVALID_OUTPUT, f"{self._agent.name!r} may not return this: {why}"
            else:
                return End(kind="skipped" if skipped else "answer", output=output, **usage)
        return End(kind="failure", reason=reason, message=message, transcript=transcript, **usage)

    def _ended(self, closed: Closed, *, replayed: bool, end: End | None = None) -> Ended:
        assert closed.run.end is not None
        return Ended(
            run=closed.run,
            end=end or End.from_json(closed.run.end),
            effects=closed.effects,
            replayed=replayed,
            session_version=closed.session_version,
            session=closed.session,
            ledger=self._identity,
            model_calls=self._calls["model"],
            tool_calls=self._calls["tool"],
        )
