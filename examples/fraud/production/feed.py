"""Payments as they come in: made up, and written to the topic at a rate."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

from confluent_kafka import KafkaException, Producer

from examples.fraud.feed import endless_payments
from examples.fraud.production.topics import PAYMENTS
from examples.production.topics import client_options


def payments(seed: int, first: int, number: int) -> Iterator[str]:
    """Made-up payments, as JSON. Some are not valid and some come twice, as in real streams.

    Args:
        seed: Another seed gives other payments, with other ids.
        first: How many to leave out: the same seed gives the same payments.
        number: How many.
    """
    for line in islice(endless_payments(seed), first, first + number):
        yield line.replace('"t-', f'"t-{seed}-')


def feed(servers: str, lines: Iterator[str], rate: float) -> int:
    """Writes payments to the topic, with the card as the record's key, and returns how many.

    Args:
        servers: Where clients connect.
        lines: The payments.
        rate: How many a second.

    Raises:
        KafkaException: A payment could not be written.
    """
    failed: list[Any] = []
    producer = Producer({**client_options(servers), "enable.idempotence": True, "linger.ms": 0})
    started = time.monotonic()
    written = 0
    for line in lines:
        while (ahead := started + written / rate - time.monotonic()) > 0:
            producer.poll(ahead)
        producer.produce(
            PAYMENTS, key=_card(line), value=line, on_delivery=lambda error, _: failed.append(error) if error else None
        )
        written += 1
    producer.flush()
    if failed:
        raise KafkaException(failed[0])
    return written


def _card(line: str) -> str | None:
    try:
        card = json.loads(line).get("card")
    except ValueError:
        return None
    return card if isinstance(card, str) else None
