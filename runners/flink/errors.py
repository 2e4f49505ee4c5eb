"""What can go wrong with a Flink cluster."""

from __future__ import annotations


class FlinkError(RuntimeError):
    """Something is wrong with a Flink cluster or a job on it. The message says what to change."""


class FlinkUnavailable(FlinkError):
    """Something that a Flink cluster is made of is missing. The message says what to install."""


class ClusterError(FlinkError):
    """A cluster could not be started or is not what was asked for."""


class RestError(FlinkError):
    """The JobManager cannot be reached, or refused. The message has its reason."""


class SubmitFailed(FlinkError):
    """A program's job did not get to work. The message has what the program said and why the job failed."""
