"""What happens in one simulation: all of it follows from a seed, and can be taken away piece by piece."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from beam_agents import Budget
from tests.simulator.agents import plan_of
from tests.simulator.world import Manners

SCOPE = "simulated"

TROUBLE_SECONDS = 30.0
"""How long things go wrong; then all is mended, and everything must come to rest."""


@dataclass(frozen=True)
class Event:
    """One event on its way to a key."""

    id: str
    key: str
    at: float
    plan: Any
    text: str = ""


@dataclass(frozen=True)
class Action:
    """Something that goes wrong, or that an operator does."""

    at: float
    kind: str
    slot: int = 0
    """Which worker."""
    key: str = ""
    lasts: float = 0.0
    back: int = 0
    """Which older checkpoint: 0 is the newest."""
    number: int = 0
    age: float = 0.0
    """Of what is pruned: seconds since it was closed."""

    def __str__(self) -> str:
        return (
            f"{self.at:7.3f} {self.kind} worker {self.slot} key {self.key} for {self.lasts:.2f} s, "
            f"back {self.back}, number {self.number}, age {self.age:.1f}"
        )


@dataclass(frozen=True)
class Schedule:
    """One simulation."""

    seed: int
    agent: str
    budget: Budget
    workers: int
    events: tuple[Event, ...]
    batch: tuple[Event, ...]
    """Of a second job on the same scope."""
    actions: tuple[Action, ...]
    manners: Manners
    ledger_slow: float
    ledger_fails: float
    shuffle: bool = False
    in_flight: int = 256
    waits: bool = False
    """Whether callbacks wait a little for quick runs."""
    bell: bool = True
    bell_loses: float = 0.0
    """Probability that a ring is lost, and as much that it comes twice."""
    timers_err: float = 0.0
    """Probability that a timer fires early, late, or twice."""
    skew: float = 0.0
    """How far the wall clocks of workers are apart, in seconds."""
    replay_always: bool = False
    keys: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: agent {self.agent}, {self.workers} workers, budget of {self.budget.wall_clock}, "
            f"{self.budget.steps} steps, {self.budget.tool_calls} tool calls",
            f"  {self.manners}",
            f"  ledger slow {self.ledger_slow:.3f} fails {self.ledger_fails:.2f}, shuffle {self.shuffle}, "
            f"in flight {self.in_flight}, waits {self.waits}, bell {self.bell} loses {self.bell_loses:.2f}, "
            f"timers err {self.timers_err:.2f}, skew {self.skew:.2f}, replay always {self.replay_always}",
        ]
        lines += [f"  {event.at:7.3f} event {event.id} {event.text} {event.plan}" for event in self.events]
        lines += [f"  {event.at:7.3f} batch {event.id} {event.text} {event.plan}" for event in self.batch]
        lines += [f"  {action}" for action in self.actions]
        return "\n".join(lines)


_KINDS = (
    ("crash", 4), ("rollback", 4), ("retry", 2), ("again", 2), ("move", 3), ("partition", 3), ("freeze", 4),
    ("ledger down", 3), ("cut off", 3), ("rejoin", 2), ("look", 1), ("fire", 1), ("checkpoint", 2),
    ("conflict", 0.5), ("batch crash", 1),
)  # fmt: skip


def schedule_of(seed: int) -> Schedule:
    """The schedule of a seed."""
    rng = random.Random(seed)
    agent = rng.choice(("flow", "flow", "loop"))
    keys = tuple("kln"[: rng.choice((1, 1, 2, 3))])
    zombies = rng.random() < 0.4
    workers = rng.choice((2, 2, 3)) if zombies else rng.choice((1, 2, 2, 3))
    budget = Budget(
        steps=rng.choice((10, 10, 10, 2)),
        tool_calls=rng.choice((50, 50, 50, 2)),
        wall_clock=timedelta(seconds=rng.choice((12, 30, 60) if zombies else (2, 6, 12, 30, 60))),
    )
    rough = rng.random()

    def sometimes(probability: float, most: float) -> float:
        return rng.random() * most * rough if rng.random() < probability else 0.0

    events = tuple(_event(agent, rng, key, number) for key in keys for number in range(rng.choice((1, 1, 2, 3))))
    batch: tuple[Event, ...] = ()
    if rng.random() < 0.15:
        made = [_event(agent, rng, key, 10 + number) for key in keys for number in range(rng.choice((1, 2)))]
        batch = tuple(made + [event for event in events if rng.random() < 0.2])
    actions = list(_actions(rng, rng.choice((0, 1, 2, 3, 5, 8)), events, keys, workers))
    if zombies:
        actions += _zombies(rng, events, workers)
    operator = random.Random(f"operator {seed}")
    if operator.random() < 0.3:
        actions += _operator(operator, events, workers)
    return Schedule(
        seed=seed,
        agent=agent,
        budget=budget,
        workers=workers,
        events=events,
        batch=batch,
        actions=tuple(sorted(actions, key=lambda action: action.at)),
        manners=Manners(
            slow=sometimes(0.5, 0.4),
            fails=sometimes(0.4, 0.3),
            lost=sometimes(0.3, 0.2),
            refuses=sometimes(0.3, 0.2),
            unknown=sometimes(0.4, 0.6),
        ),
        ledger_slow=rng.choice((0.005, 0.02, 0.1, 0.1, 0.5)),
        ledger_fails=sometimes(0.5, 0.3),
        shuffle=rng.random() < 0.3,
        in_flight=rng.choice((256, 256, 2, 1)),
        waits=rng.random() < 0.3,
        bell=rng.random() < 0.85,
        bell_loses=sometimes(0.5, 0.6),
        timers_err=sometimes(0.5, 0.5),
        skew=rng.choice((0.0, 0.0, 0.3)),
        replay_always=rng.random() < 0.1,
        keys=keys,
    )


def _event(agent: str, rng: random.Random, key: str, number: int) -> Event:
    at = rng.choice((0.0, 0.0, 1.0, 10.0)) + rng.random() * 2
    text = "skip" if agent == "loop" and rng.random() < 0.1 else ""
    return Event(f"{key}{number}", key, at, plan_of(agent, rng), text)


def _actions(
    rng: random.Random, count: int, events: tuple[Event, ...], keys: tuple[str, ...], workers: int
) -> Iterator[Action]:
    kinds, weights = zip(*_KINDS, strict=True)
    for kind in rng.choices(kinds, weights, k=count):
        yield Action(
            at=rng.choice(events).at + rng.random() * 3.0 if rng.random() < 0.7 else rng.random() * 20.0,
            kind=kind,
            slot=rng.randrange(workers),
            key=rng.choice(keys),
            lasts=rng.choice((0.1, 1.0, 3.0, 5.0, 9.0)) * (0.5 + rng.random()),
            back=rng.choice((0, 0, 1, 2, 5, 100)),
            number=rng.randrange(1 << workers),
        )


def _zombies(rng: random.Random, events: tuple[Event, ...], workers: int) -> Iterator[Action]:
    """A worker that stands still, or cannot reach the ledger, in the middle of a run for longer than its lease."""
    event = rng.choice(events)
    at = event.at + 0.1 + rng.random() * 1.5
    kind = rng.choice(("freeze", "freeze", "cut off"))
    slots = range(workers) if rng.random() < 0.5 else [rng.randrange(workers)]
    lasts = rng.uniform(4.5, 9.0)
    for slot in slots:  # one after the other: each but one works
        yield Action(at=at, kind=kind, slot=slot, key=event.key, lasts=lasts, number=1)
        if kind == "cut off":
            yield Action(at=at + 0.1, kind="move", slot=(slot + 1) % workers, key=event.key)
        at += lasts + rng.uniform(-1.0, 1.0)


def _operator(rng: random.Random, events: tuple[Event, ...], workers: int) -> Iterator[Action]:
    """Somebody prunes the ledger, now and then too eagerly; and events come back afterwards."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        event = rng.choice(events)
        at = event.at + rng.random() * 10.0 if rng.random() < 0.7 else rng.random() * 25.0
        kind = rng.choice(("prune", "forget"))
        yield Action(at=at, kind=kind, age=rng.choice((0.0, 0.5, 2.0, 5.0, 12.0)), number=rng.choice((1, 2, 500)))
        for _ in range(rng.choice((0, 1, 2))):
            after = at + rng.random() * 4.0
            again = rng.choice(events)
            yield Action(
                at=after,
                kind=rng.choice(("again", "again", "conflict", "rollback")),
                slot=rng.randrange(workers),
                key=again.key,
                lasts=rng.random() * 3.0,
                back=rng.choice((0, 1, 2, 5)),
                number=rng.randrange(1 << workers),
            )


