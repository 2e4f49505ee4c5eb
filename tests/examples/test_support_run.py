"""The whole support example: a first run, a second one on the same ledger, files of the user's."""

from __future__ import annotations

import json
import pickle
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from examples.common import read_jsonl
from examples.support.agent import support_agent
from examples.support.desk import Desk
from examples.support.main import main
from examples.support.rules import MODEL, NAME

OUTPUTS = ("results.jsonl", "failures.jsonl", "duplicates.jsonl", "trace.jsonl")


def waiting(folder: Path) -> int:
    with closing(Desk(str(folder / "desk.db"))) as desk:
        return desk.waiting()


def test_a_second_run_writes_the_same_files_and_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([f"--out={tmp_path}", "--evaluate"])
    said = capsys.readouterr().out
    first = {name: (tmp_path / name).read_bytes() for name in OUTPUTS}
    results = read_jsonl(tmp_path / "results.jsonl")
    assert len(results) == 30
    assert "Accuracy    27 of 30 intents right (90.0%)" in said
    assert said.splitlines()[-1].startswith("30 decided, 0 replayed")
    assert waiting(tmp_path) == sum(result["output"]["answered_by"] == "person" for result in results) > 0
    main([f"--out={tmp_path}"])
    assert capsys.readouterr().out.splitlines()[-1] == "0 decided, 30 replayed, 0 tool calls"
    assert {name: (tmp_path / name).read_bytes() for name in OUTPUTS} == first
    assert waiting(tmp_path) == first["results.jsonl"].count(b'"person"')


def test_a_fresh_run_and_one_with_repeated_bundles_write_the_same_results(tmp_path: Path) -> None:
    main([f"--out={tmp_path / 'one'}"])
    main([f"--out={tmp_path / 'two'}", "--direct_runner_bundle_repeat=1"])
    for name in ("results.jsonl", "failures.jsonl", "duplicates.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert waiting(tmp_path / "one") == waiting(tmp_path / "two")


def test_the_third_message_about_the_same_goes_to_a_person(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    rows = [{"text": "What is the exchange rate?", "customer_id": "C001", "message_id": str(n)} for n in range(3)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    main([f"--input={file}", f"--out={tmp_path}"])
    outputs = [result["output"] for result in read_jsonl(tmp_path / "results.jsonl")]
    assert [output["answered_by"] for output in outputs] == ["agent", "agent", "person"]
    assert NAME in outputs[0]["text"]
    assert outputs[2]["text"] == "A colleague will answer you soon (T-2)."


def test_what_cannot_be_read_is_a_dead_letter(tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    rows = ["1,C1,chat,my card was stolen", "2,C1,fax,hello", "3,C1,chat,", "4,C1,chat,x,y", "1,C1,chat,another text"]
    file.write_text("\n".join(["message_id,customer_id,kind,text", *rows, ""]))
    main([f"--input={file}", f"--out={tmp_path}"])
    assert [result["run_id"] for result in read_jsonl(tmp_path / "results.jsonl")] == ["1"]
    failures = read_jsonl(tmp_path / "failures.jsonl")
    assert sorted(failure["reason"] for failure in failures) == ["id_conflict", *["invalid_event"] * 3]


def test_the_agent_can_be_sent_to_workers(tmp_path: Path) -> None:
    agent = support_agent(MODEL, partial(Desk, str(tmp_path / "desk.db")))
    sent = pickle.loads(pickle.dumps(agent))
    event = {"kind": "chat", "message_id": "1", "customer_id": "C001", "text": "What is the exchange rate?"}
    assert sent.run_sync(event, key="C001").output.intent == "exchange_rate"
