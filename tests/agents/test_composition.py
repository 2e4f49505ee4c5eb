"""An agent is a transform like any other: behind windows and joins, one after another, with types and coders."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Iterable
from typing import Annotated, Any

import apache_beam as beam
import pytest
from agent_kit import COUNTING, ECHO, JUDGING, Chat, Mail, Txn, Verdict
from apache_beam.internal import cloudpickle_pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.display import DisplayData
from apache_beam.transforms.window import FixedWindows, GlobalWindows, IntervalWindow, SlidingWindows
from apache_beam.typehints import typehints
from driving import BATCH, BATCH_REPEATED, DRIVERS, STREAM, At, collect, collected, options_of, pairs, run
from pydantic import BaseModel, Field

from beam_agents import (
    Agent,
    Budget,
    Duplicate,
    Emitted,
    FailureReason,
    RunAgent,
    RunContext,
    RunFailure,
    RunResult,
    TraceRecord,
    workflow,
)
from beam_agents.messages import UserMessage
from beam_agents.models import FunctionModel, say
from beam_agents.transforms.coders import PydanticCoder

pytestmark = pytest.mark.usefixtures("replay_mode")


def txn(name: str, **more: Any) -> dict[str, Any]:
    return {"txn_id": name, **more}


# ---- downstream of other transforms ----


def spent(
    key: str, events: Iterable[dict[str, Any]], window: Any = beam.DoFn.WindowParam
) -> tuple[str, dict[str, Any]]:
    events = list(events)
    total = sum(event["amount"] for event in events)
    return key, txn(f"{key}-{len(events)}", amount=total)


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_agent_downstream_of_windows(driver: str) -> None:
    """Its outputs are in the windows of its input, at its input's time, and can be grouped there."""
    token = uuid.uuid4().hex
    elements = [(("a", txn(str(second), amount=second)), second) for second in (1, 4, 12, 35)]
    with beam.Pipeline(options=options_of(driver)) as pipeline:
        sums = (
            pairs(pipeline, driver, elements)
            | beam.WindowInto(FixedWindows(10))
            | beam.GroupByKey()
            | "Sum" >> beam.MapTuple(spent)
        )
        out = sums | RunAgent(JUDGING, event_id="txn_id")
        collect(out.results, token)
        counts = (
            out.results
            | beam.MapTuple(lambda key, result: (key, result.output.why)).with_output_types(tuple[str, str])
            | "Again" >> beam.GroupByKey()
            | beam.MapTuple(lambda key, whys: (key, sorted(whys)))
        )
        collect(counts, token + "counts")
        assert out.results.windowing == sums.windowing

    results = collected(token)
    # Beam's coders keep the end of a window to the millisecond.
    assert [(placed.value.output.why, round(placed.seconds, 2), placed.window) for placed in results] == [
        ("5", 10, IntervalWindow(0, 10)),
        ("12", 20, IntervalWindow(10, 20)),
        ("35", 40, IntervalWindow(30, 40)),
    ]
    assert len({placed.value.run_id for placed in results}) == 3
    assert sorted((placed.value, placed.window.start) for placed in collected(token + "counts")) == [
        (["12"], 10),
        (["35"], 30),
        (["5"], 0),
    ]


def test_an_agent_downstream_of_a_combine_in_sliding_windows() -> None:
    token = uuid.uuid4().hex
    with beam.Pipeline(options=options_of(BATCH)) as pipeline:
        sums = (
            pairs(pipeline, BATCH, [(("a", 1.0), 1), (("a", 2.0), 7)])
            | beam.WindowInto(SlidingWindows(10, 5))
            | beam.CombinePerKey(sum)
            | beam.MapTuple(lambda key, total: (key, txn("sum", amount=total)))
        )
        collect((sums | RunAgent(JUDGING, event_id="txn_id")).results, token)

    assert [(placed.window.start, placed.value.output.why) for placed in collected(token)] == [
        (-5, "1"),
        (0, "3"),
        (5, "2"),
    ]


class Joined(BaseModel):
    id: str
    amounts: list[float]
    owners: list[str]


def join(key: str, found: dict[str, Any]) -> tuple[str, Joined]:
    return key, Joined(id=key, amounts=sorted(found["amounts"]), owners=sorted(found["owners"]))


