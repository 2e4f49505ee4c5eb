"""What agents ask of the Flink runner: defaults with their reasons, and what is said when options break an agent."""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import apache_beam
from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.pipeline import AppliedPTransform, Pipeline
from apache_beam.runners.portability.flink_runner import MAGIC_HOST_NAMES, FlinkRunner
from apache_beam.runners.portability.portable_runner import PortableRunner

from beam_agents.errors import ConfigurationError
from beam_agents.ledger.base import Ledger
from beam_agents.ledger.sqlite import SqliteLedger

LONGEST_BUNDLE = 200
"""Milliseconds of bundle time from which on a warning is given: every callback of an agent waits that long."""

_LOGGER = logging.getLogger(__name__)
_LIKE_A_TYPO = 0.85
_LIKE_OURS = "force_unaligned_checkpoint_enabled"
"""An option of Flink's that looks as if one of ours were mistyped."""
_HERE = ("localhost", "127.0.0.1", "::1")


class FlinkWarning(UserWarning):
    """Options with which an agent runs badly on Flink. The message names the option and says what to change."""


@dataclass(frozen=True)
class FlinkDefault:
    """An option of the Flink runner that is set for agents on unbounded input, unless the user gives it."""

    option: str
    """As on the command line, without the dashes."""
    value: int | bool
    reason: str


DEFAULTS: tuple[FlinkDefault, ...] = (
    FlinkDefault(
        "max_bundle_time_mills",
        20,
        "every callback waits for its bundle to end, by Beam's default for a second or ten",
    ),
    FlinkDefault(
        "max_bundle_size",
        200,
        "a checkpoint waits for the bundle, and by Beam's default of 1,000 a backlog makes that seconds",
    ),
    FlinkDefault(
        "finish_bundle_before_checkpointing",
        True,
        "else results of a bundle that a checkpoint cuts wait for the next event, which on a quiet stream never comes",
    ),
    FlinkDefault(
        "checkpointing_interval",
        5_000,
        "without checkpoints Flink never restarts a job. After a crash what came since the last one is emitted again "
        "from the ledger; shorter makes that less, but each checkpoint writes some files for each operator",
    ),
    FlinkDefault(
        "unaligned_checkpoint_enabled",
        True,
        "with a backlog a checkpoint otherwise waits until all events are handled that are on their way to their keys",
    ),
    FlinkDefault(
        "externalized_checkpoints_enabled",
        True,
        "the newest checkpoint can then be resumed from when the JobManager is lost",
    ),
    FlinkDefault(
        "retain_externalized_checkpoints_on_cancellation",
        True,
        "a job that was cancelled can be resumed too",
    ),
    FlinkDefault(
        "max_parallelism",
        128,
        "it is written into savepoints and cannot change later; no later parallelism can be above it",
    ),
    FlinkDefault(
        "operator_chaining",
        False,
        "otherwise the names of operators depend on the parallelism, and a savepoint is refused at another one",
    ),
)
"""What is set for agents. State backend and parallelism are left to the cluster, the state cache is left off."""


class FlinkAgentOptions(PipelineOptions):
    """The options of Flink's Java side that agents depend on, known to Python so that defaults reach every job server.

    A bare switch means what it means to Beam: the opposite of Beam's default, so `--operator_chaining` turns chaining
    off. `--operator_chaining=true` and `=false` say it plainly.
    """

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        reasons = {default.option: default.reason for default in DEFAULTS}
        for option in ("max_bundle_time_mills", "checkpointing_interval"):
            parser.add_argument(f"--{option}", type=int, help=f"Milliseconds: {reasons[option]}.")
        parser.add_argument("--max_bundle_size", type=int, help=f"Elements: {reasons['max_bundle_size']}.")
        parser.add_argument("--shutdown_sources_after_idle_ms", type=int, help="Milliseconds: see Flink.")
        for option, bare in _SWITCHES.items():
            parser.add_argument(
                f"--{option}", nargs="?", const=bare, type=_true_or_false, help=reasons.get(option, "see Flink")
            )


