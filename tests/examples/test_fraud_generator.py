"""The made-up payments: the same each time, with fraud of each kind and the faults that real files have."""

import json
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from examples.common import read_rows
from examples.fraud.events import Txn
from examples.fraud.generator import PATTERNS, Payments, blocklist, generate, merchants
from examples.fraud.state import CardState, add_txn


def valid_payments(payments: Payments) -> list[Txn]:
    found = []
    for line in payments.lines:
        try:
            found.append(Txn.model_validate_json(line))
        except ValidationError:
            continue
    return found


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    generate(300, seed=7).write(first)
    generate(300, seed=7).write(second)
    assert first.read_bytes() == second.read_bytes()
    assert generate(300, seed=8).lines != generate(300, seed=7).lines
    assert json.loads((tmp_path / "injected.json").read_text()) == generate(300, seed=7).patterns


@pytest.mark.parametrize("events", [50, 333, 2000])
def test_a_file_has_the_lines_that_were_asked_for_and_some_of_each_kind(events: int) -> None:
    payments = generate(events, seed=1)
    assert len(payments.lines) == events
    assert set(payments.patterns.values()) == set(PATTERNS)
    valid = valid_payments(payments)
    ids = Counter(payment.txn_id for payment in valid)
    twice = [payment_id for payment_id, count in ids.items() if count > 1]
    contents = {payment_id: {p for p in valid if p.txn_id == payment_id} for payment_id in twice}
    assert any(len(content) == 1 for content in contents.values()), "an exact duplicate"
    assert any(len(content) == 2 for content in contents.values()), "an id with two contents"
    assert events - len(valid) >= 5
    assert payments.patterns.keys() <= ids.keys()


def test_too_few_events_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 50"):
        generate(49)


def test_injected_fraud_stands_out_and_ordinary_payments_do_not() -> None:
    payments = generate(2000, seed=1)
    states: dict[str, CardState] = {}
    seen = {}
    for txn in sorted(valid_payments(payments), key=lambda txn: (txn.time, txn.txn_id)):
        states[txn.card] = add_txn(states.get(txn.card, CardState()), txn)
        signals = states[txn.card].signals
        seen[txn.txn_id] = {
            "velocity": signals.payments_last_hour >= 5,
            "travel": signals.speed_kmh > 1000,
            "blocklist": txn.merchant in blocklist(),
            "spike": signals.times_usual >= 8,
        }
    assert all(seen[payment][pattern] for payment, pattern in payments.patterns.items())
    false_alarms = [payment for payment in seen.keys() - payments.patterns.keys() if any(seen[payment].values())]
    assert len(false_alarms) < len(seen) * 0.01


def test_merchants_on_the_blocklist_are_not_known_otherwise() -> None:
    assert not blocklist().keys() & merchants().keys()


def test_a_written_file_reads_back_with_its_bad_lines_as_failures(tmp_path: Path) -> None:
    path = tmp_path / "payments.jsonl"
    generate(50, seed=3).write(path)
    rows = list(read_rows(path))
    assert len(rows) == 50
    assert next(row for row in rows if not isinstance(row, dict)).reason == "invalid_event"
