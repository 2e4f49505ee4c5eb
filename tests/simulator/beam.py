"""What a runner keeps for a key, and what comes to it from its source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from beam_agents.transforms.cells import Cells
from beam_agents.transforms.doorbell import LOOK
from beam_agents.transforms.envelope import Envelope
from beam_agents.transforms.streaming import StreamingDoFn
from tests.transforms.key_state import Bag, Cell, Timers


@dataclass(eq=False)
class Delivery:
    """An event in a durable source; its number is its place there."""

    number: int
    envelope: Envelope
    at: float


@dataclass(frozen=True)
class Snapshot:
    """A key in a checkpoint."""

    record: bytes | None
    session: bytes | None
    inbox: tuple[bytes, ...]
    batch: bytes | None
    closed: tuple[bytes, ...]
    deadline: dict[str, float]
    delivered: tuple[int, ...]
    outputs: int


@dataclass(frozen=True)
class Checkpoint:
    """All keys at one moment."""

    at: float
    """Seconds since 1970."""
    keys: dict[str, Snapshot]


@dataclass(eq=False)
class Key:
    """One key: its state, its timers, its source, its outputs.

    Attributes:
        delivered: The numbers of what the source has delivered.
        queue: What it has still to deliver, in order.
        outputs: What was emitted and not taken back: (output, value).
        generation: Raised by each rollback: what was under way before it is void.
        retries: How many of the next callbacks the runner throws away and makes again.
    """

    name: str
    slot: int
    source: list[Delivery] = field(default_factory=list)
    queue: list[Delivery] = field(default_factory=list)
    delivered: list[int] = field(default_factory=list)
    outputs: list[tuple[str, Any]] = field(default_factory=list)
    generation: int = 0
    retries: int = 0
    armed: set[tuple[str, float]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.record, self.session, self.inbox, self.batch, self.closed = Cell(), Cell(), Bag(), Cell(), Bag()
        self.deadline, self.expiry = Timers(), Timers()

    @property
    def cells(self) -> dict[str, Any]:
        return {
            "record": self.record, "session": self.session, "inbox": self.inbox, "batch": self.batch,
            "closed": self.closed, "deadline": self.deadline, "expiry": self.expiry,
        }  # fmt: skip

    def busy(self) -> bool:
        """Whether an event is open or waits."""
        record = Cells(self.name, **self.cells).record
        return record.open is not None or record.waiting > 0

    def snapshot(self) -> Snapshot:
        return Snapshot(
            self.record.value,
            self.session.value,
            tuple(self.inbox.values),
            self.batch.value,
            tuple(self.closed.values),
            dict(self.deadline.due),
            tuple(self.delivered),
            len(self.outputs),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """State and outputs as they were; the source has to deliver again what came since."""
        self.record.value, self.session.value = snapshot.record, snapshot.session
        self.batch.value = snapshot.batch
        self.inbox.values, self.closed.values = list(snapshot.inbox), list(snapshot.closed)
        self.deadline.due = dict(snapshot.deadline)
        self.delivered = list(snapshot.delivered)
        del self.outputs[snapshot.outputs :]
        self.armed = set()
        gone = set(self.delivered)
        self.queue = [delivery for delivery in self.source if delivery.number not in gone]

    def event(self, dofn: StreamingDoFn, delivery: Delivery) -> list[tuple[str, Any]]:
        self.delivered.append(delivery.number)
        return _emitted(dofn, dofn.process((self.name, delivery.envelope.encoded()), **self.cells))

    def look(self, dofn: StreamingDoFn) -> list[tuple[str, Any]]:
        return _emitted(dofn, dofn.process((self.name, LOOK), **self.cells))

    def timer(self, dofn: StreamingDoFn, tag: str) -> list[tuple[str, Any]]:
        self.deadline.due.pop(tag, None)
        return _emitted(dofn, dofn.look_at_deadline(key=self.name, tag=tag, **self.cells))


Callback = Callable[[StreamingDoFn], list[tuple[str, Any]]]


def _emitted(dofn: StreamingDoFn, callback: Any) -> list[tuple[str, Any]]:
    """What a bundle with this callback emits."""
    dofn.start_bundle()
    return [
        (output.tag, output.value.value[0][1]) for outputs in (callback, dofn.finish_bundle()) for output in outputs
    ]
