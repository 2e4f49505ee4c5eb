"""What a run does next is a function of its journal: random programs, random schedules."""

from __future__ import annotations

import random
from typing import Any

import pytest

from beam_agents import Budget, FailureReason
from beam_agents.engine.execution import Code, Gather, Request
from beam_agents.engine.journal import Journal
from beam_agents.engine.machine import Machine, Port
from beam_agents.ledger.records import Effect

BUDGET = Budget()


def ask(name: str) -> Request:
    return Request("tool", name, name, "pure", None, None)


def random_program(seed: int) -> Any:
    """Code whose course depends on the order in which its branches are given their outcomes."""

    async def step(randomness: random.Random, depth: int, seen: list[str]) -> None:
        for _ in range(randomness.randrange(1, 4)):
            if depth < 3 and randomness.random() < 0.4:
                seeds = [randomness.randrange(1000) for _ in range(randomness.randrange(1, 4))]
                await Gather([step(random.Random(each), depth + 1, seen) for each in seeds])
            else:
                seen.append(await ask(f"{len(seen)}-{randomness.randrange(5)}"))

    def make(_port: Port) -> Code:
        async def code() -> list[str]:
            seen: list[str] = []
            await step(random.Random(seed), 0, seen)
            return seen

        return code()

    return make


def intend(journal: Journal, request: Request) -> None:
    journal.put(
        Effect(
            path=request.path,
            attempt=1,
            kind=request.kind,
            name=request.name,
            digest=request.digest,
            effect=request.effect,
            arguments=None,
            delivered=journal.take_unsaved(),
        )
    )


def record(journal: Journal, path: str) -> Effect:
    effect = journal.get(path, 1)._replace(status="ok", value=f'"outcome of {path}"')
    journal.put(effect)
    return effect


@pytest.mark.parametrize("seed", range(150))
@pytest.mark.parametrize("always_replay", [False, True], ids=["live", "replayed"])
def test_a_run_that_is_rebuilt_at_any_moment_goes_on_as_it_was(seed: int, always_replay: bool) -> None:
    randomness = random.Random(seed)
    make = random_program(seed)
    journal = Journal()
    machine = Machine(make, BUDGET, journal, always_replay=always_replay)
    waiting = {request.path: request for request in machine.start()}
    while machine.ending is None:
        for request in waiting.values():
            if not journal.attempts(request.path):
                intend(journal, request)
        path = randomness.choice(sorted(waiting))
        del waiting[path]
        effect = journal.settled(path, retries=0) or record(journal, path)
        for request in machine.deliver(effect):
            waiting[request.path] = request
        if randomness.random() < 0.3:  # the worker dies: all that is left is what the ledger has
            for request in waiting.values():
                if not journal.attempts(request.path):
                    intend(journal, request)
            intended = set(journal.paths())
            journal = Journal(list(journal))
            machine = Machine(make, BUDGET, journal, always_replay=always_replay)
            waiting = {request.path: request for request in machine.start()}
            # What no intent followed may be handed over again, in any order: nothing was done because of it.
            assert waiting.keys() | {path for path, _ in journal.delivered} == intended
    undisturbed = Journal()
    straight = Machine(make, BUDGET, undisturbed)
    requests = {request.path: request for request in straight.start()}
    for path, _ in journal.delivered:
        intend(undisturbed, requests[path])
        requests |= {request.path: request for request in straight.deliver(record(undisturbed, path))}
    assert machine.ending == straight.ending
    assert machine.ending.reason is None


def test_code_that_asks_for_something_else_is_found() -> None:
    def program(name: str) -> Any:
        async def code() -> Any:
            return await ask(name)

        return lambda _port: code()

    journal = Journal()
    intend(journal, Machine(program("a"), BUDGET, journal).start()[0])
    machine = Machine(program("b"), BUDGET, Journal(list(journal)))
    assert machine.start() == []
    assert machine.ending is not None
    assert machine.ending.reason is FailureReason.DETERMINISM
    assert "asks for tool b" in machine.ending.message


def test_code_that_ends_without_a_call_of_its_journal_is_found() -> None:
    async def asks() -> Any:
        return await ask("a")

    async def ends() -> Any:
        return None

    journal = Journal()
    intend(journal, Machine(lambda _port: asks(), BUDGET, journal).start()[0])
    machine = Machine(lambda _port: ends(), BUDGET, Journal(list(journal)))
    machine.start()
    assert machine.ending is not None
    assert machine.ending.reason is FailureReason.DETERMINISM
