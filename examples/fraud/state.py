"""What is remembered of a card, and what it says about the newest payment. Pure and bounded in size."""

from __future__ import annotations

from datetime import timedelta
from math import asin, cos, radians, sin, sqrt

from pydantic import AwareDatetime, BaseModel, ConfigDict

from examples.fraud.events import Txn

MEMORY = 30
"""Payments kept; more than this in an hour is velocity enough."""
PLACES = 10
"""Cities kept, the newest."""
FIRST_PAYMENTS = 3
"""Payments before a card's usual amount means anything."""

_EARTH_RADIUS_KM = 6371


class Payment(BaseModel):
    """What is kept of a payment."""

    model_config = ConfigDict(frozen=True)

    time: AwareDatetime
    amount: float
    city: str
    latitude: float
    longitude: float


class Signals(BaseModel):
    """How the newest payment looks beside those before it."""

    model_config = ConfigDict(frozen=True)

    payments_last_hour: int = 1
    """By event time, this payment included."""
    spent_last_hour: float = 0.0
    """US dollars, this payment included."""
    speed_kmh: int = 0
    """How fast the card travelled from its last payment to this one; 0 within a city."""
    new_city: bool = False
    times_usual: float = 1.0
    """The amount beside the card's usual one; 1 as long as nothing is usual."""


class CardState(BaseModel):
    """A card's memory."""

    model_config = ConfigDict(frozen=True)

    recent: tuple[Payment, ...] = ()
    """The newest payments by event time, oldest first."""
    cities: tuple[str, ...] = ()
    payments: int = 0
    usual_amount: float = 0.0
    """US dollars: an average in which the past fades and no single payment weighs much."""
    signals: Signals = Signals()


def add_txn(state: CardState, txn: Txn) -> CardState:
    """The card's memory with one more payment, which may be older than those it holds."""
    payment = Payment.model_validate(txn.model_dump(include=set(Payment.model_fields)))
    usual = state.usual_amount if state.payments >= FIRST_PAYMENTS else txn.amount
    weight = max(0.1, 1 / (state.payments + 1))
    return CardState(
        recent=tuple(sorted((*state.recent, payment), key=lambda past: past.time)[-MEMORY:]),
        cities=(*(city for city in state.cities if city != txn.city), txn.city)[-PLACES:],
        payments=state.payments + 1,
        usual_amount=round(state.usual_amount + weight * (min(txn.amount, 3 * usual) - state.usual_amount), 2),
        signals=_signals(state, payment, usual),
    )


def _signals(state: CardState, payment: Payment, usual: float) -> Signals:
    before = [past for past in state.recent if past.time <= payment.time]
    last_hour = [past for past in before if past.time > payment.time - timedelta(hours=1)]
    return Signals(
        payments_last_hour=len(last_hour) + 1,
        spent_last_hour=round(sum(past.amount for past in last_hour) + payment.amount, 2),
        speed_kmh=speed_kmh(before[-1], payment) if before else 0,
        new_city=bool(state.cities) and payment.city not in state.cities,
        times_usual=round(payment.amount / usual, 1),
    )


def speed_kmh(start: Payment, end: Payment) -> int:
    """The speed that a card needs from one payment to the next, in km/h; 0 for less than 50 km."""
    distance = _distance_km(start, end)
    hours = max((end.time - start.time).total_seconds() / 3600, 1 / 60)
    return round(distance / hours) if distance >= 50 else 0


def _distance_km(start: Payment, end: Payment) -> float:
    north_1, north_2 = radians(start.latitude), radians(end.latitude)
    east = radians(end.longitude - start.longitude)
    chord = sin((north_2 - north_1) / 2) ** 2 + cos(north_1) * cos(north_2) * sin(east / 2) ** 2
    return 2 * _EARTH_RADIUS_KM * asin(sqrt(min(1.0, chord)))
