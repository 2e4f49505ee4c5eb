import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from beam_agents import FailureReason, workflow
from beam_agents.codec import canonical_json, digest, key_of, key_text, to_json_value
from beam_agents.transforms.envelope import FAILURES, Admit, Envelope

HALF = "\ud83d"


class Tag(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str


class Card(BaseModel):
    holders: set[str]
    limits: dict[str, float] = {}


@dataclass
class Watched:
    cards: frozenset[str]


# ---- canonical JSON ----


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [True, None, 1.5, "é"]}, '{"a":[true,null,1.5,"é"],"b":1}'),
        ((1, ("2", b"\x00\xff")), '[1,["2","AP8="]]'),
        ({"b", "a"}, '["a","b"]'),
        ({1, 10, 2}, "[1,10,2]"),
        ([Card(holders={"b", "a"})], '[{"holders":["a","b"],"limits":{}}]'),
        ({"seen": Watched(frozenset({"b", "a"}))}, '{"seen":{"cards":["a","b"]}}'),
        ({Tag(name="b"), Tag(name="a")}, '[{"name":"a"},{"name":"b"}]'),
        ("a\0b\n\x7f\u2028", '"a\\u0000b\\n\x7f\u2028"'),
        ("🂡", '"🂡"'),
        (10**30, "1" + "0" * 30),
    ],
)
def test_canonical_json(value: Any, text: str) -> None:
    assert canonical_json(value) == text


SCALARS = st.none() | st.booleans() | st.integers() | st.text()


@given(SCALARS | st.dictionaries(st.text(), SCALARS))
def test_the_short_way_of_flat_values_writes_what_the_long_way_does(value: Any) -> None:
    assert f"[{canonical_json(value)}]" == canonical_json([value])


def test_plain_data_is_a_copy() -> None:
    value = {"a": 1}
    plain = to_json_value(value)
    value["a"] = 2
    assert plain == {"a": 1}


def test_canonical_json_never_holds_what_a_database_cannot() -> None:
    text = canonical_json({"\0": ["\0", "".join(map(chr, range(0xD800)))]})
    assert "\0" not in text
    assert text.encode().decode() == text


@pytest.mark.parametrize(
    "value",
    [HALF, f"a{HALF}b", [{"a": (HALF,)}], {HALF: 1}, {HALF}, Tag.model_construct(name=HALF), object()],
)
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    for write in (canonical_json, to_json_value):
        with pytest.raises(ValueError, match=f"^{type(value).__name__} cannot be held by JSON: ") as refused:
            write(value)
        assert str(refused.value).isascii()


def test_digests_keep_the_parts_apart() -> None:
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")
    assert digest("") != digest() != digest("", "")
    assert digest("fraud", canonical_json({"a": "é\0"})) == "e9845973dd86b2b31b77e2e61d363891"


# ---- keys ----

KEYS: list[Any] = [
    "", "card", "é🂡", "a\0b", "1", "true", "null", "[1]", '{"bytes":"YQ=="}', "YQ==",
    0, 1, -7, 10**20, 1.5, True, False, None,
    b"", b"a", b"\x00\xff",
    (), (1,), ("1",), ("card", 7, None, True), (("a", 1), ("b",)), (b"a", ("x", b"\xff")), ("YQ==", ("x", "/w==")),
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_keys_come_back_as_they_were(key: Any) -> None:
    found = key_of(key_text(key))
    assert (found, type(found)) == (key, type(key))
    assert "\0" not in key_text(key)


def test_no_two_keys_share_a_text() -> None:
    assert len({key_text(key) for key in KEYS}) == len(KEYS)


def test_a_key_with_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be held by JSON"):
        key_text(("card", HALF))


# ---- processes ----

WRITER = """
from dataclasses import dataclass
from pydantic import BaseModel
from beam_agents.codec import canonical_json, digest, key_text

class Inner(BaseModel):
    tags: frozenset[str]

class Event(BaseModel):
    words: set[str]
    inner: list[Inner]
    mixed: dict[str, set[tuple[int, str]]]

@dataclass
class Seen:
    cards: set[bytes]

words = {f"word{number}" for number in range(50)}
event = Event(words=words, inner=[Inner(tags=words)], mixed={"m": {(len(word), word) for word in words}})
values = (event, [event], {"event": event}, words, [words, [words]], [Seen({word.encode() for word in words})])
texts = [canonical_json(value) for value in values]
texts += [key_text(key) for key in ("k", 1, True, None, b"k", ("k", 1, (b"k", None)))]
print(*texts, digest(*texts), sep="\\n")
"""


def test_processes_with_other_hash_seeds_write_the_same() -> None:
    written = [
        subprocess.run(
            [sys.executable, "-c", WRITER],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert written[0] == written[1]
    assert len(written[0].splitlines()) == 13


# ---- run ids ----


@workflow(output_type=str)
async def answer(ctx: Any, event: Any) -> str:
    return "done"


def admit(event: dict[str, Any], event_id: Any = "id") -> Any:
    """What the admission of one event emits."""
    admission = Admit(answer, event_id, "scope", GlobalWindows().get_window_coder())
    (output,) = admission.process(("card", event), Timestamp(0), GlobalWindow())
    return output


@pytest.mark.parametrize("run_id", ["a\0b", "\0", HALF, f"t-{HALF}", "\udfff"])
def test_run_ids_that_no_ledger_can_keep_are_refused(run_id: str) -> None:
    output = admit({"id": 1}, lambda event: run_id)
    key, failure = output.value
    assert (output.tag, key, failure.reason) == (FAILURES, "card", FailureReason.MISSING_ID)
    assert repr(run_id) in failure.message
    assert "U+0000 or half of a surrogate pair" in failure.message
    assert failure.message.isascii()


@pytest.mark.parametrize("run_id", ["t-1", "日本 🂡", " ", "\t", 7])
def test_other_run_ids_are_taken(run_id: Any) -> None:
    key, envelope = admit({"id": run_id})
    assert key == "card"
    assert str(run_id) == Envelope.model_validate_json(envelope).run_id


def test_an_event_with_half_a_surrogate_pair_is_refused() -> None:
    output = admit({"id": 1, "text": HALF})
    assert (output.tag, output.value[1].reason) == (FAILURES, FailureReason.INVALID_EVENT)
    assert "surrogates not allowed" in output.value[1].message
