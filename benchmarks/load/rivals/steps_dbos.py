"""DBOS on its SQLite system database: a durable workflow of steps."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dbos import DBOS, SetWorkflowID

from benchmarks.load.rivals.step_run import RESULT, WARM_STEPS, StepRun, main, measured


def run(file: Path, steps: int) -> StepRun:
    """One run."""
    DBOS(config={"name": "steps", "system_database_url": f"sqlite:///{file}", "log_level": "ERROR"})

    @DBOS.step()
    async def look_up(number: int) -> str:
        return RESULT

    @DBOS.workflow()
    async def look_all_up(wanted: int) -> int:
        return sum([len(await look_up(number)) for number in range(wanted)])

    def start(name: str, wanted: int) -> None:
        async def whole() -> int:
            with SetWorkflowID(name):
                return await look_all_up(wanted)

        got = asyncio.run(whole())
        if got != wanted * len(RESULT):
            raise RuntimeError(f"{got} characters of {wanted} steps")

    DBOS.launch()
    start("warm", WARM_STEPS)
    ran = measured(file, lambda: start("measured", steps))
    DBOS.destroy()
    return ran


if __name__ == "__main__":
    main(run)