_SWITCHES = {
    "finish_bundle_before_checkpointing": True,
    "unaligned_checkpoint_enabled": True,
    "externalized_checkpoints_enabled": True,
    "retain_externalized_checkpoints_on_cancellation": True,
    "operator_chaining": False,
    "allow_non_restored_state": True,
}


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def prepare_for_flink(pipeline: Pipeline, *, bounded: bool, ledger: Ledger | None) -> None:
    """Sets the defaults in the pipeline's options if it is for Flink, and says which options break an agent.

    A pipeline is for Flink when its runner is `FlinkRunner`, or `PortableRunner` with a job server, which may be
    Flink's; other job servers ignore the options.

    Args:
        pipeline: Its options are changed, but nothing that the user gave.
        bounded: Whether the agent's input is. It then runs in Flink's batch mode, which needs none of the defaults.
        ledger: Of the agent, or `None` if it has none.

    Raises:
        ConfigurationError: The options cannot work.
    """
    runner, options = pipeline.runner, pipeline.options
    portable = options.view_as(PortableOptions)
    on_flink = isinstance(runner, FlinkRunner)
    if not on_flink and (type(runner) is not PortableRunner or portable.job_endpoint == "embed"):
        return
    _check_spelling(options)
    if ledger is not None:
        _check_ledger(ledger, _loopback(portable, on_flink), portable)
    if bounded:
        if not _has_unbounded(pipeline.transforms_stack[0]):
            _check_ends(options)
        return
    if _loopback(portable, on_flink):
        _LOGGER.warning(
            "No cluster (%s): the workers run in this process and end with it. For a cluster give "
            "--flink_master=HOST:PORT and --environment_type=PROCESS",
            "--environment_type=LOOPBACK" if portable.environment_type else "no --flink_master",
        )
    set_flink_defaults(options)
    _check_options(options)


def set_flink_defaults(options: PipelineOptions) -> None:
    """Sets each of `DEFAULTS` that the user did not give, and `--streaming`."""
    options.view_as(StandardOptions).streaming = True
    agents, flink = options.view_as(FlinkAgentOptions), options.view_as(FlinkRunnerOptions)
    for default in DEFAULTS:
        view, not_given = (flink, -1) if default.option == "max_parallelism" else (agents, None)
        if getattr(view, default.option) == not_given:
            setattr(view, default.option, default.value)


def _check_options(options: PipelineOptions) -> None:
    agents = options.view_as(FlinkAgentOptions)
    bundle, interval = agents.max_bundle_time_mills, agents.checkpointing_interval
    if bundle <= 0:
        raise ConfigurationError(f"--max_bundle_time_mills={bundle!r} must be above 0; leave it out for 20 ms")
    if bundle > LONGEST_BUNDLE:
        _warn(
            f"--max_bundle_time_mills={bundle!r}: every step of an agent waits up to {bundle / 1000:g} s for its "
            "bundle to end; leave it out for 20 ms, or give 10 to 50"
        )
    if interval != -1 and interval <= 0:
        raise ConfigurationError(
            f"--checkpointing_interval={interval!r} must be above 0 (milliseconds); leave it out for 5000"
        )
    if interval == -1:
        _warn(
            "--checkpointing_interval=-1: no checkpoints unless the cluster's configuration sets them, and a job "
            "without checkpoints is not restarted when anything dies; leave it out for 5000 (milliseconds)"
        )
    if not agents.finish_bundle_before_checkpointing:
        _warn(
            "--finish_bundle_before_checkpointing=false: results of a bundle that a checkpoint cuts wait for the next "
            "event, which on a quiet stream never comes; leave it out"
        )
    if agents.allow_non_restored_state:
        _warn(
            "--allow_non_restored_state: what the savepoint holds for a changed part of the pipeline is dropped "
            "without a word, sessions and waiting events with it; leave it out (docs/flink.md: changing the code)"
        )
    cache = options.view_as(WorkerOptions).max_cache_memory_usage_mb
    if cache:
        _warn(
            f"--max_cache_memory_usage_mb={cache!r}: the cache makes small states such as an agent's slower, since it "
            "measures each value; leave it out"
        )


