"""The bank and the tools over it: a hold is made as often as it is asked for, and can be asked about."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from beam_agents import CannotHappen, Happened, RunContext
from examples.fraud.bank import Bank, Cancelled
from examples.fraud.events import Hold, Merchant, Txn
from examples.fraud.generator import blocklist, merchants
from examples.fraud.state import CardState
from examples.fraud.tools import blocklist as blocklist_tool
from examples.fraud.tools import hold_card, hold_status
from examples.fraud.tools import merchant as merchant_tool


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    with closing(Bank(tmp_path / "bank.db")) as made:
        made.set_up(merchants().items(), blocklist().items())
        yield made


def context(bank: Bank, attempt: int = 1) -> RunContext:
    made = RunContext(key="card-1", event=Txn.model_construct(), state=CardState(), deps=bank, run_id="t-1")
    return made.for_call("key-1", attempt)


def test_look_ups_know_what_the_bank_was_set_up_with(bank: Bank) -> None:
    assert blocklist_tool(context(bank), "b-000").listed
    assert not blocklist_tool(context(bank), "m-000").listed
    assert merchant_tool(context(bank), "m-900") == merchants()["m-900"]
    assert merchant_tool(context(bank), "nobody") is None


def test_setting_up_again_changes_nothing(bank: Bank) -> None:
    bank.set_up([("m-000", Merchant(name="Other", category="other", high_risk=True))], [])
    assert bank.merchant("m-000") == merchants()["m-000"]


def test_the_bank_makes_a_hold_as_often_as_it_is_asked(bank: Bank) -> None:
    first, second = hold_card(context(bank), "velocity"), hold_card(context(bank), "velocity")
    assert isinstance(first, Hold)
    assert isinstance(second, Hold)
    assert first.hold_id != second.hold_id
    assert bank.count_holds() == (2, 1)


def test_reconcile_finds_a_hold_that_was_made(bank: Bank) -> None:
    made = hold_card(context(bank), "velocity")
    assert hold_status(context(bank), "velocity") == Happened(made)


def test_reconcile_cancels_what_did_not_happen_and_a_new_attempt_may(bank: Bank) -> None:
    assert hold_status(context(bank), "velocity") == CannotHappen()
    with pytest.raises(Cancelled):
        hold_card(context(bank), "velocity")
    assert bank.count_holds() == (0, 0)
    hold_card(context(bank, attempt=2), "velocity")
    assert bank.count_holds() == (1, 0)


def test_a_request_that_is_cancelled_on_its_way_does_not_become_a_hold(tmp_path: Path) -> None:
    slow = Bank(tmp_path / "bank.db", delay=0.2)
    refused: list[Cancelled] = []

    def hold() -> None:
        try:
            slow.hold("card-1", "velocity", key="key-1", attempt=1)
        except Cancelled as error:
            refused.append(error)

    thread = threading.Thread(target=hold)
    with closing(slow), closing(sqlite3.connect(tmp_path / "bank.db")) as other:
        thread.start()
        while not other.execute("SELECT 1 FROM requests").fetchone():
            time.sleep(0.001)
        assert slow.find_or_cancel(key="key-1", attempt=1) is None
        thread.join()
        assert slow.count_holds() == (0, 0)
    assert len(refused) == 1
