"""The log of a key in a Google Cloud Storage ledger: its entries, and the state that they add up to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, NamedTuple

from beam_agents.ledger.gcs_names import head_folder
from beam_agents.ledger.records import Effect, Head, HeadKey, Run, RunKey


class Entry(NamedTuple):
    """What one transaction changes in the log of a key."""

    token: str
    """Says whose it is: a writer whose answer was lost finds its own entry by it."""
    head: Mapping[str, Any]
    """The fields that change."""
    new_run: Run | None
    """The run that it opens."""
    run: Mapping[str, Any]
    """The fields that change of a run that is open already."""
    effects: Sequence[Effect]
    outcomes: Sequence[Effect]
    """Attempts that are there already, with their outcomes."""
    drops_run: bool = False
    """Whether the run that was closed last is forgotten."""

    def encode(self) -> bytes:
        """As it is stored."""
        form: dict[str, Any] = {"token": self.token}
        if self.head:
            form["head"] = self.head
        if self.new_run:
            form["new_run"] = run_form(self.new_run)
        if self.run:
            form["run"] = self.run
        if self.effects:
            form["effects"] = [effect_form(effect) for effect in self.effects]
        if self.outcomes:
            form["outcomes"] = [
                (effect.path, effect.attempt, effect.status, effect.value, effect.outcome_at)
                for effect in self.outcomes
            ]
        if self.drops_run:
            form["drops_run"] = True
        return encode(form)


@dataclass
class HeadState:
    """What a key has come to after the first entries of its log."""

    key: HeadKey
    number: int = 0
    """Of the last entry that is counted in."""
    head: Head | None = None
    run: Run | None = None
    """The run that is open, or was closed last and is perhaps not kept elsewhere yet."""
    journal: dict[tuple[str, int], Effect] = field(default_factory=dict)
    """Of that run."""
    kept_run: str | None = None
    """The id of the newest closed run that is known to be kept elsewhere."""
    size: int = 0
    """Bytes read for it, roughly what it takes in memory."""
    remembered_size: int = 0
    """What `size` was when it was put away."""
    checkpoint_at: float = float("-inf")
    """When this process last wrote its checkpoint, by `time.monotonic`."""
    checkpoint_generation: int = 0
    """Of the newest checkpoint that is known; 0 when there was none."""
    fresh_at: float = float("-inf")
    """A time of the server's at which no checkpoint was ahead of this."""

    def __post_init__(self) -> None:
        self.folder = head_folder(self.key)

    def add(self, data: bytes) -> str:
        """Counts the next entry in; returns its token."""
        form = json.loads(data)
        self.number += 1
        self.size += len(data)
        if "head" in form:
            self.head = replace(self.head or Head(self.key), **form["head"])
        if "new_run" in form:
            self.run = run_of(form["new_run"])
            self.journal = {}
        if "run" in form:
            assert self.run is not None
            self.run = replace(self.run, **form["run"])
        for effect in map(effect_of, form.get("effects", ())):
            self.journal[effect.path, effect.attempt] = effect
        for path, attempt, status, value, outcome_at in form.get("outcomes", ()):
            asked = self.journal[path, attempt]
            self.journal[path, attempt] = asked._replace(status=status, value=value, outcome_at=outcome_at)
        if "drops_run" in form:
            self._drop_run()
        return str(form["token"])

    def forget_closed_run(self) -> None:
        """Lets go of the last run once it is kept elsewhere."""
        if self.run is not None and self.run.end is not None and self.run.key.run_id == self.kept_run:
            self._drop_run()

    def checkpoint(self) -> bytes:
        """This state without its run, which has to be closed and kept elsewhere."""
        assert self.head is not None
        return encode({"number": self.number, "head": changes(Head(self.key), self.head)})

    def restore(self, checkpoint: bytes | None, generation: int) -> None:
        """Starts again from a checkpoint; without one, from the beginning of the log.

        Args:
            checkpoint: As it was read.
            generation: The object's.
        """
        form: dict[str, Any] = json.loads(checkpoint) if checkpoint else {"number": 0}
        self.number = form["number"]
        self.head = Head(self.key, **form["head"]) if "head" in form else None
        self._drop_run()
        self.checkpoint_generation = generation

    def _drop_run(self) -> None:
        self.run = None
        self.journal = {}
        self.size = len(self.head.session or "") if self.head else 0


class ClosedRun(NamedTuple):
    """A run that has ended, with its journal."""

    run: Run
    effects: tuple[Effect, ...]

    def encode(self) -> bytes:
        """As it is stored."""
        return encode({"run": run_form(self.run), "effects": [effect_form(effect) for effect in self.effects]})

    @classmethod
    def decode(cls, data: bytes) -> ClosedRun:
        """What was stored."""
        form = json.loads(data)
        return cls(run_of(form["run"]), tuple(map(effect_of, form["effects"])))


def encode(form: Any) -> bytes:
    """JSON in ASCII, so that every text comes back as it was, half surrogate pairs too."""
    return json.dumps(form, separators=(",", ":")).encode("ascii")


def changes(before: Head | Run, after: Head | Run) -> dict[str, Any]:
    """The fields that differ, by name."""
    return {name: value for name, value in _values(after, ()) if value != getattr(before, name)}


def run_form(run: Run) -> dict[str, Any]:
    """A run as JSON takes it."""
    return dict(_values(run, _DEFAULTS))


def run_of(form: dict[str, Any]) -> Run:
    """The run that `run_form` was given."""
    return Run(**{**form, "key": RunKey(*form["key"])})


def effect_form(effect: Effect) -> dict[str, Any]:
    """An effect as JSON takes it."""
    defaults = Effect._field_defaults
    return {name: value for name, value in effect._asdict().items() if name not in defaults or value != defaults[name]}


def effect_of(form: dict[str, Any]) -> Effect:
    """The effect that `effect_form` was given."""
    if "delivered" in form:
        form = {**form, "delivered": tuple((path, attempt) for path, attempt in form["delivered"])}
    return Effect(**form)


_DEFAULTS = tuple((each.name, each.default) for each in fields(Run) if each.default is not MISSING)


def _values(record: Head | Run, defaults: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, Any]]:
    """The fields of a record but those that are as they are by default."""
    known = dict(defaults)
    for each in fields(record):
        value = getattr(record, each.name)
        if each.name not in known or value != known[each.name]:
            yield each.name, value
