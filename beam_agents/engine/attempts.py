"""Carries out the effects of a run: no call before its intent is recorded, no outcome to the code before it is."""

from __future__ import annotations

import asyncio
import copy
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from beam_agents.codec import digest, named
from beam_agents.context import RunContext
from beam_agents.engine import effects
from beam_agents.engine.execution import Request
from beam_agents.engine.fault_points import FaultPoint
from beam_agents.engine.journal import Journal
from beam_agents.engine.mailbox import Mailbox
from beam_agents.engine.outcome import Answered, Fenced, Outcome
from beam_agents.engine.turn import ModelTurn, Turn
from beam_agents.errors import LedgerError
from beam_agents.ledger.base import LEASE_SECONDS, LedgerUnavailable
from beam_agents.ledger.commands import Answer, Command, Done, Intend, Record, Recorded
from beam_agents.ledger.records import Effect, Run
from beam_agents.ledger.writer import LedgerWriter

if TYPE_CHECKING:
    from beam_agents.engine.host import Host

INTENT_FRESH_SECONDS = LEASE_SECONDS * 0.6
"""An intent acknowledged longer ago than this is confirmed again before the call: another worker may have the run."""


async def ask(ledger: LedgerWriter, command: Command) -> Answer:
    """Has the ledger carry out a command.

    Raises:
        LedgerError: It never will, or it broke; no fault of the run, which has to wait for another ledger or release.
        LedgerUnavailable: The worker ends.
    """
    try:
        return await ledger.ask(command)
    except (LedgerError, LedgerUnavailable):
        raise
    except Exception as error:
        raise LedgerError(f"{ledger.ledger.url} broke at {type(command).__name__}: {named(error)}") from error


class _NotStarted(Exception):
    """The run has ended, or is being let go, before this effect was started."""


