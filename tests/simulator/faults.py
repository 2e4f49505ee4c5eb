"""What goes wrong: crashes, rollbacks, zombies, outages, and what a runner does in between."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from beam_agents.ledger.commands import Prune
from tests.simulator.beam import Key
from tests.simulator.schedule import SCOPE, Action, Event
from tests.simulator.slot import Slot

if TYPE_CHECKING:
    from tests.simulator.runner import Simulation


class Faults:
    """Carries out the actions of a schedule."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    def act(self, action: Action) -> None:
        if self._simulation.mended:
            return
        slot = self._simulation.slots[action.slot]
        key = self._simulation.keys.get(action.key) or next(iter(self._simulation.keys.values()))
        self._simulation.watch.say("ACTION", str(action))
        match action.kind:
            case "crash":
                if slot.worker is not None:
                    self._simulation.kill(slot, action.lasts)
                    if action.number & 1:
                        self._move_all(slot)
            case "rollback":
                self._roll_back(action)
            case "retry":
                key.retries += 1 + action.number % 2
            case "again" | "conflict":
                self._deliver_again(action, key)
            case "move":
                key.slot = action.slot
            case "partition":
                self._partition(slot, action.lasts)
            case "freeze":
                self._freeze(slot, action)
            case "ledger down" | "cut off":
                self._cut_off(self._simulation.slots if action.kind == "ledger down" else [slot], action.lasts)
            case "rejoin":
                self._simulation.leave(slot, action.lasts)
            case "look":
                self._simulation.look(key, key.generation)
            case "fire":
                for tag, due in list(key.deadline.due.items()):
                    self._simulation.fire(key, key.generation, tag, due)
            case "checkpoint":
                self._simulation.keep_checkpoint()
            case "prune" | "forget":
                self._prune(action)
            case "batch crash":
                if self._simulation.batch_outcomes is None:
                    self._simulation.kill(self._simulation.batch, action.lasts)

    def _move_all(self, slot: Slot) -> None:
        others = [other for other in self._simulation.slots if other.can_work() and other is not slot]
        for key in self._simulation.keys.values():
            if others and self._simulation.slots[key.slot] is slot:
                key.slot = self._simulation.rng.choice(others).number
                self._simulation.watch.counts["moves"] += 1

    def _roll_back(self, action: Action) -> None:
        """The job starts again from a checkpoint; what was emitted since is taken back."""
        place = max(0, len(self._simulation.checkpoints) - 1 - action.back)
        # From an older one the product would not start.
        while self._simulation.is_too_old(self._simulation.checkpoints[place]):
            place += 1
            if place == len(self._simulation.checkpoints):
                self._simulation.watch.counts["states too old"] += 1
                return
        del self._simulation.checkpoints[place + 1 :]
        self._simulation.watch.counts["rollbacks"] += 1
        for slot in self._simulation.slots:
            if action.number >> slot.number & 1:
                self._simulation.kill(slot, min(action.lasts, 3.0))
            elif self._simulation.rng.random() < 0.5:
                self._simulation.leave(slot, min(action.lasts, 3.0))
        for key in self._simulation.keys.values():
            key.restore(self._simulation.checkpoints[place].keys[key.name])
            key.generation += 1
            key.queue.sort(key=lambda delivery: delivery.at)
            if self._simulation.rng.random() < 0.5:
                self._simulation.rng.shuffle(key.queue)
            if self._simulation.rng.random() < 0.3:
                key.slot = self._simulation.rng.randrange(len(self._simulation.slots))
            for delivery in key.queue:
                if self._simulation.rng.random() < 0.8:
                    delivery.at = min(delivery.at, self._simulation.scheduler.now)
            self._simulation.arm(key)
            self._simulation.pump_later(key)
        for slot in self._simulation.slots:
            slot.state_at = self._simulation.checkpoints[place].at
        self._simulation.watch.pruning.takes_back(self._simulation.emitted())

    def _prune(self, action: Action) -> None:
        """An operator drops what was closed longer ago than the action's age; to forget takes two rounds."""
        simulation = self._simulation
        forgets = action.kind == "forget"
        command = Prune(SCOPE, simulation.agent.name, action.age, action.age if forgets else math.inf, action.number)
        for _ in range(1 + forgets):
            simulation.watch.pruning.prune(command, simulation.emitted())

    def _deliver_again(self, action: Action, key: Key) -> None:
        known = [event for event in self._simulation.schedule.events if event.key == key.name]
        if not known:
            return
        event = known[action.number % len(known)]
        text = "another" if action.kind == "conflict" else event.text
        again = Event(event.id, event.key, event.at, event.plan, text)
        delivery = self._simulation.arrives(again, self._simulation.scheduler.now)
        key.queue.insert(action.number % (len(key.queue) + 1), delivery)
        self._simulation.watch.counts["events again"] += 1
        if len(key.queue) == 1:
            self._simulation.pump_later(key)

    def _partition(self, slot: Slot, lasts: float) -> None:
        """The runner does not hear of the worker any more, whose runs go on."""
        worker = slot.worker
        if worker is None:
            return
        self._simulation.watch.counts["zombies"] += 1
        slot.apart = True
        self._move_all(slot)

        def heal() -> None:
            if slot.worker is worker:
                slot.apart = False

        self._simulation.runner.call_later(lasts, heal)

    def _freeze(self, slot: Slot, action: Action) -> None:
        worker = slot.worker
        if worker is None:
            return
        self._simulation.watch.counts["freezes"] += 1
        worker.loop.frozen = True
        if action.number & 1:
            self._move_all(slot)

        def thaw() -> None:
            self._simulation.watch.say(worker.name, "THAWS")
            worker.loop.frozen = False

        self._simulation.runner.call_later(action.lasts, thaw)

    def _cut_off(self, slots: list[Slot], lasts: float) -> None:
        self._simulation.watch.counts["ledger outages"] += 1
        roads = [slot.road for slot in slots]
        for road in roads:
            road.down = True

        def back() -> None:
            for road in roads:
                road.down = False

        self._simulation.runner.call_later(lasts, back)
