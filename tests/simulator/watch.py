"""The invariants that can be seen as things happen: what the ledger is told, and what is asked of the outside."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from beam_agents.budget import Budget
from beam_agents.codec import digest
from beam_agents.engine.end import End
from beam_agents.events import FailureReason
from beam_agents.history import Session
from beam_agents.ledger.base import LEASE_SECONDS
from beam_agents.ledger.commands import (
    Answer,
    Close,
    Closed,
    Command,
    Done,
    Intend,
    Open,
    Opened,
    Pruned,
    Record,
    Recorded,
    Release,
    Renew,
    TooOld,
)
from beam_agents.ledger.memory import MemoryLedger
from beam_agents.ledger.records import Effect, Run, RunKey
from beam_agents.messages import AssistantMessage, Message, ModelRequest, ToolMessage
from tests.simulator.agents import asked_by
from tests.simulator.loop import EPOCH, Scheduler, SimLoop
from tests.simulator.pruning import Pruning


class WatchedLedger(MemoryLedger):
    """A ledger in memory, in virtual time, with somebody who looks at each command and answer."""

    def __init__(self, scheduler: Scheduler, watch: Watch) -> None:
        super().__init__("simulated", clock=lambda: EPOCH + scheduler.now)
        self._identity = "simulated"
        self._watch = watch
        watch.ledger = self

    def carry_out(self, loop: SimLoop, command: Command) -> Answer:
        """Carries out one command of a worker's writer."""
        self._watch.before(command)
        [answer] = self.apply([command])
        self._watch.after(loop.name, command, answer)
        return answer

    def answered(self, loop: SimLoop, command: Command, answer: Any) -> None:
        """The answer has reached the worker."""
        self._watch.reached(loop, command, answer)

    def all_runs(self) -> list[Run]:
        return list(self._runs.values())


@dataclass
class _Known:
    """What was seen of one run, apart from what the ledger says now."""

    epoch: int = 0
    owner: str = ""
    end: str | None = None
    outcomes: dict[tuple[str, int], tuple[str, str]] = field(default_factory=dict)
    digests: dict[str, tuple[str, str]] = field(default_factory=dict)
    states: dict[str, Any] = field(default_factory=dict)
    latest_start: dict[str, float] = field(default_factory=dict)
    """By worker: when the budget of time is over, as it can know."""


