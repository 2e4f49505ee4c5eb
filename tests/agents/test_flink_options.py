"""What agents ask of the Flink runner reaches it, unless the user said otherwise; what breaks an agent is named."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from agent_kit import JUDGING
from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions, StandardOptions
from apache_beam.portability.api import beam_job_api_pb2
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.transforms.periodicsequence import PeriodicImpulse

from beam_agents import ConfigurationError, RunAgent
from beam_agents.ledger.memory import MemoryLedger
from beam_agents.transforms.flink import DEFAULTS, FlinkAgentOptions, FlinkWarning

OPTION = beam_job_api_pb2.PipelineOptionType
JAVA_OPTIONS = [
    beam_job_api_pb2.PipelineOptionDescriptor(name=name, type=kind, default_value=default)
    for name, kind, default in [
        ("max_bundle_time_mills", OPTION.INTEGER, ""),
        ("checkpointing_interval", OPTION.INTEGER, "-1"),
        ("finish_bundle_before_checkpointing", OPTION.BOOLEAN, "false"),
        ("unaligned_checkpoint_enabled", OPTION.BOOLEAN, "false"),
        ("externalized_checkpoints_enabled", OPTION.BOOLEAN, "false"),
        ("retain_externalized_checkpoints_on_cancellation", OPTION.BOOLEAN, "false"),
        ("operator_chaining", OPTION.BOOLEAN, "true"),
        ("max_parallelism", OPTION.INTEGER, "-1"),
    ]
]
"""As a Flink job server describes them."""
PROCESS = ["--environment_type=PROCESS", "--environment_options=process_command=beam-agents-worker"]
FLINK = ["--runner=FlinkRunner", "--flink_master=localhost:8081", *PROCESS]
PORTABLE = ["--runner=PortableRunner", "--job_endpoint=localhost:8099", *PROCESS]


class JobService:
    """Answers what a submission asks first."""

    def DescribePipelineOptions(self, request: Any, timeout: float) -> Any:
        return beam_job_api_pb2.DescribePipelineOptionsResponse(options=JAVA_OPTIONS)


class UberJarService(JobService):
    """Knows none of the Java options."""

    def DescribePipelineOptions(self, request: Any, timeout: float) -> Any:
        return beam_job_api_pb2.DescribePipelineOptionsResponse()


def with_agent(options: PipelineOptions | list[str], *, bounded: bool = False, ledger: Any = None) -> PipelineOptions:
    """The options of a pipeline that has an agent and is not run."""
    options = PipelineOptions(options) if isinstance(options, list) else options
    pipeline = beam.Pipeline(options=options)
    source = beam.Create([0]) if bounded else PeriodicImpulse(fire_interval=3600)
    events = pipeline | source | beam.Map(lambda _: ("k", {"txn_id": "a"}))
    events | RunAgent(JUDGING, event_id="txn_id", ledger=ledger)
    return pipeline.options


def sent(options: PipelineOptions, service: Any = None, *, retain_unknown: bool = False) -> dict[str, Any]:
    """What the job server is given at submission."""
    struct = JobServiceHandle(service or JobService(), options, retain_unknown).get_pipeline_options()
    return {key.removeprefix("beam:option:").removesuffix(":v1"): value for key, value in struct.items()}


def as_sent(value: int | bool) -> Any:
    return value if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("runner", [FLINK, PORTABLE], ids=["FlinkRunner", "PortableRunner"])
@pytest.mark.parametrize("service", [JobService(), UberJarService()], ids=["job server", "uber jar"])
def test_defaults_reach_the_job_server_unnamed(runner: list[str], service: Any) -> None:
    options = sent(with_agent(runner), service, retain_unknown=isinstance(service, UberJarService))

    assert {default.option: options[default.option] for default in DEFAULTS} == {
        default.option: as_sent(default.value) for default in DEFAULTS
    }
    assert options["streaming"] is True


def test_what_the_user_gives_stays() -> None:
    given = {
        "max_bundle_time_mills": 40,
        "checkpointing_interval": 10_000,
        "externalized_checkpoints_enabled": False,
        "retain_externalized_checkpoints_on_cancellation": False,
        "max_parallelism": 32,
        "operator_chaining": True,
    }
    flags = [f"--{name}={str(value).lower()}" for name, value in given.items()]

    for options in (PipelineOptions([*FLINK, *flags]), PipelineOptions(FLINK, **given)):
        reached = sent(with_agent(options))
        assert {name: reached[name] for name in given} == {name: as_sent(value) for name, value in given.items()}
        assert reached["finish_bundle_before_checkpointing"] is True


def test_a_bare_switch_means_what_it_means_to_beam() -> None:
    view = PipelineOptions(["--operator_chaining", "--finish_bundle_before_checkpointing"]).view_as(FlinkAgentOptions)

    assert (view.operator_chaining, view.finish_bundle_before_checkpointing) == (False, True)


def test_a_switch_is_true_or_false(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        with_agent([*FLINK, "--operator_chaining=of"])

    assert "argument --operator_chaining: 'of' is neither true nor false" in capsys.readouterr().err


@pytest.mark.parametrize("runner", ["FnApiRunner", "BundleBasedDirectRunner", "PrismRunner"])
def test_other_runners_are_asked_for_nothing(runner: str) -> None:
    options = with_agent([f"--runner={runner}"], ledger="memory:")

    assert not options.view_as(StandardOptions).streaming
    view = options.view_as(FlinkAgentOptions)
    assert {getattr(view, default.option, None) for default in DEFAULTS} == {None}
    assert options.view_as(FlinkRunnerOptions).max_parallelism == -1


def test_bounded_input_is_left_in_batch_mode() -> None:
    reached = sent(with_agent(FLINK, bounded=True))

    assert "max_bundle_time_mills" not in reached
    assert reached["streaming"] is False


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--max_bundle_time_mills=1000", "waits up to 1 s for its bundle to end; leave it out for 20 ms"),
        ("--checkpointing_interval=-1", "not restarted when anything dies; leave it out for 5000"),
        ("--finish_bundle_before_checkpointing=false", "wait for the next event"),
        ("--max_cache_memory_usage_mb=64", "the cache makes small states such as an agent's slower"),
        ("--allow_non_restored_state", "sessions and waiting events with it; leave it out"),
    ],
)
def test_options_that_harm_an_agent_are_named(option: str, says: str) -> None:
    with pytest.warns(FlinkWarning, match=re.escape(says)) as caught:
        with_agent([*FLINK, option])

    assert [str(warning.message).startswith(option) for warning in caught] == [True]
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "option", ["--max_bundle_time_mills=0", "--max_bundle_time_mills=-1", "--checkpointing_interval=0"]
)
def test_options_that_cannot_work_are_refused(option: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{option} must be above 0.*; leave it out for"):
        with_agent([*FLINK, option])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--max_bundle_time_millis=50", "max_bundle_time_mills"),
        ("--checkpoint_interval=50", "checkpointing_interval"),
        ("--operators_chaining", "operator_chaining"),
    ],
)
def test_a_mistyped_option_is_named(typed: str, meant: str) -> None:
    name = typed.split("=")[0]
    with pytest.warns(FlinkWarning, match=f"^{name} is no option of Flink's runner .*; --{meant} is one$"):
        with_agent([*FLINK, typed])


def test_other_options_of_flink_are_not_taken_for_typing_errors() -> None:
    names = [
        "checkpointing_mode",
        "force_unaligned_checkpoint_enabled",
        "max_bundle_size",
        "savepoint_path",
        "object_reuse",
    ]

    with_agent([*FLINK, *(f"--{name}=1" for name in names)])


def test_bounded_input_with_streaming_and_checkpoints_does_not_end() -> None:
    streaming = [*FLINK, "--streaming", "--checkpointing_interval=2000"]

    with pytest.warns(FlinkWarning, match="--streaming with bounded input: .* leave out --streaming"):
        with_agent(streaming, bounded=True)
    with_agent([*FLINK, "--streaming"], bounded=True)
    with_agent([*streaming, "--shutdown_sources_after_idle_ms=0"], bounded=True)


def test_bounded_input_beside_a_stream_is_as_it_should_be() -> None:
    pipeline = beam.Pipeline(options=PipelineOptions([*FLINK, "--streaming", "--checkpointing_interval=2000"]))
    pipeline | PeriodicImpulse(fire_interval=3600)

    events = pipeline | beam.Create([("k", {"txn_id": "a"})])
    outputs = events | RunAgent(JUDGING, event_id="txn_id")

    assert outputs.results.is_bounded


@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("ledger", ["memory:", MemoryLedger("test")], ids=["url", "instance"])
def test_a_ledger_in_memory_is_refused_on_a_cluster(ledger: Any, bounded: bool) -> None:
    with pytest.raises(ConfigurationError, match=r"ledger='memory:.*' is kept in the memory of one worker.*; give "):
        with_agent(FLINK, ledger=ledger, bounded=bounded)


@pytest.mark.parametrize(
    "flags",
    [
        ["--runner=FlinkRunner"],
        ["--runner=FlinkRunner", "--flink_master=[local]"],
        [*FLINK[:2], "--environment_type=LOOPBACK"],
    ],
    ids=["auto", "local", "loopback"],
)
def test_without_a_cluster_any_ledger_will_do_and_it_is_said(
    flags: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "beam_agents.transforms.flink"):
        with_agent(flags, ledger="memory:")

    assert [record.getMessage().split(" (")[0] for record in caplog.records] == ["No cluster"]


def test_a_sqlite_ledger_in_a_container_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"--environment_type=DOCKER .the default.: .* give --environment_type="
    ):
        with_agent(FLINK[:2], ledger=f"sqlite:///{tmp_path}/runs.db")


def test_a_sqlite_ledger_for_several_hosts_is_warned_of(tmp_path: Path) -> None:
    flags = ["--runner=FlinkRunner", "--flink_master=http://flink.example:8081", *PROCESS]

    with pytest.warns(FlinkWarning, match=r"ledger='sqlite:.*'http://flink.example:8081'.* on one host only"):
        with_agent(flags, ledger=f"sqlite:///{tmp_path}/runs.db")


def test_a_sqlite_ledger_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no folder .*missing'; make it first"):
        with_agent(PORTABLE, ledger=f"sqlite:///{tmp_path}/missing/runs.db")


def test_the_page_has_the_defaults_and_their_reasons() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "flink.md").read_text(encoding="utf-8")
    rows = [f"| `--{each.option}` | `{str(each.value).lower()}` | {each.reason} |" for each in DEFAULTS]

    assert "\n| --- | --- | --- |\n" + "\n".join(rows) + "\n\n" in page
