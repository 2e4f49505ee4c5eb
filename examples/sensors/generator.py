"""Readings of machines that do not exist, with failures at known times; the same for the same seed."""

from __future__ import annotations

import csv
import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

from examples.sensors.labels import Failure

DEVICES = ("pump-1", "pump-2", "pump-3")
START = datetime(2025, 3, 3, tzinfo=UTC)
DAYS = 21
STEP = timedelta(minutes=10)


def write_readings(path: str | Path, seed: int = 7) -> list[Failure]:
    """Writes a CSV file with timestamp, device and value; returns the failures that are in it.

    Each device has a daily rhythm and drifting noise. In the last ten days, two devices overheat for a day and one
    has a spike of half an hour, which is no failure.
    """
    source = random.Random(seed)
    failures = [
        Failure(device=device, start=start, end=start + timedelta(hours=24))
        for device in DEVICES[:2]
        for start in [START + timedelta(days=11 + source.randrange(9), hours=source.randrange(24))]
    ]
    spike = START + timedelta(days=11 + source.randrange(9), hours=source.randrange(24))
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("timestamp", "device", "value"))
        noise = dict.fromkeys(DEVICES, 0.0)
        for number in range(timedelta(days=DAYS) // STEP):
            now = START + number * STEP
            for place, device in enumerate(DEVICES):
                noise[device] = 0.9 * noise[device] + source.gauss(0, 0.3)
                value = 60 + 5 * place + 2 * math.sin(math.tau * now.hour / 24) + noise[device]
                value += sum(_heat(failure, now) for failure in failures if failure.device == device)
                value += 25 if device == DEVICES[2] and timedelta(0) <= now - spike < timedelta(minutes=30) else 0
                writer.writerow((now.isoformat(), device, f"{value:.3f}"))
    return failures


def _heat(failure: Failure, now: datetime) -> float:
    """Rises for half of the failure's time and then stays, until the machine is repaired."""
    if not failure.start <= now < failure.end:
        return 0.0
    return 20 * min(1.0, 2 * (now - failure.start) / (failure.end - failure.start))
