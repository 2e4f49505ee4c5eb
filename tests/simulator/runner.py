"""A simulated runner with its workers: it delivers events, keeps state, and lets everything go wrong on time."""

from __future__ import annotations

import asyncio
import os
import random
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest import mock

from beam_agents.codec import digest
from beam_agents.engine.end import Ended, Refused
from beam_agents.engine.host import Host
from beam_agents.engine.live import REPLAY_VARIABLE, Parked
from beam_agents.errors import LedgerChanged
from beam_agents.transforms import patience
from beam_agents.transforms.envelope import Envelope
from beam_agents.transforms.streaming import StreamingDoFn
from beam_agents.transforms.use import AgentUse
from tests.simulator.agents import Happening, agent_of
from tests.simulator.beam import Callback, Checkpoint, Delivery, Key
from tests.simulator.faults import Faults
from tests.simulator.loop import EMITTED_WITHIN, EPOCH, Scheduler, SimLoop, virtual_time
from tests.simulator.outcome import check_end, kind
from tests.simulator.schedule import SCOPE, TROUBLE_SECONDS, Event, Schedule
from tests.simulator.slot import Slot
from tests.simulator.watch import Watch, WatchedLedger
from tests.simulator.worker import Road, SimWorker
from tests.simulator.world import Manners, Wire, World


class SimUse(AgentUse):
    """One use of the agent, in one simulated worker."""

    worker: SimWorker

    def join(self) -> Host:
        return self.worker.join(self.agent, self.identity, self.ledger, self.scope)

    def leave(self, host: Host) -> None:
        self.worker.leave(host)


