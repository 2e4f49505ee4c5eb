"""What every system is given: the messages, what the agent is told, and where everything is."""

from __future__ import annotations

import argparse
import random
from typing import Literal

from pydantic import BaseModel

INSTRUCTIONS = (
    "You are the support agent of a shop. Look the customer's account up first. Refund what was charged twice, route "
    "what only a person can settle to a person, and answer the rest yourself. Give tools the message's reference."
)
CUSTOMERS = 100

Kind = Literal["refund", "person", "question"]

_TEXTS: dict[Kind, str] = {
    "refund": "You have charged me {amount} EUR twice for the same order. I want it back.",
    "person": "The parcel came broken for the second time. I want to talk to somebody.",
    "question": "How long does delivery to Norway take?",
}


class Message(BaseModel):
    """A customer's message; its record in Kafka has the customer as key."""

    reference: str
    customer: str
    text: str

    @property
    def told(self) -> str:
        """As the model is told it."""
        return f"[{self.reference}] Customer {self.customer} writes: {self.text}"


class Reply(BaseModel):
    """What is sent back."""

    reference: str
    text: str


class Place(BaseModel):
    """Where everything is, as a system's program is told on its command line."""

    servers: str
    """Kafka's."""
    messages: str
    """The topic to read."""
    replies: str
    """The topic to write."""
    model: str
    """The base URL of the model's server."""
    office: str
    """The URL of the back office."""
    folder: str
    """For what a system keeps over a crash."""
    commits: Literal["each", "auto"] = "each"
    """Offsets: after each reply, or by the client's default every five seconds."""

    @classmethod
    def parse(cls) -> tuple[Place, list[str]]:
        """From the command line; also the arguments that are none of these."""
        made = argparse.ArgumentParser()
        for name, field in cls.model_fields.items():
            made.add_argument(f"--{name}", required=field.is_required(), default=field.default)
        given, rest = made.parse_known_args()
        return cls(**vars(given)), rest

    def arguments(self) -> list[str]:
        """As `parse` takes them."""
        return [f"--{name}={value}" for name, value in self.model_dump().items()]


def kind_of(reference: str) -> Kind:
    """What a message asks for: of five two want a refund, two a person, and one only an answer."""
    return ("refund", "refund", "person", "person", "question")[int(reference.removeprefix("M-")) % 5]  # type: ignore[return-value]


def amount_of(reference: str) -> int:
    """What a message wants back, in EUR."""
    return 10 + int(reference.removeprefix("M-")) % 90


def messages(count: int, seed: int = 1) -> list[Message]:
    """The messages, from about a hundred customers in a random order."""
    chosen = random.Random(seed)
    made = []
    for number in range(count):
        reference = f"M-{number:04d}"
        text = _TEXTS[kind_of(reference)].format(amount=amount_of(reference))
        made.append(Message(reference=reference, customer=f"C{chosen.randrange(CUSTOMERS):02d}", text=text))
    return made
