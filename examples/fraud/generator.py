"""Made-up card payments: some hundreds of cards that spend as people do, and among them fraud of four kinds.

The same numbers and seed give the same file, byte for byte. A file has some events that are not valid, some that
come twice, and one that comes again under its id with another content, since real files do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from examples.fraud.events import Merchant

START = datetime(2026, 1, 5, 6, tzinfo=UTC)
DAYS = 5

PATTERNS = ("velocity", "travel", "blocklist", "spike")
"""A burst of payments; two places too far apart; a merchant on the blocklist; far more than usual."""

Row = dict[str, Any]


class _Place(NamedTuple):
    city: str
    latitude: float
    longitude: float


_HOMES = (
    _Place("Berlin", 52.52, 13.41),
    _Place("Lisbon", 38.72, -9.14),
    _Place("Vienna", 48.21, 16.37),
    _Place("Oslo", 59.91, 10.75),
    _Place("Athens", 37.98, 23.73),
)
_FAR_AWAY = (_Place("Sydney", -33.87, 151.21), _Place("Lima", -12.05, -77.04), _Place("Osaka", 34.69, 135.50))

_SHOPS = ("groceries", "fuel", "books", "clothing", "pharmacy", "restaurant")
_RISKY_SHOPS = ("gift cards", "jewellery", "coins")


def merchants() -> dict[str, Merchant]:
    """The merchants of the made-up world, by id; the bank's database gets them."""
    ordinary = [(f"m-{n:03}", _SHOPS[n % len(_SHOPS)], False) for n in range(60)]
    risky = [(f"m-9{n:02}", _RISKY_SHOPS[n % len(_RISKY_SHOPS)], True) for n in range(9)]
    return {
        merchant: Merchant(name=f"{category.title()} {merchant[2:]}", category=category, high_risk=high_risk)
        for merchant, category, high_risk in ordinary + risky
    }


def blocklist() -> dict[str, str]:
    """The merchants on the bank's blocklist, with the reason; none of them is known otherwise."""
    return {f"b-{n:03}": reason for n, reason in enumerate(("card testing", "stolen terminal", "fake shop") * 2)}


@dataclass(frozen=True)
class Payments:
    """What `generate` makes."""

    lines: list[str]
    """The file, line by line, in the order of time."""
    patterns: dict[str, str] = field(default_factory=dict)
    """Which payments are fraud: pattern by transaction id. Written beside the file; no agent sees it."""

    def write(self, path: Path) -> None:
        """Writes the file, and `injected.json` beside it."""
        path.write_text("".join(f"{line}\n" for line in self.lines), encoding="utf-8")
        path.with_name("injected.json").write_text(json.dumps(self.patterns, indent=1, sort_keys=True) + "\n")


def generate(events: int = 2000, seed: int = 1) -> Payments:
    """A file of payments.

    Args:
        events: Lines of the file, at least 50.
        seed: Another seed gives other payments.

    Raises:
        ValueError: There are too few events to hold one of each kind.
    """
    if events < 50:
        raise ValueError(f"events={events}: at least 50 are needed to hold one of each kind")
    random = Random(seed)
    cards = [_Card.make(f"card-{n:04}", random) for n in range(max(8, min(400, events // 7)))]
    odd = _odd_lines(max(1, events // 500))
    rows = list(_fraud(cards, events, random))
    while len(rows) + len(odd) < events:
        card = random.choice(cards)
        rows.append((card.spend(random, _moment(random)), ""))
    rows.sort(key=lambda row: row[0]["time"])
    patterns = {}
    for number, (row, pattern) in enumerate(rows):
        row["txn_id"] = f"t-{number:06}"
        if pattern:
            patterns[row["txn_id"]] = pattern
    lines = [json.dumps(row, sort_keys=True) for row, _ in rows]
    for kind in odd:
        at = random.randrange(len(lines) // 2, len(lines))
        lines.insert(at, _odd(kind, dict(rows[random.randrange(len(rows) // 2)][0])))
    return Payments(lines, patterns)


@dataclass(frozen=True)
class _Card:
    number: str
    home: _Place
    usual: float
    favourites: tuple[str, ...]

    @staticmethod
    def make(number: str, random: Random) -> _Card:
        known = [merchant for merchant, about in merchants().items() if not about.high_risk]
        usual = round(random.lognormvariate(3.6, 0.4), 2)
        return _Card(number, random.choice(_HOMES), usual, tuple(random.sample(known, 6)))

    def spend(self, random: Random, time: datetime, **other: Any) -> Row:
        """An ordinary payment, but for the fields given."""
        place = other.pop("place", self.home)
        return {
            "card": self.number,
            "time": time.isoformat(),
            "amount": round(self.usual * random.uniform(0.3, 1.9), 2),
            "merchant": random.choice(self.favourites),
            "city": place.city,
            "latitude": round(place.latitude + random.uniform(-0.05, 0.05), 4),
            "longitude": round(place.longitude + random.uniform(-0.05, 0.05), 4),
        } | other


def _moment(random: Random) -> datetime:
    seconds = random.randrange(16 * 3600)
    return START + timedelta(days=random.randrange(DAYS), seconds=seconds)


def _fraud(cards: list[_Card], events: int, random: Random) -> Iterator[tuple[Row, str]]:
    """Fraud on some cards, one pattern on each, in an afternoon after the first days."""
    victims = random.sample(cards, max(len(PATTERNS), min(len(cards), events // 40)))
    risky = [merchant for merchant, about in merchants().items() if about.high_risk]
    for number, card in enumerate(victims):
        pattern = PATTERNS[number % len(PATTERNS)]
        time = START + timedelta(days=random.randrange(2, DAYS), hours=10, seconds=random.randrange(6 * 3600))
        for nth in range(4):  # a past, so that something is usual
            yield card.spend(random, time - timedelta(hours=12 * (nth + 1))), ""
        if pattern == "velocity":
            for nth in range(6):
                yield (
                    card.spend(random, time + timedelta(minutes=2 * nth), amount=round(31 + 7.5 * nth, 2)),
                    pattern if nth >= 4 else "",  # the first ones look like any other
                )
        elif pattern == "travel":
            yield card.spend(random, time), ""
            away = random.choice(_FAR_AWAY)
            yield card.spend(random, time + timedelta(minutes=25), place=away, amount=180.0), pattern
        elif pattern == "blocklist":
            shop = random.choice(list(blocklist()))
            yield card.spend(random, time, merchant=shop, amount=round(random.uniform(35, 300), 2)), pattern
        else:
            shop = random.choice((*risky, *card.favourites))
            yield card.spend(random, time, merchant=shop, amount=round(card.usual * random.uniform(15, 30), 2)), pattern


def _odd_lines(each: int) -> list[str]:
    kinds = ["not json", "no card", "no id", "amount", "time"]
    return kinds * each + ["twice"] * (each + 2) + ["conflict"]


def _odd(kind: str, row: Row) -> str:
    """A line that is not a payment of its own; made from one that came before."""
    if kind == "not json":
        return json.dumps(row)[:-20]
    if kind == "no card":
        row.update(txn_id=f"{row['txn_id']}-x", card=None)
    elif kind == "no id":
        del row["txn_id"]
    elif kind == "amount":
        row.update(txn_id=f"{row['txn_id']}-x", amount=-row["amount"])
    elif kind == "time":
        row.update(txn_id=f"{row['txn_id']}-x", time="yesterday")
    elif kind == "conflict":
        later = datetime.fromisoformat(row["time"]) + timedelta(minutes=1)
        row.update(amount=row["amount"] + 1, time=later.isoformat())
    return json.dumps(row, sort_keys=True)