class Simulation:
    """One schedule, from its beginning until everything is at rest.

    Args:
        schedule: What happens.
        verbose: Whether to keep a trace.
    """

    def __init__(self, schedule: Schedule, *, verbose: bool = False) -> None:
        self.schedule = schedule
        self.rng = rng = random.Random(schedule.seed ^ 0x5EED)
        self.scheduler = scheduler = Scheduler(rng, shuffle=schedule.shuffle)
        self.runner = SimLoop(scheduler, "runner")
        self.watch = watch = Watch(scheduler, schedule.budget, lenient=bool(schedule.batch), verbose=verbose)
        self.world = World(scheduler, rng, schedule.manners)
        self.ledger = WatchedLedger(scheduler, watch)
        self.agent = agent_of(schedule.agent, schedule.budget)
        self.keys = {
            name: Key(name, rng.randrange(schedule.workers))
            for name in schedule.keys or sorted({e.key for e in schedule.events})
        }
        self.slots = [Slot(number) for number in range(schedule.workers)]
        self.batch = Slot(schedule.workers)
        self.batch_outcomes: dict[str, Ended | Refused] | None = None if schedule.batch else {}
        self.mended = False
        self.checkpoints: list[Checkpoint] = []
        self._incarnations = 0

    # ---- from the beginning to the end ----

    def run(self) -> Watch:
        """Runs the schedule, and checks what came of it."""
        schedule, replay = self.schedule, {REPLAY_VARIABLE: "always" if self.schedule.replay_always else ""}
        with (
            virtual_time(self.scheduler, self.runner, schedule.seed),
            mock.patch.object(patience, "QUICK_SECONDS", 0.02 if schedule.waits else -1.0),
            mock.patch.dict(os.environ, replay),
        ):
            try:
                self._begin()
                self.scheduler.run_until(self._finished_early, TROUBLE_SECONDS)
                self._mend()
                if not self.scheduler.run_until(self._at_rest, self._limit()):
                    self.watch.violate(f"no rest: {self._unrest()}")
                check_end(self)
            finally:
                for loop in list(self.scheduler.loops):
                    loop.kill()
        self.watch.violations += [f"a callback raised: {error}" for error in self.scheduler.errors]
        return self.watch

    def _begin(self) -> None:
        schedule = self.schedule
        for slot in [*self.slots, *([self.batch] if schedule.batch else [])]:
            slot.road = Road(slow=schedule.ledger_slow, fails=schedule.ledger_fails)
            self._start_worker(slot)
        for event in schedule.events:
            self.arrives(event, event.at)
        for key in self.keys.values():
            key.queue = sorted(key.source, key=lambda delivery: delivery.at)
            self.pump_later(key)
        faults = Faults(self)
        for action in schedule.actions:
            self.runner.call_at(action.at, faults.act, action)
        self._checkpoint()
        self._last_action = max((action.at + 2 * action.lasts for action in schedule.actions), default=0.0) + 2.0
        self._next_look_at_rest = 0.0

    def _mend(self) -> None:
        """From now on nothing fails."""
        self.mended = True
        self.world.manners = Manners()
        for slot in [*self.slots, self.batch]:
            slot.road = Road()
            slot.apart = False
            if slot.worker is not None:
                slot.worker.writer.road = slot.road
                slot.worker.loop.frozen = False
            if slot.dofn is None and (slot is not self.batch or self.batch_outcomes is None):
                self._start_worker(slot)
        for key in self.keys.values():
            key.retries = 0

    def _limit(self) -> float:
        schedule, wall = self.schedule, self.schedule.budget.wall_clock.total_seconds()
        runs = len(schedule.events) + len(schedule.batch)
        return self.scheduler.now + (runs + 1) * (wall + 15.0) + 100.0 + wall

    def _finished_early(self) -> bool:
        return self.scheduler.now > self._last_action and self._at_rest()

    def _at_rest(self) -> bool:
        if self.scheduler.now < self._next_look_at_rest:
            return False
        self._next_look_at_rest = self.scheduler.now + 0.2
        return not self._unrest()

    def _unrest(self) -> str:
        if self.batch_outcomes is None:
            return "the batch has not ended"
        for key in self.keys.values():
            if key.queue or key.busy():
                return f"key {key.name} has {len(key.queue)} to come, is at {key.record.value!r}"
        for slot in [*self.slots, self.batch]:
            if slot.worker is not None:
                for host in slot.worker.hosts():
                    if not host.idle():
                        return f"worker {slot.worker.name} has {[run.run_id for run in host._handles]}"
        return ", ".join(f"{run.key.run_id} is open" for run in self.ledger.all_runs() if run.end is None)

    # ---- workers ----

    def _start_worker(self, slot: Slot) -> None:
        schedule = self.schedule
        if slot.worker is None:
            self._incarnations += 1
            skew = self.rng.uniform(-schedule.skew, schedule.skew)
            slot.worker = SimWorker(
                self.scheduler, self.ledger, self.rng, slot.road,
                name=f"w{slot.number}.{self._incarnations}", slots=schedule.in_flight, skew=skew,
            )  # fmt: skip
            Wire(self.world, self.watch, slot.worker.loop, slot.worker.name)
            self.watch.say(slot.worker.name, "STARTS")
            if schedule.bell and slot is not self.batch:
                self.runner.call_later(self.rng.random() * 0.1, self._tick, slot, slot.worker, 0.05)
        if slot.dofn is not None:
            return
        use = SimUse(
            pickled=b"", identity="simulated", ledger=self.ledger, scope=SCOPE, network_forbidden=False,
            ephemeral=False, dedupe_for=timedelta(days=1), session_ttl=None,
        )  # fmt: skip
        use.__dict__.update(agent=self.agent, worker=slot.worker)
        if slot is self.batch:
            slot.dofn = SimpleNamespace(_use=use, _host=use.join())  # type: ignore[assignment]
            slot.worker.loop.create_task(self._run_batch(use, slot.dofn._host))  # type: ignore[union-attr]
            return
        slot.dofn = StreamingDoFn(use, waits=False)
        slot.dofn.setup()

    def kill(self, slot: Slot, back_after: float) -> None:
        if slot.worker is None:
            return
        self.watch.counts["crashes"] += 1
        self.watch.say(slot.worker.name, "DIES")
        slot.worker.die()
        slot.worker, slot.dofn, slot.apart = None, None, False
        self.runner.call_later(back_after, self._start_worker, slot)

    def leave(self, slot: Slot, back_after: float) -> None:
        """The DoFn is torn down, and set up again."""
        if slot.dofn is None or slot.worker is None or slot is self.batch:
            return
        self.watch.counts["teardowns"] += 1
        slot.dofn.teardown()
        slot.dofn = None
        self.runner.call_later(back_after, self._start_worker, slot)

    def _tick(self, slot: Slot, worker: SimWorker, interval: float) -> None:
        """The doorbell of a worker process."""
        if slot.worker is not worker:
            return
        rang = False
        if slot.can_work() and slot.dofn is not None:
            for name in self._drain(slot, slot.dofn._host):
                rang = True
                times = 1
                if not self.mended and self.world.roll(self.schedule.bell_loses):
                    times = self.rng.choice((0, 2))
                for _ in range(times):
                    key = self.keys.get(name)
                    if key is not None:
                        self.runner.call_later(self.rng.random() * 0.1, self.look, key, key.generation)
        interval = 0.05 if rang else min(2 * interval, 0.5)
        self.runner.call_later(interval, self._tick, slot, worker, interval)

    def _drain(self, slot: Slot, host: Host) -> list[Any]:
        if slot.state_at is not None:
            host.state_is_from(slot.state_at)
            slot.told.append(slot.state_at)
            slot.state_at = None
        try:
            return host.drain() or []
        except LedgerChanged as error:
            if not any(map(self._is_too_old, slot.told)):
                self.watch.violate(f"a state was refused that is not too old: {error}")
            self.watch.counts["states refused"] += 1
            host._refusal = None  # somebody accepts it
            return []

    async def _run_batch(self, use: SimUse, host: Host) -> None:
        """The second job on the scope: the events of each key one after the other, the keys side by side."""

        async def chain(name: str) -> list[tuple[str, Any]]:
            outcomes = []
            for event in self.schedule.batch:
                if event.key != name:
                    continue
                while True:
                    handle = host.start(use.task(name, self._envelope(event), batch=True))
                    try:
                        outcomes.append((event.id, await asyncio.wrap_future(handle.done)))
                        break
                    except Parked:
                        continue
                    finally:
                        host.forget(handle.run)
            return outcomes

        chains = await asyncio.gather(*(chain(name) for name in self.keys))
        self.batch_outcomes = {run_id: outcome for chained in chains for run_id, outcome in chained}

    # ---- the runner ----

    def _envelope(self, event: Event) -> Envelope:
        happening = Happening(id=event.id, plan=event.plan, text=event.text)
        text = self.agent.event_json(happening)
        return Envelope(run_id=event.id, event=text, digest=digest(text), micros=1_000_000 + int(event.at * 1e6))

    def arrives(self, event: Event, at: float) -> Delivery:
        source = self.keys[event.key].source
        delivery = Delivery(len(source), self._envelope(event), at)
        source.append(delivery)
        return delivery

    def pump_later(self, key: Key) -> None:
        if key.queue:
            when = max(key.queue[0].at, self.scheduler.now + self.rng.random() * 0.05)
            self.runner.call_at(when, self._pump, key, key.generation)

    def _pump(self, key: Key, generation: int) -> None:
        if generation != key.generation or not key.queue:
            return
        delivery = key.queue[0]
        slot = self.slots[key.slot]
        if slot.can_work():
            key.queue.pop(0)
            if not self._call(key, f"event {delivery.envelope.run_id}", lambda dofn: key.event(dofn, delivery)):
                key.queue.insert(0, delivery)
            self.pump_later(key)
        else:
            self.runner.call_later(0.3, self._pump, key, generation)

    def look(self, key: Key, generation: int) -> None:
        heard = generation == key.generation and self.slots[key.slot].can_work()
        if heard and not self._call(key, "look", key.look):
            self.runner.call_later(0.1, self.look, key, generation)

    def fire(self, key: Key, generation: int, tag: str, due: float) -> None:
        if generation != key.generation:
            return
        wrong = not self.mended and self.world.roll(self.schedule.timers_err)
        if key.deadline.due.get(tag) != due and not wrong:
            return
        if not self.slots[key.slot].can_work():
            self.runner.call_later(0.3, self.fire, key, generation, tag, due)
            return
        key.armed.discard((tag, due))
        if not self._call(key, "timer", lambda dofn: key.timer(dofn, tag)):
            self.runner.call_later(0.1, self.fire, key, generation, tag, due)
        elif wrong:
            self.runner.call_later(self.rng.random(), self.fire, key, generation, tag, due)

    def _call(self, key: Key, what: str, callback: Callback) -> bool:
        """One bundle; says whether it was committed."""
        slot = self.slots[key.slot]
        assert slot.dofn is not None
        assert slot.worker is not None
        before, queue, armed = key.snapshot(), list(key.queue), set(key.armed)
        self.watch.counts["callbacks"] += 1
        self.watch.say(slot.worker.name, f"BUNDLE {what} of key {key.name}")
        self.scheduler.skew = slot.worker.loop.skew
        try:
            emitted = callback(slot.dofn)
        except Exception as error:
            self.watch.violate(f"a bundle failed: {error!r}")
            emitted, key.retries = [], key.retries + 1
        finally:
            self.scheduler.skew = 0.0
        if key.retries:
            key.retries -= 1
            self.watch.counts["bundle retries"] += 1
            self.watch.say(slot.worker.name, "the bundle is thrown away")
            key.restore(before)
            key.queue, key.armed = queue, armed
            if self.rng.random() < 0.3:
                key.slot = self.rng.randrange(len(self.slots))
            return False
        for tag, value in emitted:
            self.watch.say("runner", f"emits {tag} {getattr(value, 'run_id', '')}")
        key.outputs += [(tag, value) for tag, value in emitted if tag != "trace"]
        self.arm(key)
        return True

    def arm(self, key: Key) -> None:
        for tag, due in key.deadline.due.items():
            if (tag, due) not in key.armed:
                key.armed.add((tag, due))
                when = max(self.scheduler.now, due - EPOCH)
                if not self.mended and self.world.roll(self.schedule.timers_err):
                    when = max(self.scheduler.now, when + self.rng.uniform(-5.0, 10.0))
                self.runner.call_at(when + 0.001, self.fire, key, key.generation, tag, due)

    def keep_checkpoint(self) -> None:
        """Keeps all keys as they are now."""
        keys = {key.name: key.snapshot() for key in self.keys.values()}
        self.checkpoints.append(Checkpoint(EPOCH + self.scheduler.now, keys))

    def is_too_old(self, checkpoint: Checkpoint) -> bool:
        """Whether runs that were closed since were pruned."""
        return self._is_too_old(checkpoint.at)

    def _is_too_old(self, at: float) -> bool:
        horizon = self.ledger.horizon(SCOPE, self.agent.name)
        within = min(self.schedule.budget.wall_clock.total_seconds() + 1.0, EMITTED_WITHIN)
        return horizon is not None and horizon >= at - within

    def emitted(self) -> set[str]:
        """The runs whose end is emitted, and not taken back."""
        outputs = (output for key in self.keys.values() for output in key.outputs)
        return {value.run_id for tag, value in outputs if kind(tag, value) in ("results", "failures")}

    def _checkpoint(self) -> None:
        if not self.mended:
            self.keep_checkpoint()
            self.runner.call_later(2.0, self._checkpoint)