def _check_ends(options: PipelineOptions) -> None:
    agents = options.view_as(FlinkAgentOptions)
    checkpoints = (agents.checkpointing_interval or -1) > 0
    if options.view_as(StandardOptions).streaming and checkpoints and agents.shutdown_sources_after_idle_ms is None:
        _warn(
            "--streaming with bounded input: results come, but with checkpoints Flink keeps the job for ever; leave "
            "out --streaming, then it runs in batch mode and ends, or give --shutdown_sources_after_idle_ms=0"
        )


def _check_spelling(options: PipelineOptions) -> None:
    """Unknown options are handed on in silence, so a mistyped one would have no effect."""
    ours = [*(default.option for default in DEFAULTS), "allow_non_restored_state"]
    known = PipelineOptions([]).get_all_options()
    for name in options.get_all_options(retain_unknown_options=True):
        alike = [] if name in known or name == _LIKE_OURS else difflib.get_close_matches(name, ours, 1, _LIKE_A_TYPO)
        if alike:
            _warn(f"--{name} is no option of Flink's runner and changes nothing; --{alike[0]} is one")


def _check_ledger(ledger: Ledger, loopback: bool, portable: PortableOptions) -> None:
    if loopback:
        return
    if not ledger.durable:
        raise ConfigurationError(
            f"ledger={ledger.url!r} is kept in the memory of one worker process and lost with it, so on a cluster "
            "effects would be made twice; give ledger='sqlite:////absolute/path.db' if all workers are on one host, or "
            "run with --environment_type=LOOPBACK (no cluster)"
        )
    if not isinstance(ledger, SqliteLedger):
        return
    environment = portable.environment_type or "DOCKER"
    if environment in ("DOCKER", "beam:env:docker:v1"):
        raise ConfigurationError(
            f"ledger={ledger.url!r} with --environment_type=DOCKER (the default): the file would be inside each "
            "worker's container and be lost with it; give --environment_type=PROCESS, or a ledger that is a server"
        )
    endpoint = portable.job_endpoint or portable.view_as(FlinkRunnerOptions).flink_master
    if _host(endpoint) not in _HERE:
        _warn(
            f"ledger={ledger.url!r} on the cluster at {endpoint!r}: a SQLite ledger holds for workers on one host "
            "only, and this path must be on it; with TaskManagers on several hosts give a ledger that is a server"
        )
        return
    folder = Path(ledger.url.removeprefix("sqlite:///")).parent
    if not folder.is_dir():
        raise ConfigurationError(f"ledger={ledger.url!r}: there is no folder {str(folder)!r}; make it first")


def _loopback(portable: PortableOptions, on_flink: bool) -> bool:
    """Whether the workers are threads of the submitting process."""
    if portable.environment_type:
        return bool(portable.environment_type == "LOOPBACK")
    return on_flink and portable.view_as(FlinkRunnerOptions).flink_master in MAGIC_HOST_NAMES


def _host(endpoint: str) -> str:
    if endpoint in MAGIC_HOST_NAMES:
        return "localhost"
    return urlsplit(endpoint if "://" in endpoint else f"//{endpoint}").hostname or ""


def _has_unbounded(applied: AppliedPTransform) -> bool:
    outputs: Any = applied.outputs.values()
    return any(not output.is_bounded for output in outputs if hasattr(output, "is_bounded")) or any(
        _has_unbounded(part) for part in applied.parts
    )


def _warn(message: str) -> None:
    """Warns at the line of the user's program, which is the first that is neither this package's nor Beam's."""
    libraries = (str(Path(apache_beam.__file__).parent), str(Path(__file__).parents[1]))
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(libraries):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, FlinkWarning, stacklevel=level)
