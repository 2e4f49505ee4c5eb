"""The client of the back office that the tools of all systems use."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

_SECONDS = 60.0


class Office:
    """The back office: accounts, refunds, and the queues of people.

    Args:
        url: Where it is.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def account(self, customer: str) -> str:
        """The account, as JSON."""
        return self._ask("account", customer=customer)

    def refund(self, customer: str, amount: int, reference: str, key: str = "", attempt: int = 0) -> str:
        """Pays an amount back; its receipt. With a key that it knows it pays nothing and gives the receipt again."""
        return self._ask("refund", customer=customer, amount=amount, reference=reference, key=key, attempt=attempt)

    def route(self, customer: str, queue: str, reference: str, key: str = "") -> str:
        """Puts a message into a queue; its ticket. A key is honoured as for `refund`."""
        return self._ask("route", customer=customer, queue=queue, reference=reference, key=key)

    def find_or_cancel(self, key: str, attempt: int) -> str | None:
        """What was done under a key. If nothing was, this attempt is turned away should it still arrive."""
        return self._ask("find", key=key, attempt=attempt) or None

    def close(self) -> None:
        """Each call has a connection of its own."""

    def _ask(self, what: str, **given: Any) -> str:
        request = urllib.request.Request(f"{self._url}/{what}", json.dumps(given).encode(), method="POST")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=_SECONDS) as answer:
            return str(answer.read().decode())
