"""What became of the messages, counted from the topics and the queue as anybody could."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from pydantic import BaseModel

from examples.production.folder import Running
from examples.production.topics import records
from examples.support.production.crm import queue
from examples.support.production.topics import ANSWERS, FAILURES, MESSAGES, Answer, id_of


class Account(BaseModel):
    """The count."""

    messages: int = 0
    """What the door took: records of the topic."""
    repeats: int = 0
    """Those whose id had come before: nothing comes of them."""
    tickets: int = 0
    answers: dict[str, int] = {}
    """Records of the topic, by what was done."""
    answered_twice: int = 0
    """Answers beyond a message's first."""
    failures: dict[str, int] = {}
    """Records of the topic, by the reason."""
    waiting: int = 0
    """Places in the persons' queue."""
    asked: int = 0
    """How often a place was asked for; those beyond `waiting` found the one that was there."""

    @property
    def open(self) -> int:
        """Messages of which nothing has come yet."""
        return self.messages - self.repeats - sum(self.answers.values()) - sum(self.failures.values())


def account(running: Running) -> Account:
    """Reads it all."""
    came = list(records(running.servers, [MESSAGES]))
    answers = [Answer.model_validate_json(record.value() or b"") for record in records(running.servers, [ANSWERS])]
    failures = [json.loads(record.value() or b"") for record in records(running.servers, [FAILURES])]
    rows = queue(running.database("crm"))
    return Account(
        messages=len(came),
        repeats=len(came) - len({id_of(record) for record in came}),
        tickets=len({record.key() for record in came}),
        answers=_counted(answer.action for answer in answers),
        answered_twice=len(answers) - len({answer.message for answer in answers}),
        failures=_counted(failure["reason"] for failure in failures),
        waiting=len(rows),
        asked=sum(row.asked for row in rows),
    )


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