def smaller(schedule: Schedule) -> Iterator[Schedule]:
    """The schedule with one thing less, the larger things first."""
    for index in range(len(schedule.actions)):
        yield replace(schedule, actions=schedule.actions[:index] + schedule.actions[index + 1 :])
    for index in range(len(schedule.batch)):
        yield replace(schedule, batch=schedule.batch[:index] + schedule.batch[index + 1 :])
    for index in range(len(schedule.events)):
        yield replace(schedule, events=schedule.events[:index] + schedule.events[index + 1 :])
    for name in ("slow", "fails", "lost", "refuses", "unknown"):
        if getattr(schedule.manners, name):
            yield replace(schedule, manners=replace(schedule.manners, **{name: 0.0}))
    calm: dict[str, Any] = {
        "ledger_fails": 0.0, "shuffle": False, "in_flight": 256, "waits": False, "bell": True, "bell_loses": 0.0,
        "timers_err": 0.0, "skew": 0.0, "replay_always": False,
    }  # fmt: skip
    for name, value in calm.items():
        if getattr(schedule, name) != value:
            yield replace(schedule, **{name: value})
    for index, event in enumerate(schedule.events):
        for plan in _smaller_plans(event.plan):
            events = (*schedule.events[:index], replace(event, plan=plan), *schedule.events[index + 1 :])
            yield replace(schedule, events=events)


def _smaller_plans(plan: list[Any]) -> Iterator[list[Any]]:
    for index, step in enumerate(plan):
        yield plan[:index] + plan[index + 1 :]
        if step and step[0] == "gather":
            for branch in range(len(step[1])):
                left = step[1][:branch] + step[1][branch + 1 :]
                yield [*plan[:index], ["gather", left], *plan[index + 1 :]]
        elif step and isinstance(step[0], list) and len(step) > 1:
            for call in range(len(step)):
                yield [*plan[:index], step[:call] + step[call + 1 :], *plan[index + 1 :]]
