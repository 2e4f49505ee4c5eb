"""A run's effects in order: intents, outcomes, and the order in which the code was given the outcomes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from beam_agents.ledger.records import Delivery, Effect

_SHORT = 200
"""Characters of a result up to which it is not worth the trouble to drop it."""


class Journal:
    """The journal of one run in this worker; the ledger has the same."""

    def __init__(self, effects: Iterable[Effect] = ()) -> None:
        self._attempts: dict[str, list[Effect]] = {}
        self.delivered: list[Delivery] = []
        """What the code was given, in order."""
        self._unsaved: list[Delivery] = []
        for effect in effects:
            self.put(effect)
            self.delivered.extend(effect.delivered)

    def put(self, effect: Effect) -> None:
        """Notes an intent, or its outcome."""
        attempts = self._attempts.setdefault(effect.path, [])
        for index, known in enumerate(attempts):
            if known.attempt == effect.attempt:
                attempts[index] = effect
                return
        attempts.append(effect)

    def __iter__(self) -> Iterator[Effect]:
        return chain.from_iterable(self._attempts.values())

    def paths(self) -> Iterable[str]:
        """The places of all effects that were intended."""
        return self._attempts.keys()

    def get(self, path: str, attempt: int) -> Effect:
        """One attempt."""
        return next(effect for effect in self._attempts[path] if effect.attempt == attempt)

    def attempts(self, path: str) -> Sequence[Effect]:
        """All attempts of an effect, oldest first."""
        return self._attempts.get(path, ())

    def settled(self, path: str, retries: int) -> Effect | None:
        """The attempt whose outcome the code gets, once there is one.

        Args:
            path: The effect.
            retries: How many attempts may end in `error` before the error itself is the outcome.
        """
        errors = 0
        for effect in self.attempts(path):
            if effect.status is None or effect.status == "not_happened":
                continue
            errors += effect.status == "error"
            if effect.status != "error" or errors > retries:
                return effect
        return None

    def deliver(self, path: str, attempt: int) -> None:
        """Notes that the code is given an outcome now."""
        self.delivered.append((path, attempt))
        self._unsaved.append((path, attempt))

    def let_go(self, path: str, attempt: int) -> None:
        """Drops a result that the code has, so that it is not held twice while the run goes on; the ledger has it."""
        effect = self.get(path, attempt)
        if effect.status == "ok" and effect.value is not None and len(effect.value) > _SHORT:
            self.put(effect._replace(value=None))

    def give_back(self, unsaved: tuple[Delivery, ...]) -> None:
        """Takes deliveries back that `take_unsaved` gave and that did not get to the ledger."""
        self._unsaved[:0] = unsaved

    def take_unsaved(self) -> tuple[Delivery, ...]:
        """The deliveries that no intent has carried to the ledger yet; the next intent has to."""
        unsaved = tuple(self._unsaved)
        self._unsaved.clear()
        return unsaved
