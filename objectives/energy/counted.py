"""What energy does one inference take, by a counter of the device.

    idle, now and then      warm-up      window 1: at least window_s          window 2 ...
    read ── idle_s ── read  |███|███|    read |████|████| ... |████| read     read |████| ... |████| read
                                         E0                          E1

    gross = (E1 - E0) / (batches · sequences per batch)                       the median over the windows
    net   = gross - idle power · seconds of the window / (batches · sequences per batch)

Counters tick every 1 to 100 ms and frequent reading disturbs them, so there is one reading at each end of a window of
seconds. The counter sees the whole board or socket: idle power and whatever else runs there are in the gross figure,
which is the value; what net leaves out is the power of the same device while this process rests.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from objectives.energy.meter import Meter
from objectives.inference import Conditions, Run, ready
from objectives.measurement import Measurement, MeasurementUnavailable
from objectives.objective import Direction, Subject

IDLE_FOR_S = 600.0
"""Seconds that a measurement of the idle power stands for."""


@dataclass(frozen=True)
class Energy:
    """Energy of one inference (one sequence of a batch), in millijoules, measured.

    Attributes:
        conditions: Batch, tokens, threads and warm-up.
        meter: Counter of the device that the model is on.
        window_s: Seconds that the counter is read over, above 0; the last batch that starts within it is finished.
        clock: A monotonic clock in seconds.
        windows: How many such windows follow each other, at least 1; their spread is that of the value.
        idle_s: Seconds of rest that the idle power is measured over, when it is needed and again every `IDLE_FOR_S`;
            0 measures none, and there is no net figure.
        sleep: Rests so many seconds.

    Raises:
        ValueError: If `window_s` is not above 0, `windows` is less than 1 or `idle_s` is negative.

    Reference:
        Yang et al. 2024, "Part-time Power Measurements: nvidia-smi's Lack of Attention", for the window.
    """

    conditions: Conditions
    meter: Meter
    window_s: float
    clock: Callable[[], float] = time.perf_counter
    windows: int = 1
    idle_s: float = 0.0
    sleep: Callable[[float], None] = time.sleep
    _idle: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    name: ClassVar[str] = "energy_mj"
    unit: ClassVar[str] = "mJ"
    direction: ClassVar[Direction] = "minimize"
    needs_scores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.window_s > 0:
            raise ValueError(f"window_s is {self.window_s}: a counter is read over more than 0 seconds")
        if self.windows < 1:
            raise ValueError(f"windows is {self.windows}: energy is measured in at least 1")
        if not self.idle_s >= 0:
            raise ValueError(f"idle_s is {self.idle_s}: a rest lasts at least 0 seconds")

    def measure(self, subject: Subject) -> Measurement:
        """Run the model on random tokens for the windows and divide what the counter counted.

        Returns:
            Gross millijoules per sequence, the median of the windows, with their quartiles where there are several;
            `samples` is the number of sequences. `details` hold `gross`, the number of windows and, where idle power is
            measured, `net` (millijoules per sequence, below 0 where the device used less than at rest) and `idle_w`.

        Raises:
            MeasurementUnavailable: If the counter cannot be read, did not move or went backwards.
            ValueError: If the model has fewer positions than the conditions have tokens.
        """
        idle_w = self._idle_w()
        with ready(subject.model, self.conditions) as runs:
            for _ in range(self.conditions.warmup):
                for run in runs:
                    run()
            windows = [self._window(runs) for _ in range(self.windows)]
        gross = [window.spent_mj / window.inferences for window in windows]
        details = {"gross": statistics.median(gross), "windows": float(self.windows)}
        if idle_w is not None:
            net = [(window.spent_mj - 1000 * idle_w * window.seconds) / window.inferences for window in windows]
            details |= {"net": statistics.median(net), "idle_w": idle_w}
        low, high = (None, None) if len(gross) == 1 else statistics.quantiles(gross, n=4, method="inclusive")[::2]
        return Measurement(
            statistics.median(gross),
            self.unit,
            self.meter.source,
            low=low,
            high=high,
            samples=sum(window.inferences for window in windows),
            details=details,
        )

    def _window(self, runs: Sequence[Run]) -> "_Window":
        """Run whole passes over the batches until the window has passed, at least one."""
        start_mj, start_s = self.meter.read_mj(), self.clock()
        batches, now_s = 0, start_s
        while not batches or now_s < start_s + self.window_s:
            for run in runs:
                run()
            batches += len(runs)
            now_s = self.clock()
        spent_mj = self.meter.read_mj() - start_mj
        if not spent_mj > 0:
            how = "went backwards (it was reset)" if spent_mj < 0 else "did not move"
            raise MeasurementUnavailable(
                f"the energy counter {self.meter.source!r} {how} in {self.window_s} s of inference "
                f"({spent_mj} mJ counted): lengthen the window, or take the energy source 'model'"
            )
        return _Window(spent_mj, now_s - start_s, batches * self.conditions.batch)

    def _idle_w(self) -> float | None:
        """Watts of the device at rest, measured anew after a while: a warm device draws more; None where not asked."""
        if not self.idle_s:
            return None
        start_s = self.clock()
        if not self._idle or start_s - self._idle["at_s"] > IDLE_FOR_S:
            start_mj = self.meter.read_mj()
            self.sleep(self.idle_s)
            spent_mj, end_s = self.meter.read_mj() - start_mj, self.clock()
            self._idle.update(at_s=end_s, watts=max(0.0, spent_mj) / 1000 / (end_s - start_s))
        return self._idle["watts"]


@dataclass(frozen=True)
class _Window:
    """What was counted in one window."""

    spent_mj: float
    seconds: float
    inferences: int
