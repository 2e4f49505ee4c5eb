"""A model that follows a script, for tests that fix every answer."""

from __future__ import annotations

import inspect
import os
import tempfile
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

from pydantic import BaseModel, ConfigDict

from beam_agents.codec import digest
from beam_agents.errors import ConfigurationError, ModelError
from beam_agents.messages import AssistantMessage, ModelRequest, ModelResponse
from beam_agents.models.base import Model, Price
from beam_agents.models.function import Answer, offline_response, say
from beam_agents.testing.turn import answers_so_far, split_turn

Step: TypeAlias = str | BaseModel | ModelError | Callable[[ModelRequest], Answer | Awaitable[Answer]]
"""A text, a pydantic model (said as JSON), an `AssistantMessage`, a `ModelResponse`, an error, or a function."""


class UnexpectedModelCall(ModelError):
    """The script has no step for this request. Trying again does not help."""


class _Call(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str
    request: ModelRequest
    digest: str
    turn: str
    """Digest of the conversation up to the turn's first message: calls with the same one belong together."""
    script: str | None
    position: int
    """How often the model had answered before in the turn."""


class ScriptedModel(Model):
    """Answers from a script, and notes what it was asked.

    A script is for one turn: it begins with the newest user message that is not a correction of an answer, which is
    what the engine makes of an event, or one question of a workflow. The step is chosen by the number of answers
    that the request shows since then, so the same request gets the same step in every process and in every replay;
    asking it twice is no error. An error that is retryable is the exception, since it passes: the request that got
    it gets the next step when it is asked again.

    The calls are noted in a file, since workers hold copies of the model: `requests` and `assert_complete` also
    know of calls in other processes of the same machine.

    Args:
        script: The steps, for every turn; or scripts by a text, and a turn follows the first one whose text occurs
            in its user message (so `""`, as the last, is for all others).
        price: What its tokens cost, to try out cost budgets.
        record: The file for the calls; one in the temporary directory by default, removed with the model.
    """

    network = False

    def __init__(
        self,
        script: Sequence[Step] | Mapping[str, Sequence[Step]],
        *,
        price: Price | None = None,
        record: Path | str | None = None,
    ) -> None:
        scripts = dict(script) if isinstance(script, Mapping) else {"": script}
        self._scripts = {text: _positions(text, steps) for text, steps in scripts.items()}
        self._price = price
        if record is None:
            descriptor, path = tempfile.mkstemp(prefix="scripted-", suffix=".jsonl")
            os.close(descriptor)
            self.record = Path(path)
            weakref.finalize(self, self.record.unlink, missing_ok=True)
        else:
            self.record = Path(record)
            self.record.touch()

    @property
    def name(self) -> str:
        return "scripted"

    @property
    def price(self) -> Price | None:
        return self._price

    async def request(self, request: ModelRequest) -> ModelResponse:
        """Answers with the script's next step.

        Raises:
            UnexpectedModelCall: The script has none.
        """
        first, text = split_turn(request.messages)
        script = next((name for name in self._scripts if name in text), None)
        call = _Call(
            id=uuid4().hex,
            request=request,
            digest=request.digest(),
            turn=digest(*(message.digest for message in request.messages[: first + 1])),
            script=script,
            position=answers_so_far(request.messages[first:]),
        )
        with self.record.open("a", encoding="utf-8") as file:  # one write to the end: processes do not mix their lines
            file.write(call.model_dump_json() + "\n")
        step = self._step(call, text)
        if isinstance(step, ModelError):
            raise step
        if callable(step):
            made = step(request)
            answer = await made if inspect.isawaitable(made) else made
        else:
            answer = step if isinstance(step, AssistantMessage | ModelResponse) else say(step)
        return offline_response(answer, request, self)

    def _step(self, call: _Call, text: str) -> Step:
        if call.script is None:
            raise UnexpectedModelCall(
                f"ScriptedModel: none of the texts {list(self._scripts)!r} occurs in the user message {text[:200]!r}; "
                "add a script for it, or one with '' for all others"
            )
        positions = self._scripts[call.script]
        if call.position >= len(positions):
            raise UnexpectedModelCall(
                f"ScriptedModel: answer {call.position + 1} of a turn was asked for, but {_named(call.script)} ends "
                f"after {len(positions)}; the user message is {text[:200]!r}"
            )
        steps = positions[call.position]
        if len(steps) == 1:
            return steps[0]
        asked = [other.id for other in self._calls() if other.digest == call.digest]
        return steps[min(asked.index(call.id), len(steps) - 1)]

    @property
    def requests(self) -> list[ModelRequest]:
        """What it was asked, in this and in other processes, in order."""
        return [call.request for call in self._calls()]

    def assert_complete(self) -> None:
        """Checks that every turn went through its script to the end, and that each script was used.

        Raises:
            AssertionError: A step was left over, or a call had no step. The message names it.
        """
        calls = self._calls()
        problems = [self._problem(call) for call in calls]
        for name, positions in self._scripts.items():
            turns: dict[str, int] = {}
            for call in calls:
                if call.script == name:
                    turns[call.turn] = max(turns.get(call.turn, 0), call.position + 1)
            if not turns:
                problems.append(f"{_named(name)} was never used")
            elif (fewest := min(turns.values())) < len(positions):
                problems.append(f"{_named(name)} has {len(positions)} answers, but a turn ended after {fewest}")
        found = [problem for problem in dict.fromkeys(problems) if problem]
        if found:
            raise AssertionError("ScriptedModel: " + "; ".join(found))

    def _problem(self, call: _Call) -> str | None:
        if call.script is None:
            return f"a call had no script; its last message was {call.request.messages[-1:]!r}"
        if call.position >= len(self._scripts[call.script]):
            return f"a call came after the last of the answers in {_named(call.script)}"
        return None

    def _calls(self) -> list[_Call]:
        noted = self.record.read_text(encoding="utf-8") if self.record.exists() else ""
        # Not splitlines: a text may hold other line ends. What follows the last one is still being written.
        return [_Call.model_validate_json(line) for line in noted.split("\n")[:-1]]

    def __repr__(self) -> str:
        return f"ScriptedModel({self._scripts!r})"


def _positions(text: str, steps: Any) -> tuple[tuple[Step, ...], ...]:
    """The steps by the answer they belong to: passing errors stand before the answer that comes after them."""
    if isinstance(steps, str) or not isinstance(steps, Sequence) or not steps:
        raise ConfigurationError(f"ScriptedModel: {_named(text)} is {steps!r}; give a list with at least one step")
    positions: list[tuple[Step, ...]] = []
    passing: list[Step] = []
    for step in steps:
        if not isinstance(step, str | BaseModel | ModelError) and not callable(step):
            raise ConfigurationError(
                f"ScriptedModel: step {step!r} must be a text, a pydantic model, an AssistantMessage, a ModelResponse, "
                "a ModelError or a function"
            )
        passing.append(step)
        if not (isinstance(step, ModelError) and step.retryable):
            positions.append(tuple(passing))
            passing = []
    if passing:
        positions.append(tuple(passing))
    return tuple(positions)


def _named(script: str) -> str:
    return f"the script for {script!r}" if script else "the script"
