"""A card's memory: what it says about a payment, and that it stays small."""

from datetime import UTC, datetime, timedelta

from examples.fraud.events import Txn
from examples.fraud.state import MEMORY, PLACES, CardState, add_txn

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
BERLIN = {"city": "Berlin", "latitude": 52.52, "longitude": 13.41}
OSLO = {"city": "Oslo", "latitude": 59.91, "longitude": 10.75}


def txn(minutes: float = 0, amount: float = 40, **place: object) -> Txn:
    time = NOON + timedelta(minutes=minutes)
    about = {"txn_id": f"t-{minutes}", "card": "card-1", "merchant": "m-001", "time": time, "amount": amount}
    return Txn.model_validate(about | BERLIN | place)


def after(*txns: Txn) -> CardState:
    state = CardState()
    for each in txns:
        state = add_txn(state, each)
    return state


def test_velocity_counts_the_last_hour_by_event_time() -> None:
    signals = after(txn(0), txn(10), txn(59), txn(65)).signals
    assert (signals.payments_last_hour, signals.spent_last_hour) == (3, 120)


def test_a_late_payment_is_judged_by_its_own_hour() -> None:
    assert after(txn(0), txn(50), txn(300), txn(55)).signals.payments_last_hour == 3


def test_speed_is_that_from_the_payment_before() -> None:
    assert after(txn(0), txn(60, **OSLO)).signals.speed_kmh in range(820, 860)
    assert after(txn(0), txn(60)).signals.speed_kmh == 0
    assert after(txn(0), txn(0, **OSLO)).signals.speed_kmh > 10_000, "no division by zero"


def test_a_new_city_is_new_once() -> None:
    assert not after(txn(0)).signals.new_city
    assert after(txn(0), txn(600, **OSLO)).signals.new_city
    assert not after(txn(0), txn(600, **OSLO), txn(1200, **OSLO)).signals.new_city


def test_the_usual_amount_is_not_moved_by_one_spike() -> None:
    ordinary = [txn(n * 100) for n in range(10)]
    spike = after(*ordinary, txn(2000, amount=4000))
    assert spike.signals.times_usual == 100
    assert spike.usual_amount < 60
    assert after(txn(0), txn(100, amount=4000)).signals.times_usual == 1, "nothing is usual yet"


def test_memory_is_bounded_and_survives_json() -> None:
    state = after(*(txn(n, city=f"city-{n}") for n in range(3 * MEMORY)))
    assert (len(state.recent), len(state.cities)) == (MEMORY, PLACES)
    assert state.payments == 3 * MEMORY
    assert CardState.model_validate_json(state.model_dump_json()) == state
    assert len(state.model_dump_json()) < 6_000
