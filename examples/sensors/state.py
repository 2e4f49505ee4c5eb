"""What is remembered of a device, and what that makes of a new window.

How the numbers were chosen, before they were tried on labelled failures:

- A window's mean is compared with the median of the two weeks before it, so that two weekends are in it. The measure
  is the robust z-score: the distance from the median in units of 1.4826 * MAD, which is the standard deviation where
  values are normal. Median and MAD stay where they are when some of the two weeks were a failure.
- 3.5 is the limit that Iglewicz and Hoaglin recommend for it (How to Detect and Handle Outliers, 1993).
- Three days must have been seen before anything is judged: less has hardly one night and one weekend day.
- An alert needs three windows in a row out of the same side, since starts and stops last an hour or two; twice the
  limit makes it critical; after an alert, the device is known for a day, the time that a shift needs to react.
"""

from __future__ import annotations

from datetime import timedelta
from statistics import median

from pydantic import BaseModel

from examples.sensors.windows import WindowStats

LIMIT = 3.5
TRAILING = timedelta(days=14)
WARM_UP = timedelta(days=3)
RECENT = 12
"""Windows that are kept whole."""
_SMALLEST_SPREAD = 0.001  # for a sensor that never moved


class Baseline(BaseModel):
    """The device's usual mean, from the windows before this one."""

    median: float
    spread: float
    """1.4826 * MAD."""
    windows: int

    def score(self, mean: float) -> float:
        """The robust z-score; above zero for a mean above the median."""
        return round((mean - self.median) / self.spread, 2)


class DeviceState(BaseModel):
    means: list[float] = []
    """One for each window of the trailing two weeks, this one included."""
    recent: list[WindowStats] = []
    """The newest windows, this one last."""
    baseline: Baseline | None = None
    """`None` until enough was seen."""
    score: float = 0.0
    """Of this window against the baseline."""


def add_window(state: DeviceState, window: WindowStats) -> DeviceState:
    """The state with one more window, which is judged by those before it."""
    size = window.end - window.start
    baseline = usual(state.means) if len(state.means) * size >= WARM_UP else None
    return DeviceState(
        means=[*state.means, window.mean][-(TRAILING // size) :],
        recent=[*state.recent, window][-RECENT:],
        baseline=baseline,
        score=baseline.score(window.mean) if baseline else 0.0,
    )


def usual(means: list[float]) -> Baseline:
    """The baseline that some windows make."""
    middle = median(means)
    spread = 1.4826 * median(abs(mean - middle) for mean in means)
    return Baseline(median=round(middle, 6), spread=round(max(spread, _SMALLEST_SPREAD), 6), windows=len(means))
