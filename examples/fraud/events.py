"""What comes in, what the tools return, and what is decided."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$")]
"""One short line: what strangers write into a payment must not become lines of the prompt."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Txn(_Record):
    """A payment with a card. Further fields of a file are ignored."""

    txn_id: Name
    card: Name
    time: AwareDatetime
    amount: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """US dollars."""
    merchant: Name
    city: Name
    latitude: Annotated[float, Field(ge=-90, le=90)]
    longitude: Annotated[float, Field(ge=-180, le=180)]


class Listing(_Record):
    """What the bank's blocklist says about a merchant."""

    listed: bool
    reason: str = ""


class Merchant(_Record):
    """What the bank knows about a merchant."""

    name: str
    category: str
    high_risk: bool
    """Sells what is easily turned into money: gift cards, jewellery, coins."""


class Hold(_Record):
    """A hold that the bank has put on a card."""

    hold_id: int
    card: str
    reason: str


class Verdict(_Record):
    """The decision about a payment."""

    decision: Literal["approve", "review", "hold"]
    """`review`: a person should look at it. `hold`: the card is on hold."""
    reasons: tuple[str, ...] = ()
    """What spoke against the payment, most serious first."""
    hold_id: int | None = None
    """The hold that this payment led to."""
    decided_by: str
    """The name of the model, or of the rule that made a model unnecessary."""
