"""Errors and the closed set of control exceptions that user code may raise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beam_agents.events import RunFailure


class BeamAgentsError(Exception):
    """Base of every error of this package."""


class ConfigurationError(BeamAgentsError, ValueError):
    """A set-up that cannot work. The message names the argument and says what to change."""


class StateMismatch(BeamAgentsError, ValueError):
    """A key's state cannot be read as the agent's `state_type`."""


class LedgerError(BeamAgentsError):
    """The ledger refused a request for good (a store that is only down is waited for instead)."""


class LedgerChanged(LedgerError):
    """The job's state remembers another ledger, or more than this one holds; going on would do effects twice."""


class StoredFormUnknown(LedgerError):
    """Beam's state or the ledger holds a record that another release of this package wrote in another form.

    The job stops: to read it wrongly, or to write over it, would lose what it says.
    """


class ModelError(BeamAgentsError):
    """A model request failed.

    Args:
        message: What happened, without secrets.
        retryable: Whether the same request may succeed later (429, 5xx, a lost connection).
        retry_after: Seconds the server asked to wait, if it did.
        status: The HTTP status, if there was one.
    """

    def __init__(
        self, message: str, *, retryable: bool = False, retry_after: float | None = None, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after = retry_after
        self.status = status


class NetworkModelForbidden(ModelError):
    """A model that uses the network was asked while the switch that forbids such models is on."""


class RunFailed(BeamAgentsError):
    """Raised by `run` and `run_sync` when a run ends without an answer; `failure` has the reason and the transcript."""

    def __init__(self, failure: RunFailure[Any]) -> None:
        super().__init__(f"run {failure.run_id!r} ended as {failure.reason.value}: {failure.message}")
        self.failure = failure


# ---- control exceptions: what a tool, a validator or a workflow may raise on purpose ----


class ModelRetry(Exception):
    """Raised by a tool before it did anything: the model is told the message and may try again.

    Each one is counted against the tool's `model_retries`; one more than that ends the run in `failures`.
    In a `once` tool it states that the effect did not happen.
    """


class ToolFailed(Exception):
    """Raised by a tool: it failed for good, without effect. The model is told so and goes on without it."""


class NotCalled(Exception):
    """Raised by a tool whose call is certain to have had no effect, where the model cannot help: no permission, no
    connection. It counts as an error: the run ends as `tool_error` when there are no `retries` left, and a `once`
    call is not in doubt.
    """


class FailRun(Exception):
    """Raised by a tool, `on_event`, `skip` or a workflow: the run ends in `failures` with reason `rejected`."""


class ToolError(BeamAgentsError):
    """A tool raised or timed out. A workflow may catch it; otherwise the run ends in `failures`."""


class DeterminismError(BeamAgentsError):
    """The code asked for something else than its journal holds: it changed under an open run, or is random."""