@pytest.mark.parametrize("driver", [BATCH, BATCH_REPEATED])
def test_an_agent_downstream_of_a_join_and_a_filter(driver: str) -> None:
    token = uuid.uuid4().hex
    agent = Agent("joined", model=ECHO, event_type=Joined)
    with beam.Pipeline(options=options_of(driver)) as pipeline:
        amounts = pipeline | "Amounts" >> beam.Create([("a", 1.0), ("b", 2.0), ("a", 3.0)])
        owners = pipeline | "Owners" >> beam.Create([("a", "Ann"), ("c", "Cid")])
        joined = (
            {"amounts": amounts, "owners": owners}
            | beam.CoGroupByKey()
            | "Join" >> beam.MapTuple(join)
            | beam.Filter(lambda pair: pair[1].amounts)
        )
        out = joined | RunAgent(agent, event_id="id")
        collect(out.results, token)

    events = sorted((placed.value.event for placed in collected(token)), key=lambda event: event.id)
    assert events == [Joined(id="a", amounts=[1, 3], owners=["Ann"]), Joined(id="b", amounts=[2], owners=[])]


# ---- several agents ----


class Review(BaseModel):
    id: str
    verdict: Verdict


@pytest.mark.parametrize("driver", DRIVERS)
def test_agent_after_agent(driver: str) -> None:
    token = uuid.uuid4().hex
    second = Agent("review", model=ECHO, event_type=Review, prompt=lambda state, event: f"{event.verdict.ok}")
    with beam.Pipeline(options=options_of(driver)) as pipeline:
        events = pairs(pipeline, driver, [(("a", txn("1", amount=5)), 1.0), (("a", txn("2", amount=500)), 2.0)])
        judged = events | RunAgent(JUDGING, event_id="txn_id")
        reviewed = (
            judged.results
            | beam.MapTuple(lambda key, result: (key, Review(id=result.run_id, verdict=result.output)))
            | RunAgent(second, event_id="id")
        )
        collect(reviewed.results, token)
        collect(reviewed.failures, token + "failures")

    assert [(placed.value.run_id, placed.value.output, placed.seconds) for placed in collected(token)] == [
        ("1", "True", 1.0),
        ("2", "False", 2.0),
    ]
    assert collected(token + "failures") == []


@pytest.mark.parametrize("driver", [BATCH, STREAM])
def test_failures_go_to_another_agent(driver: str) -> None:
    token = uuid.uuid4().hex
    strict = Agent("strict", model=FunctionModel(lambda request: say("no")), event_type=Txn, output_type=Verdict)
    helper = Agent("helper", model=ECHO, event_type=RunFailure[Txn], prompt=lambda state, event: event.reason.value)
    with beam.Pipeline(options=options_of(driver)) as pipeline:
        events = pairs(pipeline, driver, [(("a", txn("1")), 1.0)])
        failed = (events | RunAgent(strict, event_id="txn_id")).failures
        collect((failed | RunAgent(helper, event_id="run_id")).results, token)

    assert [placed.value.output for placed in collected(token)] == ["invalid_output"]


@pytest.mark.parametrize("driver", [BATCH, STREAM])
def test_two_agents_on_one_input_and_one_ledger(driver: str, tmp_path: Any) -> None:
    token = uuid.uuid4().hex
    ledger = f"sqlite:///{tmp_path}/runs.db"
    with beam.Pipeline(options=options_of(driver)) as pipeline:
        events = pairs(pipeline, driver, [(("a", txn("1")), 1.0), (("a", txn("2")), 2.0)])
        collect((events | "Judge" >> RunAgent(JUDGING, event_id="txn_id", ledger=ledger)).results, token + "judge")
        collect((events | "Count" >> RunAgent(COUNTING, event_id="txn_id", ledger=ledger)).results, token + "count")

    assert [placed.value.output.ok for placed in collected(token + "judge")] == [True, True]
    assert [placed.value.output for placed in collected(token + "count")] == ["1 is number 1", "2 is number 2"]


# ---- several kinds of events ----


