"""The invariants at the end, when everything is at rest."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from beam_agents.codec import digest, key_text
from beam_agents.engine.end import End, Ended, Refused
from beam_agents.events import FailureReason, RunFailure
from beam_agents.ledger.records import Effect, HeadKey, Run
from beam_agents.transforms.cells import Cells

if TYPE_CHECKING:
    from tests.simulator.beam import Key
    from tests.simulator.runner import Simulation


def check_end(simulation: Simulation) -> None:
    """Compares outputs, state, ledger and the outside's log."""
    gone = simulation.watch.pruning.gone
    left = [run for run in simulation.ledger.all_runs() if not run.tombstone]
    runs = {run.key.run_id: run for run in [*left, *(pruned.run for pruned in gone.values())]}
    for key in simulation.keys.values():
        _check_outputs(simulation, key, runs)
        _check_state(simulation, key, list(runs.values()))
    for run_id, outcome in (simulation.batch_outcomes or {}).items():
        if isinstance(outcome, Refused):
            if outcome.reason not in (FailureReason.ID_CONFLICT, FailureReason.TOO_OLD):
                simulation.watch.violate(f"the batch was refused {run_id}: {outcome}")
        elif isinstance(outcome, Ended) and outcome.end != End.from_json(runs[run_id].end or ""):
            simulation.watch.violate(f"the batch got another end of {run_id} than the record's")
    for run in runs.values():
        effects = gone[run.key].effects if run.key in gone else simulation.ledger.effects(run.key)
        _check_effects(simulation, run, effects)


def _check_outputs(simulation: Simulation, key: Key, runs: dict[str, Run]) -> None:
    violate, gone = simulation.watch.violate, simulation.watch.pruning.gone
    delivered = [key.source[number].envelope for number in key.delivered]
    outputs: dict[str, list[tuple[str, Any]]] = {envelope.run_id: [] for envelope in delivered}
    for tag, value in key.outputs:
        if value.run_id not in outputs:
            violate(f"{tag} of {value.run_id} was emitted, which was not delivered")
        else:
            outputs[value.run_id].append((tag, value))
    for run_id, emitted in outputs.items():
        run = runs.get(run_id)
        if run is None and emitted and all(_is(value, FailureReason.TOO_OLD) for _, value in emitted):
            if len(emitted) != sum(envelope.run_id == run_id for envelope in delivered):
                violate(f"{run_id} is too old, and was emitted {len(emitted)} times")
            continue
        if run is None or run.end is None:
            violate(f"{run_id} has no end in the ledger")
            continue
        end = End.from_json(run.end)
        same = sum(envelope.run_id == run_id and envelope.digest == run.digest for envelope in delivered)
        other = sum(envelope.run_id == run_id and envelope.digest != run.digest for envelope in delivered)
        got = Counter(kind(tag, value) for tag, value in emitted)
        first, pruned = min(1, same), gone.get(run.key)
        if pruned is not None and not pruned.emitted and not got["results"] + got["failures"]:
            first = 0  # somebody pruned it before it was emitted
        if pruned is not None and pruned.forgotten:  # then the ledger does not know its digest either
            other, got["duplicates"] = 0, got["duplicates"] + got.pop("conflicts", 0) + got.pop("too old", 0)
            same = sum(envelope.run_id == run_id for envelope in delivered)
        expected = Counter({
            "results" if end.kind != "failure" else "failures": first, "conflicts": other,
            "duplicates": max(0, same - first), "emitted": len(end.emitted) if first else 0,
        })  # fmt: skip
        if got["duplicates"] < expected["duplicates"] and sum(got.values()) >= sum(expected.values()):
            violate(f"{run_id} was emitted again instead of as a duplicate: {dict(+got)}, not {dict(+expected)}")
        elif +got != +expected:
            violate(f"{run_id} was emitted as {dict(+got)} instead of {dict(+expected)}")
        for tag, value in emitted:
            if tag == "results" and (value.output != end.output or value.skipped != (end.kind == "skipped")):
                violate(f"{run_id} was emitted as {value.output!r}, the record says {end.output!r}")
            if (
                tag == "failures"
                and kind(tag, value) == tag
                and (value.reason, value.message) != (end.reason, end.message)
            ):
                violate(f"{run_id} was emitted as {value.reason}, the record says {end.reason}")


def _is(value: Any, reason: FailureReason) -> bool:
    return isinstance(value, RunFailure) and value.reason is reason


def kind(tag: str, value: Any) -> str:
    """The output, or what of `failures` is no run's end."""
    if _is(value, FailureReason.TOO_OLD):
        return "too old"
    return "conflicts" if _is(value, FailureReason.ID_CONFLICT) else tag


def _check_state(simulation: Simulation, key: Key, runs: list[Run]) -> None:
    violate = simulation.watch.violate
    head = simulation.ledger.head(HeadKey("simulated", simulation.agent.name, 1, key_text(key.name)))
    cells = Cells(key.name, **key.cells)
    memory, session = cells.record, cells.session()
    if head is None:
        return
    if head.open_run is not None:
        violate(f"the head of {key.name} is busy with {head.open_run}")
    if memory.session_version == head.session_version:
        if session != head.session:
            violate(f"Beam's session of {key.name} is not the head's")
    elif memory.session_version > head.session_version or not (
        simulation.schedule.batch or simulation.watch.pruning.gone
    ):
        versions = f"{memory.session_version}, the head's is {head.session_version}"
        violate(f"Beam's session of {key.name} is at {versions}")
    state = json.loads(head.session or "{}").get("state") or {"ids": []}
    taken = Counter(state["ids"])
    if twice := [run_id for run_id, times in taken.items() if times > 1 and not run_id.endswith("!")]:
        violate(f"the state of {key.name} has {twice} twice")
    for run in runs:
        if run.key.key != key_text(key.name) or run.end is None or taken[run.key.run_id]:
            continue
        if End.from_json(run.end).reason is not FailureReason.CRASH_LOOP:
            violate(f"the state of {key.name} lacks {run.key.run_id}")
    if key.inbox.values:
        violate(f"the inbox of {key.name} is not empty")
    if key.deadline.due:
        violate(f"timers of {key.name} are left: {key.deadline.due}")


def _check_effects(simulation: Simulation, run: Run, effects: tuple[Effect, ...]) -> None:
    violate, world = simulation.watch.violate, simulation.world
    for effect in effects:
        if effect.effect != "once":
            continue
        where = run.key
        key = digest(where.scope, where.agent, str(where.revision), where.key, where.run_id, effect.path, effect.digest)
        times = world.applied[key]
        if times > 1:
            violate(f"{effect.name} of {where.run_id} {effect.path} took effect {times} times")
        if effect.status in ("ok",) and times != 1:
            violate(f"{effect.name} of {where.run_id} {effect.path} is recorded as done, but took effect {times} times")
        if effect.status in ("error", "failed", "retry") and times:
            violate(f"{effect.name} of {where.run_id} {effect.path} is recorded as {effect.status}, but took effect")
