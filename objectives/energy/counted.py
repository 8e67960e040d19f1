"""What energy does one inference take, by a counter of the device.

    warm-up         ◄────────────── at least window_s ──────────────►
    |███|███|███|  read  |████|████|████|████| ... |████|████|  read
                   E0                                           E1

    energy per inference = (E1 - E0) / (batches · sequences per batch)

Counters tick every 1 to 100 ms and frequent reading disturbs them, so there is one reading at each end of a window of
seconds. The counter sees the whole board or socket: idle power and whatever else runs there are in the figure.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from objectives.energy.meter import Meter
from objectives.inference import Conditions, Run, ready
from objectives.measurement import Measurement, MeasurementUnavailable
from objectives.objective import Direction, Subject


@dataclass(frozen=True)
class Energy:
    """Energy of one inference (one sequence of a batch), in millijoules, measured.

    Attributes:
        conditions: Batch, tokens, threads and warm-up.
        meter: Counter of the device that the model is on.
        window_s: Seconds that the counter is read over, above 0; the last batch that starts within it is finished.
        clock: A monotonic clock in seconds.

    Raises:
        ValueError: If `window_s` is not above 0.

    Reference:
        Yang et al. 2024, "Part-time Power Measurements: nvidia-smi's Lack of Attention", for the window.
    """

    conditions: Conditions
    meter: Meter
    window_s: float
    clock: Callable[[], float] = time.perf_counter
    name: ClassVar[str] = "energy_mj"
    unit: ClassVar[str] = "mJ"
    direction: ClassVar[Direction] = "minimize"
    needs_scores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.window_s > 0:
            raise ValueError(f"window_s is {self.window_s}: a counter is read over more than 0 seconds")

    def measure(self, subject: Subject) -> Measurement:
        """Run the model on random tokens for the window and divide what the counter counted.

        Returns:
            Millijoules per sequence; `samples` is the number of sequences.

        Raises:
            MeasurementUnavailable: If the counter cannot be read or did not move.
            ValueError: If the model has fewer positions than the conditions have tokens.
        """
        with ready(subject.model, self.conditions) as runs:
            for _ in range(self.conditions.warmup):
                for run in runs:
                    run()
            start_mj = self.meter.read_mj()
            batches = self._run_for_window(runs)
            spent_mj = self.meter.read_mj() - start_mj
        if not spent_mj > 0:
            raise MeasurementUnavailable(
                f"the energy counter {self.meter.source!r} did not move in {self.window_s} s of inference "
                f"({spent_mj} mJ counted): lengthen the window, or take the energy source 'model'"
            )
        inferences = batches * self.conditions.batch
        return Measurement(spent_mj / inferences, self.unit, self.meter.source, samples=inferences)

    def _run_for_window(self, runs: Sequence[Run]) -> int:
        """Run whole passes over the batches until the window has passed, at least one; return how many batches."""
        end_s = self.clock() + self.window_s
        batches = 0
        while not batches or self.clock() < end_s:
            for run in runs:
                run()
            batches += len(runs)
        return batches
