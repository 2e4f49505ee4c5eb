"""Customers of a bank who write: made up, and sent to the door as a web page or a mail gateway would."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from random import Random
from typing import Any, NamedTuple

import httpx

from examples.production.commands import UserError
from examples.support.desk import sample_customer
from examples.support.inbox import SAMPLE, messages

_PATIENCE_SECONDS = 120.0
_TICKETS_AT_A_TIME = 5


class Sent(NamedTuple):
    """A request to the door, as often as it has to be made."""

    id: str
    """The `Idempotency-Key`."""
    body: dict[str, Any]


class Taken(NamedTuple):
    """What the door said."""

    sent: Sent
    status: int
    answer: dict[str, Any]


def endless_messages(seed: int = 1) -> Iterator[Sent]:
    """Messages without end, the same for the same seed. Some come twice, and some are not valid.

    Tickets overlap, and each has one to four messages; every other one is closed by its customer then.

    Args:
        seed: Another seed gives other tickets, with other ids.
    """
    random = Random(seed)
    texts = [row for row in messages(SAMPLE) if isinstance(row, dict)]
    numbers = count()
    open_tickets = [_ticket(random, seed, next(numbers), texts) for _ in range(_TICKETS_AT_A_TIME)]
    while True:
        place = random.randrange(len(open_tickets))
        sent = next(open_tickets[place], None)
        if sent is None:
            open_tickets[place] = _ticket(random, seed, next(numbers), texts)
            continue
        yield sent
        if random.random() < 0.1:
            yield sent  # a client that did not hear the answer
        if random.random() < 0.03:
            yield Sent(f"{sent.id}-bad", {**sent.body, "event_type": "fax"})


def _ticket(random: Random, seed: int, number: int, texts: list[dict[str, Any]]) -> Iterator[Sent]:
    about = {"ticket": f"T-{seed}-{number}", "customer_id": sample_customer(number) if number % 20 else "X999"}
    text, times = random.choice(texts), random.randint(1, 4)
    for nth in range(times):
        row = text if random.random() < 0.5 else random.choice(texts)
        email = row["kind"] == "email"
        body = {**about, "event_type": row["kind"], "text": row["text"]} | (
            {"subject": row.get("subject", "")} if email else {}
        )
        yield Sent(f"{about['ticket']}-{nth}", body)
    if number % 2:
        yield Sent(f"{about['ticket']}-closed", {**about, "event_type": "status", "status": "closed"})


def feed(
    url: str,
    token: str,
    sent: Iterable[Sent],
    rate: float,
    *,
    wait: str | None = None,
    told: Callable[[Taken], None] = lambda taken: None,
) -> list[Taken]:
    """Sends messages one after the other; one that the door did not take is sent again with the same id.

    Args:
        url: Where the door takes events.
        token: The door's.
        sent: The messages.
        rate: How many a second at most.
        wait: How long to wait for each answer, such as "5s"; `None` not at all.
        told: Is given each answer of the door.

    Raises:
        UserError: The door was not there for two minutes.
    """
    taken = []
    started = time.monotonic()
    with httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=30) as client:
        for number, message in enumerate(sent):
            time.sleep(max(0.0, started + number / rate - time.monotonic()))
            taken.append(_send(client, url, message, wait))
            told(taken[-1])
    return taken


def _send(client: httpx.Client, url: str, message: Sent, wait: str | None) -> Taken:
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            answer = client.post(
                url,
                json=message.body,
                headers={"Idempotency-Key": message.id},
                params={} if wait is None else {"wait": wait},
            )
        except httpx.TransportError as error:
            problem = repr(error)
        else:
            if answer.status_code not in (429, 500, 502, 503, 504):
                return Taken(message, answer.status_code, answer.json() if answer.content else {})
            problem = f"{answer.status_code} {answer.text}"
        if time.monotonic() > until:
            raise UserError(f"{url} did not take message {message.id!r} for {_PATIENCE_SECONDS:g} s: {problem}")
        time.sleep(0.5)
