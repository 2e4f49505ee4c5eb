"""Coders for pydantic types: JSON with a version byte, never pickle."""

from __future__ import annotations

from typing import Any

from apache_beam import coders

from beam_agents.codec import canonical_json, dump, key_of, key_text, load
from beam_agents.template import members

_VERSION = b"\x01"
"""1: UTF-8 JSON, fields under their own names."""


class PydanticCoder(coders.Coder):
    """Codes any type that pydantic can validate.

    Args:
        type_: The type: a model, a union of models, or anything with a pydantic schema.
    """

    def __init__(self, type_: Any) -> None:
        self._type = type_

    def encode(self, value: Any) -> bytes:
        """The value as JSON behind the version byte.

        Raises:
            ValueError: JSON cannot hold the value.
        """
        return _VERSION + canonical_json(dump(self._type, value)).encode()

    def decode(self, encoded: bytes) -> Any:
        """The value.

        Raises:
            ValueError: Another version, or JSON that does not fit the type.
        """
        if encoded[:1] != _VERSION:
            raise ValueError(f"{self._type!r} was written in form {encoded[:1]!r}; this version reads {_VERSION!r}")
        return load(self._type, encoded[1:])

    def is_deterministic(self) -> bool:
        """JSON of dicts and sets may come in another order."""
        return False

    def to_type_hint(self) -> Any:
        """The type."""
        return self._type

    @classmethod
    def from_type_hint(cls, type_: Any, _registry: Any) -> PydanticCoder:
        """The coder that Beam's registry makes for a type hint."""
        return cls(type_)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PydanticCoder) and self._type == other._type

    def __hash__(self) -> int:
        return hash((PydanticCoder, str(self._type)))


class AnyKey:
    """Type hint of keys whose type the pipeline does not say: coded as canonical JSON, which is deterministic."""


class KeyCoder(coders.Coder):
    """Codes keys that JSON can hold, tuples included."""

    def encode(self, value: Any) -> bytes:
        """The key as canonical JSON."""
        return key_text(value).encode()

    def decode(self, encoded: bytes) -> Any:
        """The key."""
        return key_of(encoded.decode())

    def is_deterministic(self) -> bool:
        """Equal keys give equal bytes."""
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyCoder)

    def __hash__(self) -> int:
        return hash(KeyCoder)


coders.registry.register_coder(AnyKey, KeyCoder)


def register(*types: Any) -> None:
    """Makes Beam code these types with `PydanticCoder`; a union's members one by one."""
    for type_ in types:
        for member in members(type_):
            if isinstance(member, type) and hasattr(member, "model_fields"):
                coders.registry.register_coder(member, _coder_class(member))


def _coder_class(type_: Any) -> type[PydanticCoder]:
    # For a class of `__main__` Beam's registry gives its name as the type hint.
    def from_type_hint(cls: type[PydanticCoder], _type: Any, _registry: Any) -> PydanticCoder:
        return PydanticCoder(type_)

    return type("PydanticCoder", (PydanticCoder,), {"from_type_hint": classmethod(from_type_hint)})
