"""Carries out the effects of a run: no call before its intent is recorded, and with it all that the code had seen.

The code goes on with an outcome while its record is on the way: what it asks for next travels with that record, in one
command, and nothing starts before that is acknowledged. So a step takes one round trip to the ledger and not two.
"""

from __future__ import annotations

import asyncio
import copy
import random
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from beam_agents.codec import digest, named
from beam_agents.context import RunContext
from beam_agents.engine import effects
from beam_agents.engine.ahead import Ahead, ask, ask_with
from beam_agents.engine.execution import Request
from beam_agents.engine.fault_points import FaultPoint
from beam_agents.engine.journal import Journal
from beam_agents.engine.outcome import Answered, Fenced, Outcome
from beam_agents.engine.turn import ModelTurn, Turn
from beam_agents.ledger.base import LEASE_SECONDS
from beam_agents.ledger.commands import Done, Intend, Record, Recorded
from beam_agents.ledger.records import Effect, Run

if TYPE_CHECKING:
    from beam_agents.engine.host import Host

T = TypeVar("T")

INTENT_FRESH_SECONDS = LEASE_SECONDS * 0.6
"""An intent acknowledged longer ago than this is confirmed again before the call: another worker may have the run."""


class _NotStarted(Exception):
    """The run has ended, or is being let go, before this effect was started."""


