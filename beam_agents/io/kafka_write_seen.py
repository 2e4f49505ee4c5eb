"""The ids that a shard has written, in memory: 16 bytes each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 16
_PERIODS = 8
"""In how many parts ids are forgotten."""
_SETTLE = 50_000
"""From how many new ids on they are sorted in; a new one takes about 100 bytes until then."""


class Seen:
    """A set of digests of which those that are older than a time are forgotten, some time later.

    Args:
        remember: For how many seconds a digest is known at least.
    """

    def __init__(self, remember: float) -> None:
        self._remember = remember
        self._period = max(remember / _PERIODS, 1.0)
        self._pieces: dict[int, _Piece] = {}

    def __len__(self) -> int:
        return sum(map(len, self._pieces.values()))

    def __contains__(self, digest: bytes) -> bool:
        return any(digest in piece for piece in self._pieces.values())

    def add(self, packed: bytes, at: float) -> None:
        """Adds digests that were written one behind the other.

        Args:
            packed: The digests.
            at: When they were written, seconds since 1970.
        """
        number = int(at / self._period)
        piece = self._pieces.get(number)
        if piece is None:
            self._forget()
            piece = self._pieces[number] = _Piece()
        piece.add(packed)

    def _forget(self) -> None:
        oldest = int((time.time() - self._remember) / self._period)
        self._pieces = {number: piece for number, piece in self._pieces.items() if number >= oldest}


class _Piece:
    """The digests of a period: sorted ones as the two halves of each, and the new ones as they came."""

    def __init__(self) -> None:
        self._high: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._low: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._new: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._high) + len(self._new)

    def __contains__(self, digest: bytes) -> bool:
        if digest in self._new:
            return True
        high, low = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
        at = int(np.searchsorted(self._high, np.uint64(high)))
        while at < len(self._high) and int(self._high[at]) == high:
            if int(self._low[at]) == low:
                return True
            at += 1
        return False

    def add(self, packed: bytes) -> None:
        self._new.update(unpacked(packed))
        if len(self._new) >= _SETTLE:
            self._settle()

    def _settle(self) -> None:
        halves: NDArray[Any] = np.frombuffer(b"".join(self._new), ">u8").reshape(-1, 2).astype(np.uint64)
        self._new = set()
        high = np.concatenate([self._high, halves[:, 0]])
        low = np.concatenate([self._low, halves[:, 1]])
        order = np.argsort(high, kind="stable")
        self._high, self._low = high[order], low[order]


def unpacked(packed: bytes) -> Iterator[bytes]:
    """The digests of a marker."""
    return (packed[at : at + DIGEST_BYTES] for at in range(0, len(packed), DIGEST_BYTES))
