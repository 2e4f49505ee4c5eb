"""The base of what outlives a release of this package: JSON in Beam's state and in ledgers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from beam_agents.codec import explain
from beam_agents.errors import StoredFormUnknown


class Stored(BaseModel):
    """A record that a later release may have to read.

    An unknown field is refused and not ignored: it was written by a release that knew what it is for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    """1: first form. A changed form gets the next number, and a test with bytes of the old one."""

    @classmethod
    def from_json(cls, raw: str | bytes) -> Self:
        """Reads a record.

        Raises:
            StoredFormUnknown: Another release wrote it, in a form that this one does not know.
        """
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            raise StoredFormUnknown(
                f"a stored {cls.__name__} is in a form that this release of beam-agents does not know "
                f"({explain(error, cls.__name__)}): another release wrote it; go on with that one or a newer one"
            ) from error

    def to_json(self) -> bytes:
        """The record as it is stored."""
        return self.model_dump_json().encode()