class Watch:
    """Collects violations.

    Args:
        scheduler: The clock.
        budget: The agent's.
        lenient: Whether a batch may drive runs, for which only the time counts that a worker held them.
        verbose: Whether to keep a trace.

    Attributes:
        violations: What must not have happened, in words.
        counts: What happened how often.
        trace: Lines about what happened, if asked for.
        pruning: What an operator prunes.
    """

    def __init__(self, scheduler: Scheduler, budget: Budget, *, lenient: bool = False, verbose: bool = False) -> None:
        self.scheduler = scheduler
        self.budget = budget
        self.ledger: WatchedLedger
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self.trace: list[str] | None = [] if verbose else None
        self.known: dict[RunKey, _Known] = {}
        self.pruning = Pruning(self)
        self._lenient = lenient
        self._calls: dict[str, tuple[RunKey, str]] = {}
        self._by_id: dict[str, RunKey] = {}
        self._asked: set[tuple[str, RunKey, str]] = set()
        self._intended_at: dict[tuple[RunKey, str, int], float] = {}
        self._lease_until: dict[str, float] = {}
        self._made: set[tuple[RunKey, str, int]] = set()

    def say(self, who: str, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.scheduler.now:9.3f} {who:<8} {text}")

    def violate(self, text: str) -> None:
        self.say("WATCH", f"VIOLATION {text}")
        self.violations.append(text)

    # ---- the ledger ----

    def before(self, command: Command) -> None:
        """The session of a key as it is before a close."""
        if isinstance(command, Close):
            run, head = self.ledger.run(command.run), self.ledger.head(command.run.head)
            self._was_open = run is not None and run.end is None
            self._session_before = head.session if head else None
            self._version_before = head.session_version if head else 0

    def after(self, who: str, command: Command, answer: Answer) -> None:
        """A command was carried out."""
        if self.trace is not None:
            self.say(who, _told(command, answer))
        if isinstance(command, Intend | Close):
            self._recorded_first(command)
        match command, answer:
            case Open(), Opened():
                self._opened(command, answer)
            case Renew(), Done():
                self._lease_until[command.owner] = self.scheduler.now + LEASE_SECONDS
            case Release(), Done():
                self.known[command.run].owner = ""
            case Intend(), Done():
                self._intended(command)
            case Record(), Recorded():
                self._recorded(command.run, answer.effect, new=answer.new)
            case Close(), Closed():
                self._closed(command, answer)
            case Open(), Pruned() | TooOld():
                self.counts[f"answered {type(answer).__name__}"] += 1
            case Open(), Closed():
                self.counts["replays"] += 1
                self._same_end(answer.run)

    def reached(self, loop: SimLoop, command: Command, answer: Any) -> None:
        """An answer reached its worker."""
        if isinstance(answer, Opened):
            run = answer.run
            used = run.epoch_at - run.opened_at
            used = min(used, run.held) if self._lenient else used
            left = max(0.0, self.budget.wall_clock.total_seconds() - used)
            self.known[run.key].latest_start[loop.name] = self.scheduler.now + left

    def _opened(self, command: Open, answer: Opened) -> None:
        known = self.known.setdefault(command.run, _Known())
        self._by_id[command.run.run_id] = command.run
        if answer.run.epoch > 1 and answer.run.epoch != known.epoch:
            self.counts["reopenings"] += 1
            self.counts["takeovers"] += known.owner not in ("", answer.run.owner)
            if known.owner != answer.run.owner and self._lease_until.get(known.owner, 0.0) > self.scheduler.now + 1e-6:
                self.violate(f"{command.run.run_id} was taken from a worker that is alive")
        known.owner = answer.run.owner
        self._lease_until[known.owner] = self.scheduler.now + LEASE_SECONDS
        known.epoch = max(known.epoch, answer.run.epoch)
        if known.end is not None:
            self.violate(f"run {command.run.run_id} was opened after its end")

    def _intended(self, command: Intend) -> None:
        run, effect = command.run, command.effect
        known, where = self.known[run], f"{run.run_id} {effect.path} attempt {effect.attempt}"
        self.counts["intents"] += 1
        if command.epoch != known.epoch or known.end is not None:
            self.violate(f"intent of a fenced worker was taken: {where}, epoch {command.epoch} of {known.epoch}")
        if known.digests.setdefault(effect.path, (effect.name, effect.digest)) != (effect.name, effect.digest):
            self.violate(f"replay asks for something else: {where}")
        if effect.kind == "tool":
            key = digest(run.scope, run.agent, str(run.revision), run.key, run.run_id, effect.path, effect.digest)
            self._calls[key] = (run, effect.path)
        for attempt in range(1, effect.attempt):
            status = known.outcomes.get((effect.path, attempt), (None, ""))[0]
            if effect.effect == "once" and status != "not_happened":
                self.violate(f"a once call is repeated blind: {where} after {status}")
            elif status not in (None, "not_happened", "error"):
                self.violate(f"an effect is begun again though an outcome stands ({status}): {where}")
        for path, attempt in effect.delivered:
            seen = self.ledger.effect(run, path, attempt)
            if seen is None or seen.status is None:
                self.violate(f"an effect is begun behind an outcome that is not recorded ({path}): {where}")
        self._intended_at[run, effect.path, effect.attempt] = self.scheduler.now
        kinds = Counter(
            next(e.kind for e in self.ledger.effects(run) if e.path == path)
            for path in {e.path for e in self.ledger.effects(run)}
        )
        if kinds["model"] > self.budget.steps or kinds["tool"] > self.budget.tool_calls:
            self.violate(f"a budget was exceeded: {dict(kinds)} in {run.run_id}")

    def _recorded(self, run: RunKey, effect: Effect, *, new: bool) -> None:
        known, place = self.known[run], (effect.path, effect.attempt)
        said = (str(effect.status), str(effect.value))
        if known.outcomes.setdefault(place, said) != said:
            self.violate(f"an outcome was overwritten: {run.run_id} {place}")
        if known.end is not None and new:
            self.counts["late outcomes"] += 1

    def _recorded_first(self, command: Intend | Close) -> None:
        """What a run's code had gone on with came with what it did next, and stands whatever became of that."""
        for told in command.outcomes:
            stands = self.ledger.effect(told.run, told.path, told.attempt)
            if told.run in self.pruning.gone:
                self.counts["outcomes after pruning"] += 1
            elif stands is None or stands.status is None:
                self.violate(f"an outcome was not recorded: {told.run.run_id} {told.path} attempt {told.attempt}")
            else:
                self.counts["outcomes taken along"] += 1
                self._recorded(told.run, stands, new=False)

    def _same_end(self, run: Run) -> None:
        known = self.known.setdefault(run.key, _Known())
        if known.end is None:
            known.end = run.end
        elif known.end != run.end:
            self.violate(f"the end of {run.key.run_id} was changed")

    def _closed(self, command: Close, answer: Closed) -> None:
        run, known = answer.run, self.known[command.run]
        self._same_end(run)
        if not self._was_open:
            return
        self.counts["closes"] += 1
        if command.epoch != known.epoch:
            self.violate(f"{run.key.run_id} was closed by a fenced worker")
        end = End.from_json(run.end or "")
        self.counts[f"ended {end.reason.value if end.reason else end.kind}"] += 1
        head = self.ledger.head(run.key.head)
        assert head is not None
        before = Session.from_json(self._session_before) if self._session_before else Session()
        after = Session.from_json(head.session or "")
        if head.session_version != self._version_before + 1 or after.version != head.session_version:
            self.violate(f"session version {self._version_before} became {head.session_version} ({after.version})")
        taken = [*_ids(before), run.key.run_id]
        may = [taken, [*taken, f"{run.key.run_id}!"]]
        if end.reason is FailureReason.CRASH_LOOP:
            may.append(_ids(before))
        if not any(
            _ids(after)[: len(ids)] == ids and set(_ids(after)[len(ids) :]) <= {f"{run.key.run_id}!"} for ids in may
        ):
            self.violate(f"a session update was lost: {_ids(before)} became {_ids(after)} at {run.key.run_id}")
        for messages, what in ((after.history, "history"), (end.transcript, "transcript")):
            if _dangling(messages):
                self.violate(f"a tool call without a result in the {what} after {run.key.run_id}")
        # An intent that was on its way when the run ended, and whose call was therefore never made, is no doubt.
        left = [e for e in answer.effects if e.effect == "once" and e.status is None]
        made = [e for e in left if (run.key, e.path, e.attempt) in self._made]
        self.counts["open intents at a close"] += len(left) - len(made)
        open_calls = made + [e for e in answer.effects if e.effect == "once" and e.status == "in_doubt"]
        if open_calls and end.reason is not FailureReason.IN_DOUBT:
            self.violate(f"{run.key.run_id} ended as {end.reason or end.kind}, but {open_calls[0].path} is in doubt")
        if not left and not open_calls and end.reason is FailureReason.IN_DOUBT:
            self.violate(f"{run.key.run_id} ended as in doubt, but nothing is: {end.message}")

    # ---- the outside ----

    def call_starts(self, who: str, name: str, effect: str, ctx: Any, n: int) -> None:
        """A worker makes a call."""
        self.counts["tool calls"] += 1
        found = self._calls.get(ctx.idempotency_key)
        self.say(who, f"CALL {name}({n}) of {ctx.run_id} {found and found[1]} attempt {ctx.attempt}")
        if found is None:
            self.violate(f"{name} is called without an intent: {ctx.run_id} {ctx.idempotency_key}")
            return
        run, path = found
        self._made.add((run, path, ctx.attempt))
        if self.known[run].end is not None:
            self.counts["calls after the end"] += 1
            if effect == "once":
                self.violate(f"a once call is made after the end of its run: {run.run_id} {path} by {who}")
        where = f"{name} of {run.run_id} {path} attempt {ctx.attempt} by {who}"
        recorded = self.ledger.effect(run, path, ctx.attempt)
        if run in self.pruning.gone:
            self.counts["calls after pruning"] += 1
        elif recorded is None:
            self.violate(f"called without an intent: {where}")
        elif recorded.status is not None:
            self.violate(f"called although its outcome is recorded ({recorded.status}): {where}")
        for other in self.ledger.effects(run):
            if other.path == path and other.attempt != ctx.attempt and self._late(run, path, ctx.attempt, other):
                self.violate(f"called although attempt {other.attempt} was recorded ({other.status}): {where}")
        self._in_time(who, run, path)
        self._same_state(run, path, ctx)

    def _in_time(self, who: str, run: RunKey, path: str) -> None:
        over = self.scheduler.now - self.known[run].latest_start[who]
        if over > 1e-6:
            self.violate(f"an effect was begun {over:.3f} s after the budget of time: {run.run_id} {path} by {who}")

    def look_starts(self, who: str, ctx: Any, n: int) -> None:
        """A worker asks what became of a call."""
        self.counts["reconciles"] += 1
        self.say(who, f"RECONCILE of {ctx.run_id} attempt {ctx.attempt}")
        run, path = self._calls[ctx.idempotency_key]
        self._same_state(run, path, ctx)

    def request_starts(self, who: str, request: ModelRequest) -> None:
        """A worker asks the model."""
        self.counts["model requests"] += 1
        run, asked = self._by_id[asked_by(request)], request.digest()
        self.say(who, f"MODEL of {run.run_id}")
        effects = [effect for effect in self.ledger.effects(run) if effect.kind == "model" and effect.digest == asked]
        if not effects and run not in self.pruning.gone:
            self.violate(f"the model is asked without an intent: {run.run_id} by {who}")
        again = (who, run, asked) in self._asked
        self._asked.add((who, run, asked))
        if not again:
            self._in_time(who, run, "model")
        confirmed = [self._intended_at[run, e.path, e.attempt] for e in effects if e.status is None]
        for effect in effects:
            if again and self._was_known(effect, confirmed):
                self.violate(f"a failed request is made again, though {run.run_id} {effect.path} is recorded, by {who}")
            elif not again and any(self._late(run, effect.path, other.attempt, effect) for other in effects):
                self.violate(f"a recorded answer is paid for again: {run.run_id} {effect.path} by {who}")

    def _was_known(self, effect: Effect, confirmed: list[float]) -> bool:
        """Whether what a request is made for once more was recorded when its intent was last confirmed.

        Args:
            effect: What is recorded.
            confirmed: When the intents that are open were.
        """
        if effect.status in (None, "not_happened"):
            return False
        if not confirmed:
            return True
        if effect.status == "error":  # in a worker that was believed dead: no answer, and another attempt has followed
            return False
        recorded = (effect.outcome_at or 0.0) - EPOCH
        return recorded < max(confirmed) or self.scheduler.now - recorded > LEASE_SECONDS * 0.6 + 0.01

    def _late(self, run: RunKey, path: str, attempt: int, other: Effect) -> bool:
        """Whether a call that starts now on an old intent was overtaken by the outcome of another attempt.

        Between an intent and its call there are some moments in which another worker's late outcome can come.
        """
        made = self._intended_at.get((run, path, attempt))
        return (
            made is not None
            and other.attempt != attempt
            and other.status not in (None, "not_happened", "error")
            and self.scheduler.now - made > LEASE_SECONDS * 0.6 + 0.01
        )

    def _same_state(self, run: RunKey, path: str, ctx: Any) -> None:
        # Without what other branches of the run have assigned since the call was asked for: a second attempt sees it.
        ids = tuple(taken for taken in ctx.state.ids if taken != f"{run.run_id}!")
        seen = (ids, tuple(message.digest for message in ctx.history))
        if self.known[run].states.setdefault(path, seen) != seen:
            self.violate(f"replay sees another state than the run saw: {run.run_id} {path}")


