"""What comes in about a ticket: one type, of several kinds that `event_type` tells apart."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, Field


class _About(BaseModel):
    ticket: str = Field(min_length=1, max_length=100)
    customer_id: str = Field(min_length=1, max_length=100)


class Chat(_About):
    event_type: Literal["chat"]
    text: str = Field(min_length=1, max_length=10_000)


class Email(_About):
    event_type: Literal["email"]
    subject: str = ""
    text: str = Field(min_length=1, max_length=100_000)


class Status(_About):
    """Something happened to the ticket; nobody waits for an answer."""

    event_type: Literal["status"]
    status: Literal["closed", "reopened"]


Message: TypeAlias = Annotated[Chat | Email | Status, Field(discriminator="event_type")]


class Reply(BaseModel):
    """What became of a message."""

    action: Literal["answered", "handed_over", "noted"]
    """`handed_over`: a person has it, with all that was said and the account. `noted`: nothing was to be said."""
    text: str = ""
    """For the customer."""
    intent: str | None = None
    """What the customer wants, one of `INTENTS`."""


def text_of(message: Chat | Email) -> str:
    """What the customer wrote."""
    return f"{message.subject}\n{message.text}" if isinstance(message, Email) and message.subject else message.text
