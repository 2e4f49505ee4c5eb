"""What a run does next: the core of the engine, without clock, network, ledger or Beam."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from beam_agents.budget import Budget, Usage
from beam_agents.codec import canonical_json, digest
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
from beam_agents.ledger.base import Effect
from beam_agents.messages import Message, ModelRequest, ModelResponse
from beam_agents.output import InvalidOutput

if TYPE_CHECKING:
    from beam_agents.models.base import Model
    from beam_agents.tools import Tool


class EndRun(Stop):
    """Ends the run with a reason; user code cannot hold it back."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


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
        self.usage = Usage()
        self.transcript: list[Message] = []
        self.remembered: list[Message] = []
        self.emitted: list[Any] = []
        self._known_cost = 0.0

    async def model(self, model: Model, request: ModelRequest) -> ModelResponse:
        self._check_spending()
        self._count(steps=1)
        response: ModelResponse = await Request("model", model.name, request.digest(), "pure", None, (model, request))
        self._spend(response)
        return response

    async def call(self, tool: Tool[Any], arguments: dict[str, Any]) -> Any:
        if self.pure_only and tool.effect != "pure":
            raise ConfigurationError(
                f"tool {tool.name!r} ({tool.effect}) may not run again after a crash: RunAgent needs a ledger"
            )
        if self.usage.tool_calls >= self.budget.tool_calls:
            raise EndRun(
                FailureReason.BUDGET_TOOL_CALLS, f"the budget of {self.budget.tool_calls} tool calls is used up"
            )
        self._count(tool_calls=1)
        text = canonical_json(arguments)
        return await Request("tool", tool.name, digest(tool.name, text), tool.effect, text, (tool, arguments))

    async def gather(self, branches: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        results: list[Any] = await Gather(branches)
        return results

    async def sleep(self, duration: timedelta) -> None:
        if duration > self.budget.wall_clock:
            raise ConfigurationError(
                f"ctx.sleep({duration}) outlasts the run: raise Budget(wall_clock={self.budget.wall_clock})"
            )
        text = canonical_json({"seconds": duration.total_seconds()})
        await Request("sleep", "sleep", digest(text), "pure", text, duration.total_seconds())

    def _count(self, **more: int) -> None:
        counts = {name: getattr(self.usage, name) + number for name, number in more.items()}
        self.usage = self.usage.model_copy(update=counts)

    def _check_spending(self) -> None:
        usage, budget = self.usage, self.budget
        if usage.steps >= budget.steps:
            raise EndRun(FailureReason.BUDGET_STEPS, f"the budget of {budget.steps} steps is used up")
        if budget.tokens is not None and usage.tokens >= budget.tokens:
            raise EndRun(FailureReason.BUDGET_TOKENS, f"{usage.tokens} of {budget.tokens} tokens are used")
        if budget.cost_usd is not None and self._known_cost >= budget.cost_usd:
            raise EndRun(FailureReason.BUDGET_COST, f"{self._known_cost:.4f} of {budget.cost_usd} USD are spent")

    def _spend(self, response: ModelResponse) -> None:
        cost, known = response.cost_usd, self.usage.cost_usd
        self._known_cost += cost or 0.0
        self.usage = self.usage.model_copy(
            update={
                "input_tokens": self.usage.input_tokens + (response.tokens.input or 0),
                "output_tokens": self.usage.output_tokens + (response.tokens.output or 0),
                "cost_usd": None if cost is None or known is None else known + cost,
            }
        )


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
        self._always_replay = always_replay
        self._known: set[str] = set()
        self.journal = journal
        self.ending: Ending | None = None
        self.port = Port(budget, pure_only=pure_only)

    def start(self) -> list[Request]:
        """Runs the code over all that was delivered before; returns what it waits for."""
        return self._new(self._replay())

    def deliver(self, effect: Effect) -> list[Request]:
        """Hands one recorded outcome to the code; returns what it newly waits for."""
        self.journal.deliver(effect.path, effect.attempt)
        if self._always_replay:
            self._execution.close()
            return self._new(self._replay())
        self._hand_over(effect)
        return self._new(self._execution.waiting)

    def stop(self, reason: FailureReason, message: str) -> None:
        """Ends the run from outside; a run that has ended stays as it is."""
        if self.ending is None:
            self._execution.close()
            self.ending = Ending(reason=reason, message=message)

    def drop(self) -> None:
        """Drops the code without an ending, for another worker to take up."""
        self._execution.close()

    def _replay(self) -> dict[str, Request]:
        self.port = Port(self._budget, pure_only=self._pure_only)
        self._execution = Execution(self._make_code(self.port))
        self._handed: set[str] = set()
        self._execution.start()
        self._check()
        for path, attempt in list(self.journal.delivered):
            if self.ending is None:
                self._hand_over(self.journal.get(path, attempt))
        return self._execution.waiting

    def _hand_over(self, effect: Effect) -> None:
        if effect.path not in self._execution.waiting:
            self._differs(
                f"the journal delivers an outcome at {effect.path} ({effect.name}), the code does not wait there"
            )
            return
        if effect.status == "in_doubt":
            self._execution.close()
            message = f"{effect.name}({effect.arguments or ''}) may or may not have happened: {effect.value}"
            self.ending = Ending(reason=FailureReason.IN_DOUBT, message=message)
            return
        value, error = outcome.read(effect)
        self._handed.add(effect.path)
        self._execution.deliver(effect.path, value, error)
        self._check()

    def _check(self) -> None:
        """Compares what the code asks for with the journal, and notes its end."""
        for path, request in self._execution.waiting.items():
            recorded = self.journal.attempts(path)
            if recorded and (recorded[0].kind, recorded[0].name, recorded[0].digest) != (
                request.kind,
                request.name,
                request.digest,
            ):
                asked = f"{request.kind} {request.name}({request.arguments or ''})"
                held = f"{recorded[0].kind} {recorded[0].name}({recorded[0].arguments or ''})"
                self._differs(f"at {path} the code asks for {asked}, the journal holds {held}, or with other input")
                return
        if self._execution.ended:
            self.ending = _ending(self._execution.result, self._execution.error)
            never_asked = set(self.journal.paths()) - self._handed
            if never_asked and self.ending.reason is None:
                self._differs(f"the code ended without asking for {sorted(never_asked)}, which the journal holds")

    def _differs(self, how: str) -> None:
        self._execution.close()
        message = (
            f"{how}. The code changed under an open run (raise `revision` to decide anew) or is not deterministic."
        )
        self.ending = _ending(None, DeterminismError(message))

    def _new(self, waiting: dict[str, Request]) -> list[Request]:
        if self.ending is not None:
            return []
        new = [request for path, request in waiting.items() if path not in self._known]
        self._known.update(request.path for request in new)
        return new


def _ending(result: Any, error: BaseException | None) -> Ending:
    if error is None:
        return Ending(output=result)
    if isinstance(error, EndRun):
        return Ending(reason=error.reason, message=error.message)
    return Ending(reason=reason_of(error), message=describe(error))


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
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"
