"""What operators see of a ledger's records; `--json` prints these as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter

from beam_agents.engine.end import End
from beam_agents.errors import StoredFormUnknown
from beam_agents.ledger.cli_text import WIDTH, duration, labelled, moment, paragraph, shorten, table, utc, visible
from beam_agents.ledger.records import Effect, Resolution, Run, UseSummary

_RESOLUTIONS = TypeAdapter(tuple[Resolution, ...])
_INDENT = "    "


class View(BaseModel):
    """JSON data with fixed names; times are ISO 8601 in UTC, durations are seconds."""

    model_config = ConfigDict(frozen=True)


class UseView(View):
    """One use of an agent."""

    scope: str
    agent: str
    open: int
    driven: int
    """Open, with a worker that is alive."""
    orphaned: int
    """Open, and nobody drives it."""
    ended: int
    doubtful: int
    """Ended with a call in doubt that nobody has resolved."""
    tombstones: int
    pruned_to: datetime | None
    """When the newest run that was pruned had been closed."""

    @staticmethod
    def of(use: UseSummary, orphaned: int) -> UseView:
        pruned_to = None if use.pruned_to is None else utc(use.pruned_to)
        orphaned = min(orphaned, use.open)
        return UseView(
            scope=use.scope,
            agent=use.agent,
            open=use.open,
            driven=use.open - orphaned,
            orphaned=orphaned,
            ended=use.ended,
            doubtful=use.doubtful,
            tombstones=use.tombstones,
            pruned_to=pruned_to,
        )


class LedgerView(View):
    """A ledger."""

    ledger: str
    """Its URL, without a password."""
    identity: str
    """What the state of jobs remembers it by."""
    schema_version: int
    """Of the form in which it keeps records."""
    uses: list[UseView]

    def lines(self) -> Iterator[str]:
        """For eyes."""
        yield from labelled(
            (
                ("ledger", visible(self.ledger)),
                ("identity", self.identity),
                ("schema", f"version {self.schema_version}"),
            )
        )
        if not self.uses:
            yield "it has no runs"
            return
        header = ("SCOPE", "AGENT", "OPEN", "DRIVEN", "ORPHANED", "ENDED", "IN DOUBT", "TOMBSTONES", "PRUNED TO (UTC)")
        yield from table(
            header,
            [
                (
                    use.scope,
                    use.agent,
                    *map(str, (use.open, use.driven, use.orphaned, use.ended, use.doubtful, use.tombstones)),
                    moment(use.pruned_to) if use.pruned_to else "never",
                )
                for use in self.uses
            ],
        )


class WaitView(View):
    """A call whose outcome is not recorded yet."""

    kind: str
    name: str
    path: str
    attempt: int
    since: datetime
    until: datetime | None
    """When a sleep ends."""

    def text(self, now: datetime) -> str:
        """For eyes."""
        if self.until is not None:
            return f"sleep until {moment(self.until, now)}"
        named = f"{self.kind} {self.name}" if self.kind == "tool" else self.kind
        return f"{named} since {moment(self.since, now)}"


class RunView(View):
    """A run in short."""

    scope: str
    agent: str
    revision: int
    key: JsonValue
    run_id: str
    opened_at: datetime
    closed_at: datetime | None
    seconds: float
    """From the first opening to the end, or until now."""
    state: Literal["open", "answer", "skipped", "failure", "unknown"]
    """`unknown`: another release wrote how it ended."""
    reason: str | None
    message: str
    doubtful: bool
    driven: bool | None
    """Whether an open run has a worker that is alive."""
    owner: str
    waits_for: list[WaitView]
    epoch: int
    stalls: int

    @staticmethod
    def of(run: Run, effects: Sequence[Effect], now: float, *, orphaned: bool) -> RunView:
        end, is_open = _end(run), run.end is None
        return RunView(
            scope=run.key.scope,
            agent=run.key.agent,
            revision=run.key.revision,
            key=parsed(run.key.key),
            run_id=run.key.run_id,
            opened_at=utc(run.opened_at),
            closed_at=None if run.closed_at is None else utc(run.closed_at),
            seconds=round(max(0.0, (run.closed_at or now) - run.opened_at), 3),
            state="open" if is_open else end.kind if isinstance(end, End) else "unknown",
            reason=run.reason or (end.reason.value if isinstance(end, End) and end.reason else None),
            message=end.message if isinstance(end, End) else end,
            doubtful=run.doubtful,
            driven=not orphaned if is_open else None,
            owner=run.owner,
            waits_for=[
                WaitView(
                    kind=effect.kind,
                    name=effect.name,
                    path=effect.path,
                    attempt=effect.attempt,
                    since=utc(effect.intent_at),
                    until=None if effect.due is None else utc(effect.due),
                )
                for effect in effects
                if is_open and effect.status is None
            ],
            epoch=run.epoch,
            stalls=run.stalls,
        )

    @property
    def key_text(self) -> str:
        """The key as people type it."""
        return self.key if isinstance(self.key, str) else json.dumps(self.key, ensure_ascii=False)

    def cells(self) -> tuple[str, ...]:
        """Its line of a table with `RUN_HEADER`."""
        named = (self.scope, self.agent, self.key_text, self.run_id)
        return (moment(self.opened_at), *named, str(self.revision), str(self.epoch), str(self.stalls))

    def standing(self, now: datetime) -> str:
        """What it waits for, or how it ended."""
        took = duration(self.seconds)
        if self.state == "open":
            waits = "; ".join(wait.text(now) for wait in self.waits_for)
            if self.driven:
                return visible(f"open for {took}: {waits or 'its own code'}")
            return visible(f"open for {took}: nobody drives it" + (f", left at {waits}" if waits else ""))
        what = self.reason or self.state
        doubtful = ", to be resolved," if self.doubtful else ""
        return visible(f"{what}{doubtful} after {took}" + (f": {self.message}" if self.message else ""))


RUN_HEADER = ("OPENED (UTC)", "SCOPE", "AGENT", "KEY", "RUN", "REV", "EPOCH", "STALLS")


class RunsView(View):
    """Runs, the newest first."""

    ledger: str
    at: datetime
    """When the ledger was asked."""
    runs: list[RunView]

    def lines(self) -> Iterator[str]:
        """For eyes: each with what it waits for, or how it ended, below."""
        if not self.runs:
            yield "no such runs"
            return
        header, *rows = table(RUN_HEADER, [run.cells() for run in self.runs], whole=("OPENED (UTC)", "RUN"))
        yield header
        for run, row in zip(self.runs, rows, strict=True):
            yield row
            yield from paragraph(run.standing(self.at), _INDENT)


class CallView(View):
    """One attempt of an effect."""

    path: str
    attempt: int
    kind: str
    name: str
    effect: str
    arguments: JsonValue
    intent_at: datetime
    due: datetime | None
    status: str | None
    """`None` while its outcome is not recorded."""
    value: JsonValue
    outcome_at: datetime | None
    seconds: float | None
    """From the intent to the outcome."""

    @staticmethod
    def of(effect: Effect) -> CallView:
        outcome_at = effect.outcome_at
        return CallView(
            path=effect.path,
            attempt=effect.attempt,
            kind=effect.kind,
            name=effect.name,
            effect=effect.effect,
            arguments=parsed(effect.arguments),
            intent_at=utc(effect.intent_at),
            due=None if effect.due is None else utc(effect.due),
            status=effect.status,
            value=parsed(effect.value),
            outcome_at=None if outcome_at is None else utc(outcome_at),
            seconds=None if outcome_at is None else round(outcome_at - effect.intent_at, 3),
        )


class ResolutionView(View):
    """What a person said about a call."""

    path: str
    attempt: int
    status: str
    value: JsonValue
    by: str
    at: datetime

    @staticmethod
    def of(resolution: Resolution) -> ResolutionView:
        return ResolutionView(
            path=resolution.path,
            attempt=resolution.attempt,
            status=resolution.status,
            value=parsed(resolution.value),
            by=resolution.by,
            at=utc(resolution.at),
        )

    def text(self) -> str:
        """For eyes."""
        who = f"{self.path}, attempt {self.attempt}, by {self.by} at {moment(self.at)}"
        return visible(f"{who}: {self.status} {json_text(self.value)}")


class RunPage(View):
    """All that is known of one run."""

    ledger: str
    at: datetime
    run: RunView
    event: JsonValue
    calls: list[CallView]
    """In the order of their intents."""
    end: JsonValue
    """The whole record of the end; `None` while it is open."""
    resolutions: list[ResolutionView]

    def lines(self, *, full: bool = False) -> Iterator[str]:
        """For eyes; `full` shortens nothing."""
        for line in self._lines():
            yield line if full else shorten(line, WIDTH)

    def _lines(self) -> Iterator[str]:
        run = self.run
        who = f"{run.run_id}, key {run.key_text}, scope {run.scope}, agent {run.agent}, revision {run.revision}"
        yield from labelled(
            (
                ("run", visible(who)),
                ("opened", f"{moment(run.opened_at)}, epoch {run.epoch}, stalls {run.stalls}"),
                ("event", visible(json_text(self.event))),
            )
        )
        if self.calls:
            header = ("PATH", "ATTEMPT", "KIND", "NAME", "EFFECT", "ASKED (UTC)", "SECONDS", "OUTCOME")
            first, *rows = table(header, [_call_cells(call) for call in self.calls])
            yield first
            for call, row in zip(self.calls, rows, strict=True):
                yield row
                if call.arguments is not None:
                    yield _INDENT + visible(json_text(call.arguments))
                if call.status is not None:
                    yield f"{_INDENT}-> {visible(json_text(call.value))}"
        else:
            yield "no calls"
        standing = run.standing(self.at)
        ended = ("ended", f"{moment(run.closed_at)}: {standing}") if run.closed_at else ("now", standing)
        yield from labelled([ended])
        if isinstance(self.end, dict) and self.end.get("kind") in ("answer", "skipped"):
            yield f"{_INDENT}-> {visible(json_text(self.end.get('output')))}"
        yield from labelled([("resolved", noted.text()) for noted in self.resolutions])


def page(ledger: str, view: RunView, run: Run, effects: Sequence[Effect], at: datetime) -> RunPage:
    """All that is known of a run."""
    return RunPage(
        ledger=ledger,
        at=at,
        run=view,
        event=parsed(run.event),
        calls=list(map(CallView.of, effects)),
        end=parsed(run.end),
        resolutions=list(map(ResolutionView.of, resolutions_of(run))),
    )


def resolutions_of(run: Run) -> tuple[Resolution, ...]:
    """What persons found out about the calls of a run."""
    return _RESOLUTIONS.validate_json(run.resolution or "[]")


def parsed(text: str | None) -> Any:
    """The JSON data of a record; the text itself if it is none."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def json_text(value: Any) -> str:
    """JSON data on one line."""
    return json.dumps(value, ensure_ascii=False)


def _call_cells(call: CallView) -> tuple[str, ...]:
    asked = f"{call.intent_at:%Y-%m-%d %H:%M:%S.%f}"[:-3]
    took = "" if call.seconds is None else f"{call.seconds:.3f}"
    what = (call.path, str(call.attempt), call.kind, call.name, call.effect)
    outcome = call.status or (f"open, due {moment(call.due)}" if call.due else "open")
    return (*what, asked, took, outcome)


def _end(run: Run) -> End | str:
    """What the record says, or why it cannot be read."""
    if run.end is None:
        return ""
    try:
        return End.from_json(run.end)
    except StoredFormUnknown as error:
        return str(error)
