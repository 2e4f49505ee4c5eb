"""Who waits: the keys take turns, and within a key who came first is served first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue in which a key with many waiters delays the others by one turn each. All steps take constant time."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, OrderedDict[T, None]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        for waiters in self._keys.values():
            yield from waiters

    def add(self, key: str, waiter: T) -> None:
        """Puts a waiter behind those of its key."""
        self._keys.setdefault(key, OrderedDict())[waiter] = None
        self._length += 1

    def first(self) -> T:
        """Whose turn it is; the queue must not be empty."""
        return next(iter(next(iter(self._keys.values()))))

    def pop(self) -> T:
        """Takes out whose turn it is; its key's next waiter comes after all other keys."""
        key, waiters = self._keys.popitem(last=False)
        waiter, _ = waiters.popitem(last=False)
        if waiters:
            self._keys[key] = waiters
        self._length -= 1
        return waiter

    def remove(self, key: str, waiter: T) -> None:
        """Takes out a waiter that waits no more, if it is there."""
        waiters = self._keys.get(key)
        if waiters is None or waiter not in waiters:
            return
        del waiters[waiter]
        if not waiters:
            del self._keys[key]
        self._length -= 1
