"""The offline model: looks up, acts, answers, and knows only what the request says."""

import json

import pytest

from beam_agents.codec import canonical_json
from beam_agents.messages import AssistantMessage, Message, ModelRequest, SystemMessage, ToolMessage, UserMessage
from examples.fraud.events import Hold, Listing, Merchant, Verdict
from examples.fraud.rules import NAME, answer

ORDINARY = Merchant(name="Books", category="books", high_risk=False)
RISKY = Merchant(name="Coins", category="coins", high_risk=True)


def payment(**said: object) -> UserMessage:
    facts = {
        "payment": "t-1",
        "amount": "50 USD",
        "merchant": "m-001",
        "payments in the last hour": 1,
        "speed since the last payment": "0 km/h",
        "times the usual amount": 1.0,
    } | {name.replace("_", " "): value for name, value in said.items()}
    return UserMessage(text="\n".join(f"{name}: {value}" for name, value in facts.items()))


def told(turn: AssistantMessage, outcome: str = "ok", **values: object) -> list[Message]:
    """A turn with what its tool calls came to."""
    results = [
        ToolMessage(call_id=call.id, name=call.name, text=canonical_json(values[call.name]), outcome=outcome)
        for call in turn.tool_calls
    ]
    return [turn, *results]


def talk(
    about: UserMessage,
    *,
    listing: Listing | None = None,
    known: Merchant | None = ORDINARY,
    hold: str = "ok",
    past: tuple[Message, ...] = (),
) -> tuple[list[str], Verdict]:
    """Lets the model talk until it answers; the tools that it called and its verdict."""
    messages: list[Message] = [SystemMessage(text="..."), *past, about]
    values = {
        "blocklist": listing or Listing(listed=False),
        "merchant": known,
        "hold_card": Hold(hold_id=7, card="card-1", reason="..."),
    }
    called: list[str] = []
    for _ in range(5):
        turn = answer(ModelRequest(messages=tuple(messages)))
        if turn.text is not None:
            return called, Verdict.model_validate_json(turn.text)
        called += [call.name for call in turn.tool_calls]
        messages += told(turn, hold if turn.tool_calls[0].name == "hold_card" else "ok", **values)
    raise AssertionError(f"no answer after {called}")


def test_both_look_ups_come_first_and_side_by_side() -> None:
    turn = answer(ModelRequest(messages=(payment(merchant="m-042"),)))
    assert [call.name for call in turn.tool_calls] == ["blocklist", "merchant"]
    assert all(json.loads(call.arguments) == {"merchant_id": "m-042"} for call in turn.tool_calls)


def test_an_ordinary_payment_is_approved_in_the_models_own_name() -> None:
    assert talk(payment()) == (["blocklist", "merchant"], Verdict(decision="approve", decided_by=NAME))
    assert NAME.startswith("offline:")


@pytest.mark.parametrize(
    ("about", "listing", "known"),
    [
        (payment(), Listing(listed=True, reason="fake shop"), None),
        (payment(payments_in_the_last_hour=5), None, ORDINARY),
        (payment(speed_since_the_last_payment="8000 km/h"), None, ORDINARY),
        (payment(times_the_usual_amount=8.0), None, RISKY),
        (payment(times_the_usual_amount=8.0), None, None),
    ],
)
def test_each_pattern_puts_the_card_on_hold(
    about: UserMessage, listing: Listing | None, known: Merchant | None
) -> None:
    called, verdict = talk(about, listing=listing, known=known)
    assert called == ["blocklist", "merchant", "hold_card"]
    assert (verdict.decision, verdict.hold_id, len(verdict.reasons)) == ("hold", 7, 1)


def test_much_money_at_an_ordinary_merchant_is_for_a_person() -> None:
    called, verdict = talk(payment(times_the_usual_amount=12.5))
    assert called == ["blocklist", "merchant"]
    assert verdict.decision == "review"
    assert verdict.reasons == ("12.5 times the usual amount",)


def test_a_hold_that_the_bank_refused_is_for_a_person() -> None:
    called, verdict = talk(payment(payments_in_the_last_hour=9), hold="failed")
    assert called[-1] == "hold_card"
    assert (verdict.decision, verdict.hold_id) == ("review", None)


def test_a_card_that_is_on_hold_already_is_not_put_on_hold_again() -> None:
    first = payment(payments_in_the_last_hour=5)
    turn = answer(
        ModelRequest(messages=(first, *told(_lookups(first), blocklist=Listing(listed=False), merchant=None)))
    )
    past = (first, *told(turn, hold_card=Hold(hold_id=7, card="card-1", reason="...")))
    called, verdict = talk(payment(payment="t-2", payments_in_the_last_hour=6), past=past)
    assert called == ["blocklist", "merchant"], "and what was looked up for an earlier payment does not count"
    assert verdict.decision == "hold"


def _lookups(about: UserMessage) -> AssistantMessage:
    return answer(ModelRequest(messages=(about,)))