def _ids(session: Session) -> list[str]:
    state: Any = session.state
    return list(state["ids"]) if state else []


def _dangling(messages: tuple[Message, ...]) -> bool:
    open_calls: set[str] = set()
    for message in messages:
        if isinstance(message, ToolMessage):
            if message.call_id not in open_calls:
                return True
            open_calls.discard(message.call_id)
        elif open_calls:
            return True
        elif isinstance(message, AssistantMessage):
            open_calls = {call.id for call in message.tool_calls}
    return bool(open_calls)


def _told(command: Command, answer: Answer) -> str:
    run = getattr(command, "run", None)
    parts = [type(command).__name__, run.run_id if run else ""]
    if isinstance(command, Intend):
        parts.append(f"{command.effect.path}/{command.effect.attempt} {command.effect.name} epoch {command.epoch}")
    for told in (command,) if isinstance(command, Record) else getattr(command, "outcomes", ()):
        parts.append(f"{told.path}/{told.attempt} {told.status} {told.value[:60]}")
    if isinstance(command, Close):
        parts.append(f"epoch {command.epoch} {json.loads(command.end)['kind']} {json.loads(command.end)['reason']}")
    parts.append(f"-> {type(answer).__name__}")
    if isinstance(answer, Opened):
        parts.append(f"epoch {answer.run.epoch} version {answer.session_version} stalls {answer.run.stalls}")
    return " ".join(filter(None, parts))
