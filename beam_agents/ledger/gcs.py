"""The ledger in a Google Cloud Storage bucket: for clusters that have no database.

The store has no transactions, tens of milliseconds for each request, and takes about one write a second of one object.
What it has is enough: an object is written whole or not at all, only if it is not there or only over the generation
that was read, and reads and listings see what was written.

**Layout**, below the prefix; `H` is a digest of (scope, agent, revision, key):

    ledger.json               identity and schema version
    log/H/00000001 ...        the log of a key: each entry is one transaction, written once, never changed
    runs/H/R                  a closed run with its journal, or its tombstone; R is a digest of its id
    heads/H                   checkpoint: what the key had come to at some entry with no open run; it only moves on
    open/SCOPE/AGENT/...      marker of an open run, its name says since when and who has it
    closed/SCOPE/AGENT/...    marker of a closed run, its name says when it was opened and closed, and how it ended
    tombstones/SCOPE/AGENT/.. marker of a tombstone, its name says when the run was closed
    horizons/SCOPE/AGENT      how far a use was pruned; it only rises
    sweeps/SCOPE/AGENT/...    note that a log has entries which may be deleted later
    leases/OWNER              a worker's lease

**Transactions.** A worker knows the first n entries of a key's log and the state that they add up to. The rules run on
that state, and everything that they change becomes entry n+1, which is written only if there is none. So the commands
of one key in one group are one write, all of it or nothing, and two workers cannot both go on from n: the loser reads
what the winner wrote and runs the rules again. That is all the fencing there is: opening, taking over, letting go,
intents, outcomes and the close of the runs of a key are entries of one log. No entry depends on the length of the
journal, and none is written twice, so the limit of one write a second does not touch them. An answer that changes
nothing is given only after a look, made since it was asked for, that there is no entry n+1. Commands on several keys
are independent and go side by side.

**Lost answers.** Each entry carries a token. A worker whose write is refused, or tried again after its answer was lost,
finds its own token in entry n+1 and knows that it was carried out. If it gives up before, the commands are given
again, and the rules take that.

**Crashes.** One write decides. Before it come writes that mean nothing alone: markers (searches take them as hints
where to look), the lease of the opener, and, before the next run of a key is opened, the object of the one before.
What comes after it is done again or done without: the object of the run that was closed (its log still has it, and
whoever opens the next run writes the same), the checkpoint (a reader starts from an older one and reads more), and
deleting the markers of what is over (a search sees that they are, and deletes them).

**Closed runs.** The entry of a close holds the end. The run's object is written after it, with the journal as the log
has it then, if it is not there; so whoever writes it writes the same. The next run's opening comes after that object.
Hence, a run id that is neither the log's newest run nor has an object, looked for after entry n was read, was never
opened before entry n+1, unless it was forgotten. An outcome that comes after the close goes into that object, over the
generation that was read, so the first one stands whoever reports it; so does what a person found out about a call.

**Searches.** The marker of an open run is written before the entry that opens it or hands it on, and deleted after the
entry that takes it away again; that of a closed run is written before its close, and deleted after its tombstone has a
marker. So a search misses nothing, and what it finds too much it sees in the logs and in the objects of closed runs.

**Pruning** raises the horizon, marks the tombstone, writes it over the object of the run (in the generation that was
read), moves the key's checkpoint on if no run is open, deletes the entries before it, and last the marker of the closed
run: whoever dies before is followed by the next prune, which finds that marker. Entries go only when the checkpoint has
been there for an hour, so that no worker that is behind takes a deleted entry for one that was never written
(`gcs_sweep.py`); those of a key whose checkpoint is younger are noted, and go with a later prune. So the log of a key
has at most what came since its last prunes, and a reader starts from the checkpoint. Forgetting writes an entry first,
by which the head knows how far it went, and then deletes the tombstone.

**Time** is the server's, from the `Date` of its answers (`gcs_clock.py`): workers need no clocks that agree.

**Deletions.** Markers, notes and entries have names that never come again, or that nobody reads if they do. The object
of a run might: if an event comes again that is younger than all that was forgotten. So it is deleted in the generation
of its tombstone only.
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from functools import partial

from beam_agents.errors import ConfigurationError, LedgerError
from beam_agents.ledger.base import Ledger
from beam_agents.ledger.commands import (
    Answer,
    Command,
    CountOld,
    FindClosed,
    FindOrphans,
    FindRuns,
    Prune,
    ReadHead,
    ReadHorizon,
    Renew,
    Summarize,
)
from beam_agents.ledger.gcs_heads import GcsHeads
from beam_agents.ledger.gcs_log import encode
from beam_agents.ledger.gcs_names import IDENTITY
from beam_agents.ledger.gcs_store import GcsStore, Traffic
from beam_agents.ledger.records import HeadKey

_SCHEMA_VERSION = 2
_FORMAT = "beam-agents ledger"
_EMULATOR_VARIABLE = "STORAGE_EMULATOR_HOST"
_URL = re.compile(r"gs://(?P<bucket>[a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(/(?P<prefix>[^?#\s]*))?")
_LONGEST_PREFIX = 120
_IDENTITY_SECONDS = 2.0
_ELSEWHERE = (FindOrphans, FindClosed, FindRuns, Summarize, Prune, CountOld, ReadHorizon)
"""What is not about one key; the commands before it are carried out first."""


class GcsLedger(Ledger):
    """Keeps runs as objects of a bucket, which workers on any number of hosts share.

    The workers need the role 'Storage Object User' on the bucket, which must not be public: public objects are read
    from caches. A group of commands is not one transaction: commands on one key are carried out together or not at
    all, but for what follows the end of a run, and those on several keys apart.

    Args:
        url: `gs://bucket/prefix`. The bucket must be there; the ledger is made below the prefix.
        clock: Gives seconds since 1970, instead of the server's time; for tests.
        emulator: The address of a server that stands in for Google's, asked without credentials; by default that in
            the environment variable STORAGE_EMULATOR_HOST.
        connections: How many keys are worked on at once.
        timeout: Seconds that one request may go without an answer.

    Raises:
        ConfigurationError: The URL names no bucket, or a number is not positive.
    """

    schema_version = _SCHEMA_VERSION

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float] | None = None,
        emulator: str | None = None,
        connections: int = 32,
        timeout: float = 10.0,
    ) -> None:
        match = _URL.fullmatch(url)
        if match is None:
            raise ConfigurationError(f"GcsLedger({url!r}): give 'gs://bucket/prefix'")
        prefix = (match["prefix"] or "").strip("/")
        if prefix and not {"", ".", ".."}.isdisjoint(prefix.split("/")):
            raise ConfigurationError(f"GcsLedger({url!r}): give a prefix without empty parts, '.' and '..'")
        if len(prefix.encode()) > _LONGEST_PREFIX:
            raise ConfigurationError(f"GcsLedger({url!r}): give a prefix of at most {_LONGEST_PREFIX} bytes")
        if connections < 1 or timeout <= 0:
            raise ConfigurationError(f"GcsLedger({url!r}): connections={connections!r}, timeout={timeout!r}: give more")
        self._bucket = match["bucket"]
        self._prefix = prefix
        self._emulator = _address(emulator or os.environ.get(_EMULATOR_VARIABLE))
        self._connections = connections
        self._timeout = timeout
        self._clock = clock
        self._identity = ""
        self._identity_seen = 0.0
        self._traffic = Traffic()
        self._store: GcsStore | None = None
        self._heads: GcsHeads | None = None

    def __reduce__(self) -> tuple[Callable[..., GcsLedger], tuple[str, str | None, int, float]]:
        return _unpickled, (self.url, self._emulator, self._connections, self._timeout)

    def __repr__(self) -> str:
        return f"GcsLedger({self.url!r})"

    @property
    def url(self) -> str:
        return f"gs://{self._bucket}/{self._prefix}".rstrip("/")

    @property
    def identity(self) -> str:
        if not self._identity:
            raise RuntimeError(f"{self!r} has no identity before open()")
        return self._identity

    @property
    def traffic(self) -> Traffic:
        """What it has asked of the server since it was opened."""
        return self._traffic

    @property
    def requests(self) -> int:
        """Requests to the server since it was opened."""
        return self._traffic.requests

    def open(self, *, make: bool = True) -> None:
        if self._store is not None:
            return
        store = GcsStore(
            self._bucket,
            f"{self._prefix}/" if self._prefix else "",
            emulator=self._emulator,
            connections=3 * self._connections,
            timeout=self._timeout,
        )
        try:
            self._identity = self._prepare(store, make)
        except BaseException:
            store.close()
            raise
        self._identity_seen = time.monotonic()
        self._store, self._traffic = store, store.traffic
        clock = self._clock or (lambda: store.clock.at(time.monotonic()))
        self._heads = GcsHeads(store, clock, self._connections)

    def close(self) -> None:
        if self._store is not None and self._heads is not None:
            self._heads.close()
            self._store.close()
            self._store = self._heads = None

    def apply(self, commands: Sequence[Command]) -> list[Answer]:
        if self._store is None or self._heads is None:
            raise RuntimeError(f"{self!r} is not open: call open() first")
        self._heads.wait()
        answers: list[Answer] = []
        begun = 0
        for number, command in enumerate(commands):
            if isinstance(command, _ELSEWHERE):
                answers += self._apply_side_by_side(self._heads, self._store, commands[begun:number])
                answers += self._heads.carry_out_elsewhere([command])
                begun = number + 1
        return answers + self._apply_side_by_side(self._heads, self._store, commands[begun:])

    def _apply_side_by_side(self, heads: GcsHeads, store: GcsStore, commands: Sequence[Command]) -> list[Answer]:
        if not commands:
            return []
        parts: defaultdict[Hashable, list[int]] = defaultdict(list)
        actions: list[Callable[[], list[Answer]]] = []
        for number, command in enumerate(commands):
            parts[_part_of(command)].append(number)
        for part, numbers in parts.items():
            carry_out = partial(heads.carry_out, part) if isinstance(part, HeadKey) else heads.carry_out_elsewhere
            actions.append(partial(carry_out, [commands[number] for number in numbers]))
        if time.monotonic() - self._identity_seen > _IDENTITY_SECONDS:
            actions.append(partial(self._check_identity, store))
        answers: dict[int, Answer] = {}
        for numbers, part_answers in zip(parts.values(), heads.together(actions), strict=False):
            answers.update(zip(numbers, part_answers, strict=True))
        return [answers[number] for number in range(len(commands))]

    def _prepare(self, store: GcsStore, make: bool) -> str:
        """Makes or checks the store; returns its identity."""
        stored = store.get(IDENTITY)
        if stored is None and not make:
            raise LedgerError(f"there is no ledger at {self.url!r}: correct the prefix")
        if stored is None:
            made = {"format": _FORMAT, "schema_version": _SCHEMA_VERSION, "identity": uuid.uuid4().hex}
            store.put(IDENTITY, encode(made), 0)
            stored = store.get(IDENTITY)
        try:
            form = json.loads(stored.data) if stored else {}
            is_ledger = form.get("format") == _FORMAT
        except (ValueError, AttributeError):
            is_ledger = False
        if not is_ledger:
            raise LedgerError(f"{self!r}: {IDENTITY!r} there is not a ledger's; give the ledger a prefix of its own")
        if form["schema_version"] != _SCHEMA_VERSION:
            raise LedgerError(
                f"{self!r} has schema version {form['schema_version']!r}, this release reads {_SCHEMA_VERSION}; "
                "use the release that wrote it, or give a new prefix"
            )
        return str(form["identity"])

    def _check_identity(self, store: GcsStore) -> list[Answer]:
        stored = store.get(IDENTITY)
        if stored is None or json.loads(stored.data).get("identity") != self._identity:
            raise LedgerError(
                f"{self!r} was moved, deleted or replaced while it was in use; put it back and start again"
            )
        self._identity_seen = time.monotonic()
        return []


def _part_of(command: Command) -> Hashable:
    """Commands of one part are carried out one after the other."""
    if isinstance(command, Renew):
        return command.owner
    if isinstance(command, ReadHead):
        return command.head
    assert not isinstance(command, _ELSEWHERE)
    return command.run.head


def _address(emulator: str | None) -> str | None:
    if emulator and "://" not in emulator:
        emulator = f"http://{emulator}"
    return emulator.rstrip("/") if emulator else None


def _unpickled(url: str, emulator: str | None, connections: int, timeout: float) -> GcsLedger:
    return GcsLedger(url, emulator=emulator, connections=connections, timeout=timeout)