class Attempts:
    """The effects of one opening of a run that are under way in this worker.

    Args:
        host: The ledger, the limits, the clients.
        run: The run's record, as it was opened.
        journal: What is recorded; each intent and outcome is added.
        context: Gives the context that tools get.
        settled: Called with the path of each effect that has come to its outcome, in that order. It may call `begin`.
        broken: Called when there is a failure.
        network_forbidden: Whether models that use the network are refused.

    Attributes:
        ahead: Outcomes that the code has gone on with.
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
        settled: Callable[[str], None],
        broken: Callable[[], None],
        *,
        network_forbidden: bool,
    ) -> None:
        self._host = host
        self._run = run
        self._journal = journal
        self._context = context
        self._settled = settled
        self._broken = broken
        self._network_forbidden = network_forbidden
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self.ahead = Ahead(host.ledger)
        # At these places a test wants an outcome recorded, and nothing behind it.
        self._goes_ahead = host.faults.point not in ("after_outcome", "in_parallel")
        self._retries: dict[str, int] = {}
        self._sleeping: set[str] = set()
        self._turns: dict[str, Turn] = {}
        self._intending: set[str] = set()
        self._away: set[str] = set()
        self.failure: BaseException | None = None
        self.stopping = False
        self.model_calls = 0
        self.tool_calls = 0

    def begin(self, requests: list[Request], *, out_of_time: bool) -> list[str]:
        """Starts what the code newly waits for.

        When the time is over, only recorded outcomes are applied, and what a dead worker left is asked about.

        Returns:
            Paths of what is recorded already, to be delivered in this order: that in which they were recorded.
        """
        recorded: list[tuple[float, str]] = []
        for request in requests:
            path = request.path
            self._retries[path] = request.payload[0].retries if request.kind == "tool" else 0
            settled = self._journal.settled(path, self._retries[path])
            if settled is not None:
                recorded.append((settled.outcome_at or 0.0, path))
            elif not out_of_time or self._left_open(path) is not None:
                if request.kind == "sleep":
                    self._sleeping.add(path)
                self._jobs[path] = asyncio.create_task(self._carry_out(request))
        recorded.sort(key=lambda item: item[0])
        return [path for _, path in recorded]

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
            self.ahead.record_all(self._fail)
            await asyncio.wait(once)  # bounded: a call and its reconcile each have a time-out
        if self.failure is not None:
            await self.drain()
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
        until = None if seconds is None else asyncio.get_running_loop().time() + seconds
        while True:
            self.ahead.record_all(self._fail)
            under_way = [job for job in (*self._jobs.values(), *self.ahead.under_way()) if not job.done()]
            left = None if until is None else until - asyncio.get_running_loop().time()
            if not under_way or (left is not None and left <= 0):
                break
            await asyncio.wait(under_way, timeout=left)
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
        self.ahead.cancel()

    @property
    def move(self) -> bool:
        """Whether any of them does something else than wait for what is outside. On any thread; a hint."""
        waiting = {path for path, turn in list(self._turns.items()) if turn.waits}
        return len(self._away | waiting) < len(self._jobs)

    async def _outside(self, path: str, awaited: Awaitable[T]) -> T:
        """Awaits what this process cannot hasten."""
        self._away.add(path)
        try:
            return await awaited
        finally:
            self._away.discard(path)

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
        """Makes attempts until there is an outcome that the code gets, and hands it over."""
        path = request.path
        done = False
        try:
            while not done and self._journal.settled(path, self._retries[path]) is None:
                turn = self._turns[path] = self._host.slots(
                    request, self._run.key.key, network_forbidden=self._network_forbidden
                )
                async with turn:
                    done = await self._attempt(request, turn)
                if not done:
                    await self._pause(path)
            done = True
        except _NotStarted:
            pass
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._fail(error)
        self._jobs.pop(path, None)
        self._turns.pop(path, None)
        if done:
            try:
                self._settled(path)
            except BaseException as error:
                self._fail(error)
            self.ahead.record_soon(self._fail)

    async def _come_to(self, effect: Effect, outcome: Outcome, *, made_here: bool = True) -> bool:
        """Notes what an attempt came to, and has it recorded, at once or with what the code does next.

        Args:
            effect: The attempt.
            outcome: What it came to.
            made_here: Whether it was begun by this opening of the run. What another began may come to something else.

        Returns:
            Whether the code gets it.
        """
        path = effect.path
        if made_here and self._goes_ahead:
            reached = effect._replace(status=outcome.status, value=outcome.value, outcome_at=time.time())
            self._journal.put(reached)
            if self._journal.settled(path, self._retries[path]) is not None:
                self.ahead.add(self._record(effect, outcome))
                return True
            self._journal.put(effect)
        answer = await ask(self._host.ledger, self._record(effect, outcome))
        if not isinstance(answer, Recorded):  # the run was pruned since
            raise Fenced
        self._journal.put(answer.effect)
        self._was_recorded(answer.effect)
        return self._journal.settled(path, self._retries[path]) is not None

    def _record(self, effect: Effect, outcome: Outcome) -> Record:
        return Record(self._run.key, effect.path, effect.attempt, outcome.status, outcome.value)

    def _was_recorded(self, effect: Effect) -> None:
        self._reached("after_outcome", effect)
        if self._host.faults.point == "in_parallel" and self._in_flight():
            self._reached("in_parallel", effect)

    def _fail(self, error: BaseException) -> None:
        self.failure = self.failure or error
        self._broken()

    async def _pause(self, path: str) -> None:
        """Between two attempts of a tool that failed; growing, with jitter."""
        if self._journal.settled(path, self._retries[path]) is None:
            failed = sum(effect.status == "error" for effect in self._journal.attempts(path))
            await self._outside(path, asyncio.sleep(random.uniform(0.5, 1.0) * min(10.0, 0.1 * 2**failed)))

    async def _attempt(self, request: Request, turn: Turn) -> bool:
        """Makes one attempt. Says whether it came to what the code gets."""
        left = self._left_open(request.path)
        if left is not None:  # a dead worker's; its outcome must be known before anything else
            tool, arguments = request.payload
            context = self._call_context(left)
            if isinstance(context, str):
                outcome = Outcome.of("in_doubt", f"its worker died during the call, and {context}")
            else:
                outcome = await self._outside(left.path, effects.reconcile(tool, context, arguments))
            return await self._come_to(left, outcome, made_here=False)
        effect = await self._intend(request)
        if effect.status is not None:  # what a worker that was believed dead had done
            return True
        if self.stopping:
            return await self._come_to(effect, Outcome.of("not_happened", "the run ended before the call was made"))
        if request.kind == "sleep":
            await self._outside(effect.path, asyncio.sleep(max(0.0, (effect.due or 0.0) - time.time())))
            return await self._come_to(effect, Outcome.of("ok", None))
        if isinstance(turn, ModelTurn):
            self.model_calls += 1
            self._host.status.model_calls += 1
            model, asked = request.payload
            self._reached("before_call", effect)
            try:
                asking = effects.ask_model(
                    model,
                    asked,
                    turn=turn,
                    connect=self._host.connect,
                    pause=lambda seconds: self._pause_request(seconds, effect),
                    network_forbidden=self._network_forbidden,
                )
                outcome = await self._outside(effect.path, asking)
            except Answered as answered:
                self._journal.put(answered.effect)
                return True
            self._reached("after_call", effect)
            return await self._come_to(effect, outcome)
        tool, arguments = request.payload
        context = self._call_context(effect)
        if isinstance(context, str):
            return await self._come_to(effect, Outcome.of("error", f"tool {tool.name!r} was not called: {context}"))
        self.tool_calls += 1
        self._host.status.tool_calls += 1
        self._reached("before_call", effect)
        outcome = await self._outside(effect.path, effects.call_tool(tool, context, arguments))
        self._reached("after_call", effect)
        return await self._come_to(effect, outcome)

    async def _intend(self, request: Request) -> Effect:
        """Records that an attempt is about to be made. A sleep that a dead worker left goes on as it was."""
        attempts = self._journal.attempts(request.path)
        if attempts and attempts[-1].kind == "sleep" and attempts[-1].status is None:
            return attempts[-1]
        await self.ahead.until_few(self._fail)  # from here on the intent is on its way: it carries the deliveries
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
        effect = effect._replace(intent_at=answer.at)
        self._journal.put(effect)
        self._reached("after_intent", effect)
        return effect

    async def _confirm(self, effect: Effect) -> Done | Recorded:
        """Has the ledger acknowledge an intent, just now."""
        while True:
            asked = time.monotonic()
            outcomes = self.ahead.take()
            answer = await ask_with(self._host.ledger, Intend(self._run.key, self._run.epoch, effect), outcomes)
            if not isinstance(answer, Done | Recorded):
                raise Fenced
            self.ahead.recorded(outcomes)
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
