"""Readings as they come in: made up, with trouble at known times, and written to the table at a rate."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg

from examples.sensors.production.plant import Device, Given, put

HISTORY = 400
"""Readings that are there before the job."""

DEVICES = (
    Device(device="oven-1", kind="temperature", place="kiln hall", limit=195, note="new burner"),
    Device(device="oven-2", kind="temperature", place="kiln hall", limit=205, note=""),
    Device(device="press-1", kind="vibration", place="press shop", limit=7.1, note="bearing changed last year"),
    Device(device="gate-1", kind="door", place="yard", limit=None, note="deliveries at night"),
    Device(device="cooler-1", kind="temperature", place="cold store", limit=8, note=""),
    Device(device="press-2", kind="vibration", place="press shop", limit=7.1, note=""),
    Device(device="fan-1", kind="vibration", place="kiln hall", limit=4.5, note=""),
    Device(device="gate-2", kind="door", place="cold store", limit=None, note="must close by itself"),
)
_USUAL = {
    "oven-1": (180.0, 1.5),
    "oven-2": (182.0, 1.5),
    "press-1": (2.0, 0.15),
    "cooler-1": (4.0, 0.3),
    "press-2": (2.4, 0.15),
    "fan-1": (1.1, 0.1),
}
"""The usual value, and how far from it."""
_STEP = timedelta(minutes=1)
"""Between two readings of a device, in the history."""
_QUIET, _TROUBLE, _APART, _PERIOD = 20, 10, 10, 80
"""How many readings of a device come before the first trouble, how many it lasts, how far that of the next device is
away, and from one trouble of a device to its next."""
_BROKEN = 97
"""Each such reading is not a number, unless its device is in trouble."""
_CORRECTED = 50
"""Each such reading is corrected, some readings later."""


def given(seed: int, number: int, taken: datetime) -> Given:
    """The reading of that number: the devices take turns."""
    device = DEVICES[number % len(DEVICES)]
    usual, spread = _USUAL.get(device.device, (0.0, 0.0))
    if not in_trouble(number):
        value = usual + random.Random(f"{seed}/{number}").uniform(-spread, spread)
        return Given(device.device, device.kind, math.nan if number % _BROKEN == 0 else round(value, 3), taken)
    value = {"temperature": usual + 12 * spread, "vibration": 4 * usual, "door": 1.0}[device.kind]
    return Given(device.device, device.kind, round(value, 3), taken)


def in_trouble(number: int) -> bool:
    """Whether the device is in trouble at the reading of that number."""
    step, place = number // len(DEVICES), number % len(DEVICES)
    first = HISTORY // len(DEVICES) + _QUIET + place * _APART
    return step >= first and (step - first) % _PERIOD < _TROUBLE


def troubles(first: int, number: int) -> list[str]:
    """The devices that have trouble from its beginning to its end within so many readings, as often as they do."""
    last = len(DEVICES) * (_TROUBLE - 1)
    return [
        DEVICES[n % len(DEVICES)].device
        for n in range(first, first + number - last)
        if in_trouble(n) and not in_trouble(n - len(DEVICES))
    ]


def history(seed: int, now: datetime) -> Iterator[Given]:
    """What the devices told before `now`."""
    for number in range(HISTORY):
        yield given(seed, number, now - _STEP * ((HISTORY - number) / len(DEVICES)))


def wait_for_history(url: str) -> None:
    """Waits until the job has read the history: what is written before would be a part of it, and no cause to alert."""
    query = (
        "SELECT count(*) FROM readings r WHERE id <= %s AND value <> 'NaN' "
        "AND NOT EXISTS (SELECT FROM assessments a WHERE a.reading = r.id)"
    )
    with psycopg.connect(url, autocommit=True) as plant:
        while plant.execute(query, (HISTORY,)).fetchone() != (0,):
            time.sleep(0.2)


def feed(url: str, seed: int, first: int, number: int, rate: float) -> tuple[int, int]:
    """Writes readings to the table, each in a transaction of its own, and returns how many, and how many corrections.

    Args:
        url: The plant's database, for its administrator.
        seed: Another seed gives other noise.
        first: The number of the first one.
        number: How many.
        rate: How many a second.
    """
    started = time.monotonic()
    wrong: list[int] = []
    corrections = 0
    with psycopg.connect(url, autocommit=True) as plant:
        for nth in range(number):
            time.sleep(max(0.0, started + nth / rate - time.monotonic()))
            now = given(seed, first + nth, datetime.now(UTC))
            id = put(plant, now)
            if nth % _CORRECTED == 0 and math.isfinite(now.value) and not in_trouble(first + nth):
                wrong.append(id)
            if nth % _CORRECTED == _CORRECTED // 2 and wrong:
                statement = "UPDATE readings SET value = round(value::numeric, 1), version = version + 1 WHERE id = %s"
                plant.execute(statement, (wrong.pop(),))
                corrections += 1
    return number, corrections
