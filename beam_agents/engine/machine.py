"""What a run does next: the core of the engine, without clock, network, ledger or Beam."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from beam_agents.budget import Budget, Usage
from beam_agents.codec import canonical_json, digest, named, told
from beam_agents.engine import outcome
from beam_agents.engine.execution import Code, Execution, Gather, Request, Stop
from beam_agents.engine.journal import Journal
from beam_agents.errors import (
    BeamAgentsError,
    ConfigurationError,
    DeterminismError,
    FailRun,
    ModelError,
    ModelRetry,
    ToolError,
    ToolFailed,
)
from beam_agents.events import FailureReason
from beam_agents.ledger.records import Effect
from beam_agents.messages import Message, ModelRequest, ModelResponse
from beam_agents.output import InvalidOutput

if TYPE_CHECKING:
    from beam_agents.models.base import Model
    from beam_agents.tools import Tool


_CHANGED = "the code changed under an open run (raise `revision` to decide anew)"


class EndRun(Stop):
    """Tells the code that its run has ended. Code that holds it back is dropped at its next await."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How the code of a run ended: with an output, or with a reason and a message."""

    output: Any = None
    reason: FailureReason | None = None
    message: str = ""


class Port:
    """The engine as one execution of the code sees it through its context (`context.RunPort`)."""

    def __init__(self, budget: Budget, *, pure_only: bool = False) -> None:
        self.budget = budget
        self.pure_only = pure_only
        self.transcript: list[Message] = []
        self.remembered: list[Message] = []
        self.emitted: list[Any] = []
        self.stop: Ending | None = None
        """Why the run is over, whatever the code makes of it."""
        self._steps = self._tool_calls = self._input_tokens = self._output_tokens = 0
        self._cost: float | None = 0.0
        self._known_cost = 0.0

    @property
    def usage(self) -> Usage:
        """What the code has used so far."""
        return Usage(
            steps=self._steps,
            tool_calls=self._tool_calls,
            input_tokens=self._input_tokens,
            output_tokens=self._output_tokens,
            cost_usd=self._cost,
        )

    async def model(self, model: Model, request: ModelRequest) -> ModelResponse:
        await self._go_on()
        self._check_spending()
        self._steps += 1
        response: ModelResponse = await Request("model", model.name, request.digest(), "pure", None, (model, request))
        self._spend(response)
        return response

    async def call(self, tool: Tool[Any], arguments: dict[str, Any]) -> Any:
        await self._go_on()
        if self.pure_only and tool.effect != "pure":
            raise ConfigurationError(
                f"tool {tool.name!r} ({tool.effect}) may not run again after a crash: RunAgent needs a ledger"
            )
        if self._tool_calls >= self.budget.tool_calls:
            self._end(FailureReason.BUDGET_TOOL_CALLS, f"the budget of {self.budget.tool_calls} tool calls is used up")
        self._tool_calls += 1
        text = canonical_json(arguments)
        result = await Request("tool", tool.name, digest(tool.name, text), tool.effect, text, (tool, arguments))
        try:
            tool.result_from(result)
        except ToolError as error:  # it fitted when it was recorded; the code would take this for a call that failed
            why = f"{tool.name}({text}) was called by another release: {error}; {_CHANGED}"
            self._end(FailureReason.DETERMINISM, why)
        return result

    async def gather(self, branches: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        if self.stop is not None:
            for branch in branches:
                branch.close()  # or Python complains that they were never awaited
        await self._go_on()
        results: list[Any] = await Gather(branches)
        return results

    async def sleep(self, duration: timedelta) -> None:
        await self._go_on()
        if duration > self.budget.wall_clock:
            raise ConfigurationError(
                f"ctx.sleep({duration}) outlasts the run: raise Budget(wall_clock={self.budget.wall_clock})"
            )
        text = canonical_json({"seconds": duration.total_seconds()})
        await Request("sleep", "sleep", digest(text), "pure", text, duration.total_seconds())

    async def _go_on(self) -> None:
        """Hands code that goes on after its end to the machine, which drops it: it could await for ever."""
        if self.stop is not None:
            await Request("stop", "stop", "", "pure", None, None)

    def _end(self, reason: FailureReason, message: str) -> NoReturn:
        self.stop = Ending(reason=reason, message=message)
        raise EndRun(message)

    def _check_spending(self) -> None:
        budget, tokens = self.budget, self._input_tokens + self._output_tokens
        if self._steps >= budget.steps:
            self._end(FailureReason.BUDGET_STEPS, f"the budget of {budget.steps} steps is used up")
        if budget.tokens is not None and tokens >= budget.tokens:
            self._end(FailureReason.BUDGET_TOKENS, f"{tokens} of {budget.tokens} tokens are used")
        if budget.cost_usd is not None and self._known_cost >= budget.cost_usd:
            self._end(FailureReason.BUDGET_COST, f"{self._known_cost:.4f} of {budget.cost_usd} USD are spent")

    def _spend(self, response: ModelResponse) -> None:
        cost = response.cost_usd
        self._known_cost += cost or 0.0
        self._input_tokens += response.tokens.input or 0
        self._output_tokens += response.tokens.output or 0
        self._cost = None if cost is None or self._cost is None else self._cost + cost


class Machine:
    """The code of one run with its journal.

    Args:
        make_code: Makes the coroutine anew, for a port; called again for each replay.
        budget: The run's budget.
        journal: What is recorded of the run so far.
        pure_only: Refuse tools that are not `pure`, because nothing would remember that they were called.
        always_replay: Drop the coroutine at each suspension and build it again from the journal, so that code that
            cannot be replayed shows at once.
    """

    def __init__(
        self,
        make_code: Callable[[Port], Code],
        budget: Budget,
        journal: Journal,
        *,
        pure_only: bool = False,
        always_replay: bool = False,
    ) -> None:
        self._make_code = make_code
        self._budget = budget
        self._pure_only = pure_only
        self.always_replay = always_replay
        self._known: set[str] = set()
        self.journal = journal
        self.ending: Ending | None = None
        self.port = Port(budget, pure_only=pure_only)
        self._execution: Execution | None = None

    def start(self) -> list[Request]:
        """Runs the code over all that was delivered before; returns what it waits for.

        Neither this nor `deliver` raises: what nobody foresaw, such as a record that cannot be read, ends the run.
        """
        return self._guarded(self._replay)

    def deliver(self, effect: Effect) -> list[Request]:
        """Hands one recorded outcome to the code; returns what it newly waits for."""
        return self._guarded(lambda: self._deliver(effect))

    def _guarded(self, move: Callable[[], Execution]) -> list[Request]:
        try:
            return self._new(move().waiting)
        except BaseException as error:  # user code may raise anything, and there is no other way out of a bundle
            self.stop(reason_of(error), describe(error))
            return []

    def _deliver(self, effect: Effect) -> Execution:
        self.journal.deliver(effect.path, effect.attempt)
        if self.always_replay or self._execution is None:
            self.drop()
            return self._replay()
        self._hand_over(self._execution, effect)
        return self._execution

    def stop(self, reason: FailureReason, message: str) -> None:
        """Ends the run from outside; a run that has ended stays as it is."""
        if self.ending is None:
            self.drop()
            self.ending = Ending(reason=reason, message=message)

    def drop(self) -> None:
        """Drops the code without an ending, for another worker to take up."""
        if self._execution is not None:
            self._execution.close()

    def _replay(self) -> Execution:
        self.port = Port(self._budget, pure_only=self._pure_only)
        execution = self._execution = Execution(self._make_code(self.port))
        self._handed: set[str] = set()
        execution.start()
        self._check(execution)
        for path, attempt in list(self.journal.delivered):
            if self.ending is None:
                self._hand_over(execution, self.journal.get(path, attempt))
        return execution

    def _hand_over(self, execution: Execution, effect: Effect) -> None:
        if effect.path not in execution.waiting:
            self._differs(
                f"the journal delivers an outcome at {effect.path} ({effect.name}), the code does not wait there"
            )
            return
        if effect.status == "in_doubt":
            self.stop(FailureReason.IN_DOUBT, doubt(effect))
            return
        if effect.status == "result_lost":
            self.stop(FailureReason.RESULT_LOST, f"{call(effect)} happened: {message_of(effect)}")
            return
        value, error = outcome.read(effect)
        self._handed.add(effect.path)
        execution.deliver(effect.path, value, error)
        if error is not None:  # its traceback has these frames, and they have it: all would wait for the collector
            error.__traceback__ = None
        self._check(execution)

    def _check(self, execution: Execution) -> None:
        """Compares what the code asks for with the journal, and notes its end."""
        if self.port.stop is not None:
            self.drop()
            self.ending = self.port.stop
            return
        for path, request in execution.waiting.items():
            recorded = self.journal.attempts(path)
            if recorded and (recorded[0].kind, recorded[0].name, recorded[0].digest) != (
                request.kind,
                request.name,
                request.digest,
            ):
                asked = f"{request.kind} {call(request)}"
                held = f"{recorded[0].kind} {call(recorded[0])}"
                self._differs(f"at {path} the code asks for {asked}, the journal holds {held}, or with other input")
                return
        if execution.ended:
            ending = _ending(execution.result, execution.error)
            execution.error = None  # its traceback has the execution
            never_asked = set(self.journal.paths()) - self._handed
            if never_asked and ending.reason is None:
                self._differs(f"the code ended without asking for {sorted(never_asked)}, which the journal holds")
            else:
                self.ending = ending

    def _differs(self, how: str) -> None:
        self.stop(FailureReason.DETERMINISM, f"{how}; {_CHANGED} or is not deterministic")

    def _new(self, waiting: dict[str, Request]) -> list[Request]:
        if self.ending is not None:
            return []
        new = [request for path, request in waiting.items() if path not in self._known]
        self._known.update(request.path for request in new)
        return new


def _ending(result: Any, error: BaseException | None) -> Ending:
    return Ending(output=result) if error is None else Ending(reason=reason_of(error), message=describe(error))


def call(asked: Request | Effect) -> str:
    """An effect as messages name it."""
    return f"{asked.name}({asked.arguments or ''})"


def message_of(effect: Effect) -> Any:
    """What is recorded of an effect that did not come to a result."""
    return json.loads(effect.value) if effect.value is not None else "its outcome was not recorded"


def doubt(effect: Effect) -> str:
    """The message about an effect of which nobody knows whether it happened."""
    return f"{call(effect)} may or may not have happened: {message_of(effect)}"


_REASONS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], FailureReason], ...] = (
    (ModelError, FailureReason.MODEL_ERROR),
    (InvalidOutput, FailureReason.INVALID_OUTPUT),
    ((ToolError, ToolFailed, ModelRetry), FailureReason.TOOL_ERROR),
    (FailRun, FailureReason.REJECTED),
    (DeterminismError, FailureReason.DETERMINISM),
)


def reason_of(error: BaseException) -> FailureReason:
    """The reason under which a run ends that raised `error`."""
    return next((reason for types, reason in _REASONS if isinstance(error, types)), FailureReason.CODE_ERROR)


def describe(error: BaseException) -> str:
    """An error for a dead letter: our own speak for themselves, others with their type."""
    if isinstance(error, (BeamAgentsError, ToolFailed, ModelRetry, FailRun)):
        return told(error) or type(error).__name__
    return named(error)
