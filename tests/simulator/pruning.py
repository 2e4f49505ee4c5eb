"""An operator prunes the ledger: what must be left, and what was there before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from beam_agents.ledger.commands import Prune
from beam_agents.ledger.records import Effect, Run, RunKey

if TYPE_CHECKING:
    from tests.simulator.watch import Watch


@dataclass
class Gone:
    """What a run was before it was pruned."""

    run: Run
    effects: tuple[Effect, ...]
    emitted: bool
    """Whether its end was emitted, and is not taken back."""
    forgotten: bool = False


class Pruning:
    """Prunes, and remembers what is gone.

    Attributes:
        gone: Runs that were pruned.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.gone: dict[RunKey, Gone] = {}

    def prune(self, command: Prune, emitted: set[str]) -> None:
        """Prunes, and looks at what is left.

        Args:
            command: What is pruned.
            emitted: The runs whose end is emitted and not taken back.
        """
        watch, ledger = self._watch, self._watch.ledger
        before = {run.key: (run, ledger.effects(run.key)) for run in ledger.all_runs()}
        heads = {key.head: ledger.head(key.head) for key in before}
        [answer] = ledger.apply([command])
        watch.say("operator", f"{command} -> {answer}")
        for key, (run, effects) in before.items():
            left = ledger.run(key)
            if left == run:
                continue
            if run.end is None or run.doubtful:
                watch.violate(f"{key.run_id} was pruned, but is {'in doubt' if run.end else 'open'}")
            if left is None:
                watch.counts["forgotten"] += 1
                self.gone.setdefault(key, Gone(run, effects, key.run_id in emitted)).forgotten = True
            else:
                watch.counts["pruned"] += 1
                self.gone[key] = Gone(run, effects, key.run_id in emitted)
        for head_key, head in heads.items():
            after = ledger.head(head_key)
            if head is None or after is None or replace(after, forgotten_to=head.forgotten_to) != head:
                watch.violate(f"pruning has changed the head of {head_key.key}")

    def takes_back(self, emitted: set[str]) -> None:
        """The job has gone back to an older state; only these runs are still emitted."""
        for key, gone in self.gone.items():
            gone.emitted = gone.emitted and key.run_id in emitted