def told(request: Any) -> Any:
    return say(" ".join(message.text for message in request.messages if isinstance(message, UserMessage)))


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    "event_type", [Chat | Mail, Annotated[Chat | Mail, Field(discriminator="kind")]], ids=["plain", "discriminated"]
)
def test_several_kinds_of_events_in_one_conversation(driver: str, event_type: Any) -> None:
    agent = Agent(
        "inbox",
        model=FunctionModel(told),
        event_type=event_type,
        prompt=lambda state, event: f"{type(event).__name__}:{event.id}",
    )
    elements = [
        At(1, ("k", Chat(id="1", text="hello"))),
        At(2, ("k", {"kind": "mail", "id": "2", "subject": "hello"})),
        At(3, ("k", '{"kind": "chat", "id": "3", "text": "hello"}')),
        At(4, ("k", {"kind": "fax", "id": "4", "text": "hello"})),
        At(5, ("k", Chat(id="1", text="hello"))),
    ]

    out = run(agent, elements, driver, event_id="id")

    assert out.outputs == {"1": "Chat:1", "2": "Chat:1 Mail:2", "3": "Chat:1 Mail:2 Chat:3"}
    assert [type(placed.value.event) for placed in out.results] == [Chat, Mail, Chat]
    assert [placed.value.reason for placed in out.failures] == [FailureReason.INVALID_EVENT]
    assert [placed.value.event for placed in out.duplicates] == [Chat(id="1", text="hello")]


# ---- types and coders ----


def typed_events(pipeline: beam.Pipeline) -> Any:
    return pipeline | beam.Create([("k", Txn(txn_id="a"))]).with_output_types(tuple[str, Txn])


@pytest.mark.parametrize(
    ("tag", "value_type"),
    [
        ("results", RunResult[Txn, Verdict]),
        ("failures", RunFailure[Txn]),
        ("duplicates", Duplicate[Txn]),
        ("trace", TraceRecord),
        ("emitted", Emitted),
    ],
)
def test_outputs_have_types_and_coders_without_pickle(tag: str, value_type: Any) -> None:
    out = typed_events(beam.Pipeline(options=options_of(BATCH))) | RunAgent(JUDGING, event_id="txn_id")
    pcoll = getattr(out, tag)

    assert pcoll.element_type == typehints.Tuple[str, value_type]
    coder = beam.coders.registry.get_coder(pcoll.element_type)
    key_coder, value_coder = coder.coders()
    assert isinstance(key_coder, beam.coders.StrUtf8Coder)
    assert value_coder == PydanticCoder(value_type)