class Attempts:
    """The effects of one opening of a run that are under way in this worker.

    Args:
        host: The ledger, the limits, the clients.
        run: The run's record, as it was opened.
        journal: What is recorded; each intent and outcome is added.
        context: Gives the context that tools get.
        network_forbidden: Whether models that use the network are refused.

    Attributes:
        settled: Paths whose outcome is recorded, in that order; `None` when there is something else to look at.
        failure: What broke an effect off for reasons of the engine: fenced, a ledger that refuses, or what nobody
            foresaw.
        stopping: Once true, nothing new is started.
        model_calls: Requests made here.
        tool_calls: Calls made here.
    """

    def __init__(
        self,
        host: Host,
        run: Run,
        journal: Journal,
        context: Callable[[], RunContext[Any, Any, Any]],
        *,
        network_forbidden: bool,
    ) -> None:
        self._host = host
        self._run = run
        self._journal = journal
        self._context = context
        self._network_forbidden = network_forbidden
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._retries: dict[str, int] = {}
        self._sleeping: set[str] = set()
        self._turns: dict[str, Turn] = {}
        self._intending: set[str] = set()
        self.settled: Mailbox[str | None] = Mailbox()
        self.failure: BaseException | None = None
        self.stopping = False
        self.model_calls = 0
        self.tool_calls = 0

    def begin(self, requests: list[Request], *, out_of_time: bool) -> None:
        """Starts what the code newly waits for; what is recorded already is delivered in the order it was recorded.

        When the time is over, only recorded outcomes are applied, and what a dead worker left is asked about.
        """
        recorded: list[tuple[float, str]] = []
        for request in requests:
            self._retries[request.path] = request.payload[0].retries if request.kind == "tool" else 0
            settled = self._journal.settled(request.path, self._retries[request.path])
            if settled is not None:
                recorded.append((settled.outcome_at or 0.0, settled.path))
            elif not out_of_time or self._left_open(request.path) is not None:
                self._jobs[request.path] = asyncio.create_task(self._carry_out(request))
                if request.kind == "sleep":
                    self._sleeping.add(request.path)
        for _, path in sorted(recorded, key=lambda item: item[0]):
            self.settled.put(path)

    def outcome(self, path: str) -> Effect:
        """The attempt whose outcome the code gets for a settled path."""
        effect = self._journal.settled(path, self._retries[path])
        assert effect is not None
        return effect

    async def finish(self) -> None:
        """After the run's end: a `once` call in flight gets its time, since what became of it must be known. So does
        the intent of one, which would be found open without a call."""
        self.stopping = True
        once = []
        for path, job in self._jobs.items():
            if path in self._intending or self._left_open(path) is not None:
                once.append(job)
            else:
                job.cancel()
        if once:
            await asyncio.wait(once)  # bounded: a call and its reconcile each have a time-out
        if self.failure is not None:
            raise self.failure

    async def drain(self, seconds: float | None = None) -> None:
        """Starts nothing more, and waits until what is under way is recorded.

        Args:
            seconds: How long; then only `once` calls are waited for, as at the run's end.
        """
        self.stopping = True
        for path in self._sleeping & self._jobs.keys():  # its due time is recorded; the next worker goes on with it
            self._jobs.pop(path).cancel()
        for path, turn in self._turns.items():
            if turn.waits and path in self._jobs and self._left_open(path) is None:  # nothing is under way
                self._jobs.pop(path).cancel()
        if self._jobs:
            await asyncio.wait(list(self._jobs.values()), timeout=seconds)
        if seconds is not None:
            await self.finish()

    def trouble(self) -> str:
        """What keeps the calls that are open from ending, as far as it is known: a model that is down."""
        return "".join(f"; {turn.trouble}" for turn in self._turns.values() if turn.trouble is not None)

    def cancel(self) -> None:
        """Drops all that is under way."""
        for job in self._jobs.values():
            job.cancel()
        self._jobs.clear()

    def _reached(self, point: FaultPoint, effect: Effect) -> None:
        self._host.faults.reached(point, self._run.key, effect)

    def _in_flight(self) -> bool:
        """Whether an effect has its intent recorded and not its outcome."""
        return any(effect.status is None for path in self._jobs for effect in self._journal.attempts(path)[-1:])

    def _left_open(self, path: str) -> Effect | None:
        """The `once` attempt at `path` whose outcome is not recorded."""
        attempts = self._journal.attempts(path)
        if attempts and attempts[-1].effect == "once" and attempts[-1].status is None:
            return attempts[-1]
        return None

    async def _carry_out(self, request: Request) -> None:
        """Makes attempts until the outcome that the code gets is recorded."""
        done: str | None = None
        try:
            while self._journal.settled(request.path, self._retries[request.path]) is None:
                turn = self._host.slots(request, self._run.key.key, network_forbidden=self._network_forbidden)
                self._turns[request.path] = turn
                async with turn:
                    effect, outcome = await self._attempt(request, turn)
                    record = Record(self._run.key, effect.path, effect.attempt, outcome.status, outcome.value)
                    answer = await ask(self._host.ledger, record)
                if not isinstance(answer, Recorded):  # the run was pruned since
                    raise Fenced
                self._journal.put(answer.effect)
                self._reached("after_outcome", effect)
                if self._host.faults.point == "in_parallel" and self._in_flight():
                    self._reached("in_parallel", effect)
                if answer.effect.status == "error":
                    await self._pause(request.path)
            done = request.path
        except _NotStarted:
            pass
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.failure = error
        self._jobs.pop(request.path, None)
        self._turns.pop(request.path, None)
        self.settled.put(done)

    async def _pause(self, path: str) -> None:
        """Between two attempts of a tool that failed; growing, with jitter."""
        if self._journal.settled(path, self._retries[path]) is None:
            failed = sum(effect.status == "error" for effect in self._journal.attempts(path))
            await asyncio.sleep(random.uniform(0.5, 1.0) * min(10.0, 0.1 * 2**failed))

    async def _attempt(self, request: Request, turn: Turn) -> tuple[Effect, Outcome]:
        left = self._left_open(request.path)
        if left is not None:  # a dead worker's; its outcome must be known before anything else
            tool, arguments = request.payload
            context = self._call_context(left)
            if isinstance(context, str):
                return left, Outcome.of("in_doubt", f"its worker died during the call, and {context}")
            return left, await effects.reconcile(tool, context, arguments)
        effect = await self._intend(request)
        if effect.status is not None:
            return self._known(effect)
        if self.stopping:
            return effect, Outcome.of("not_happened", "the run ended before the call was made")
        if request.kind == "sleep":
            await asyncio.sleep(max(0.0, (effect.due or 0.0) - time.time()))
            return effect, Outcome.of("ok", None)
        if isinstance(turn, ModelTurn):
            self.model_calls += 1
            self._host.status.model_calls += 1
            model, asked = request.payload
            self._reached("before_call", effect)
            try:
                outcome = await effects.ask_model(
                    model,
                    asked,
                    turn=turn,
                    connect=self._host.connect,
                    pause=lambda seconds: self._pause_request(seconds, effect),
                    network_forbidden=self._network_forbidden,
                )
            except Answered as answered:
                return self._known(answered.effect)
            self._reached("after_call", effect)
            return effect, outcome
        tool, arguments = request.payload
        context = self._call_context(effect)
        if isinstance(context, str):
            return effect, Outcome.of("error", f"tool {tool.name!r} was not called: {context}")
        self.tool_calls += 1
        self._host.status.tool_calls += 1
        self._reached("before_call", effect)
        outcome = await effects.call_tool(tool, context, arguments)
        self._reached("after_call", effect)
        return effect, outcome

    def _known(self, effect: Effect) -> tuple[Effect, Outcome]:
        """What a worker that was believed dead had done."""
        return effect, Outcome(effect.status, effect.value or "null")  # type: ignore[arg-type]

    async def _intend(self, request: Request) -> Effect:
        """Records that an attempt is about to be made. A sleep that a dead worker left goes on as it was."""
        attempts = self._journal.attempts(request.path)
        if attempts and attempts[-1].kind == "sleep" and attempts[-1].status is None:
            return attempts[-1]
        if self.stopping:
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
        if effect.effect == "once":
            self._intending.add(effect.path)
        answer = await self._confirm(effect)
        self._intending.discard(effect.path)
        if isinstance(answer, Recorded):
            self._journal.give_back(effect.delivered)
            self._journal.put(answer.effect)
            return answer.effect
        self._journal.put(replace(effect, intent_at=answer.at))
        self._reached("after_intent", effect)
        return effect

    async def _confirm(self, effect: Effect) -> Done | Recorded:
        """Has the ledger acknowledge an intent, just now."""
        while True:
            asked = time.monotonic()
            answer = await ask(self._host.ledger, Intend(self._run.key, self._run.epoch, effect))
            if not isinstance(answer, Done | Recorded):
                raise Fenced
            if time.monotonic() - asked < INTENT_FRESH_SECONDS:
                return answer

    async def _pause_request(self, seconds: float, effect: Effect) -> None:
        """Between two requests to a model under one intent: meanwhile another worker may have taken the run over."""
        await asyncio.sleep(seconds)
        answer = await self._confirm(effect)
        if isinstance(answer, Recorded):
            raise Answered(answer.effect)

    def _call_context(self, effect: Effect) -> RunContext[Any, Any, Any] | str:
        """What the call gets, or why it cannot get it."""
        # Without the attempt: the other side must see that a second attempt is the same call.
        run = self._run.key
        key = digest(run.scope, run.agent, str(run.revision), run.key, run.run_id, effect.path, effect.digest)
        context = self._context().for_call(key, effect.attempt)
        try:
            context.state = copy.deepcopy(context.state)  # what a tool changes would be lost in a replay
        except BaseException as error:
            return f"ctx.state cannot be copied for it: {named(error)}"
        return context