RECORDS = [
    RunResult(run_id="1", event=Txn(txn_id="a"), output=Verdict(ok=True)),
    RunResult[Txn, Verdict](run_id="1", event=Txn(txn_id="a"), output=Verdict(ok=True)),
    RunFailure(reason=FailureReason.DEADLINE, message="late", event=Txn(txn_id="a")),
    RunFailure[Txn](reason=FailureReason.DEADLINE, message="late", transcript=(UserMessage(text="x"),)),
    Duplicate[Txn](run_id="1", event=Txn(txn_id="a")),
    Emitted(run_id="1", value={"x": [1, None]}),
    TraceRecord(run_id="1", path="0", kind="tool", name="t", attempt=1, outcome="ok", arguments={"a": 1}, started=1.5),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_can_be_coded_and_pickled(record: Any) -> None:
    by_type = {
        RunResult: RunResult[Txn, Verdict],
        RunFailure: RunFailure[Txn],
        Duplicate: Duplicate[Txn],
    }
    coder = PydanticCoder(next((typed for base, typed in by_type.items() if isinstance(record, base)), type(record)))

    decoded = coder.decode(coder.encode(record))

    assert decoded.model_dump() == record.model_dump()
    assert type(getattr(decoded, "event", None)) is type(getattr(record, "event", None))
    assert pickle.loads(pickle.dumps(decoded)).model_dump() == record.model_dump()
    assert cloudpickle_pickler.loads(cloudpickle_pickler.dumps(coder)) == coder


@workflow()
async def chatty(ctx: RunContext[Txn, None, None], event: Txn) -> Verdict:
    """Emits, and refuses large amounts."""
    await ctx.emit({"id": event.txn_id})
    if event.amount > 100:
        return "no"  # type: ignore[return-value]
    return Verdict(ok=True)


def is_typed(pair: tuple[str, Any]) -> bool:
    key, value = pair
    assert key == "k"
    assert isinstance(value.event, Txn)
    assert not isinstance(value, RunResult) or isinstance(value.output, Verdict)
    return True


@pytest.mark.parametrize("driver", [BATCH, BATCH_REPEATED])
@pytest.mark.parametrize("keyed", ["typed", "untyped"])
def test_outputs_survive_hops_between_stages(driver: str, keyed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also through a grouping by another key, which has no type hints and so takes Beam's fallback coder."""
    data = [Txn(txn_id="a"), Txn(txn_id="a"), Txn(txn_id="b", amount=500)]
    with beam.Pipeline(options=options_of(driver)) as pipeline:
        if keyed == "typed":
            events = pipeline | beam.Create([("k", event) for event in data]).with_output_types(tuple[str, Txn])
        else:
            events = pipeline | beam.Create(data) | beam.WithKeys(lambda event: "k")
        out = events | RunAgent(chatty, event_id="txn_id")
        for tag, expected in (("results", 1), ("failures", 1), ("duplicates", 1)):
            shuffled = getattr(out, tag) | f"Shuffle {tag}" >> beam.Reshuffle()
            grouped = (
                shuffled
                | f"Check {tag}" >> beam.Filter(is_typed)
                | f"Rekey {tag}" >> beam.Map(lambda pair: ("all", pair[1]))
                | f"Group {tag}" >> beam.GroupByKey()
                | f"Count {tag}" >> beam.MapTuple(lambda key, values: len([value.run_id for value in values]))
            )
            assert_that(grouped, equal_to([expected]), label=tag)
        emitted = out.emitted | beam.Reshuffle() | beam.MapTuple(lambda key, value: value.value["id"])
        assert_that(emitted, equal_to(["a", "b"]), label="emitted")


def test_an_event_that_only_exists_as_json_can_be_told_from_its_failure() -> None:
    with beam.Pipeline(options=options_of(BATCH)) as pipeline:
        events = pipeline | beam.Create([("k", b"rubbish")]).with_output_types(tuple[str, bytes])
        failures = (events | RunAgent(JUDGING, event_id="txn_id")).failures | beam.Reshuffle()
        told = failures | beam.MapTuple(lambda key, failure: (key, failure.reason.value, failure.raw, failure.event))
        assert_that(told, equal_to([("k", "invalid_event", "rubbish", None)]))


# ---- labels and display data ----


def test_labels_are_stable_and_name_the_scope() -> None:
    def labels() -> list[str]:
        pipeline = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"]))
        typed_events(pipeline) | RunAgent(JUDGING, event_id="txn_id")
        found: list[str] = []

        class Visitor(beam.pipeline.PipelineVisitor):
            def visit_transform(self, node: Any) -> None:
                found.append(node.full_label)

        pipeline.visit(Visitor())
        return found

    assert labels() == labels()
    assert "RunAgent(judging)/Admit" in " ".join(labels())


def test_display_data_says_what_runs() -> None:
    agent = Agent("a", model=ECHO, event_type=Txn, revision=3, budget=Budget(steps=7))
    shown = DisplayData.create_from(RunAgent(agent, event_id="txn_id", ledger="sqlite:///runs.db", scope="s")).items
    found = {item.key: item.value for item in shown}

    assert (found["agent"], found["scope"], found["revision"], found["model"]) == ("a", "s", 3, "echo")
    assert found["ledger"].startswith("sqlite:///")
    assert found["budget"].startswith("7 steps")


def test_a_pipeline_s_metrics_count_what_was_done() -> None:
    pipeline = beam.Pipeline(options=options_of(BATCH))
    _ = (
        pipeline
        | beam.Create([("k", txn("a")), ("k", txn("a")), ("k", txn("b", amount="much")), ("k", txn("c", amount=500))])
        | RunAgent(JUDGING, event_id="txn_id")
    )
    finished = pipeline.run()
    finished.wait_until_finish()

    counters = finished.metrics().query()["counters"]
    found = {
        counter.key.metric.name: counter.committed
        for counter in counters
        if counter.key.metric.namespace == "beam_agents.judging"
    }
    names = ("decided", "replayed", "failed", "duplicates", "skipped", "model_calls", "tool_calls")
    assert {name: found.get(name, 0) for name in names} == {
        "decided": 2,
        "replayed": 0,
        "failed": 1,
        "duplicates": 1,
        "skipped": 0,
        "model_calls": 2,
        "tool_calls": 0,
    }


def test_outputs_of_the_global_window_stay_there() -> None:
    out = run(JUDGING, [At(3, ("k", txn("a")))])

    assert [placed.seconds for placed in out.results] == [3]
    assert out.results[0].window == GlobalWindows.windowed_value(None).windows[0]
