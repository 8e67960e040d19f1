"""How long does a batch take: the median over repeated batches, tokenisation left out.

    warm-up              repeat 1    repeat 2          repeat n
    |███|███|███|  |◄──►|██████|◄──►|██████|◄──► ... |██████|
                        t0     t1                          median of t1 - t0, with quartiles

The device is idle before t0 and has finished before t1. No figure from other conditions, another device or another
backend may be compared with this one.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from objectives.inference import Conditions, device_of, ready
from objectives.measurement import Measurement
from objectives.objective import Direction, Subject

__all__ = ["Conditions", "Latency"]


@dataclass(frozen=True)
class Latency:
    """Median time of one batch, in milliseconds.

    Attributes:
        conditions: Batch, tokens, threads, warm-up and repeats.
        clock: A monotonic clock in seconds.
    """

    conditions: Conditions
    clock: Callable[[], float] = time.perf_counter
    name: ClassVar[str] = "latency_ms"
    unit: ClassVar[str] = "ms"
    direction: ClassVar[Direction] = "minimize"
    needs_scores: ClassVar[bool] = False

    def measure(self, subject: Subject) -> Measurement:
        """Run the model on random tokens and time it.

        Returns:
            The median in milliseconds per batch, with the quartiles; the source names backend, type and device.

        Raises:
            ValueError: If the model has fewer positions than the conditions have tokens.
        """
        with ready(subject.model, self.conditions) as run_batch:
            for _ in range(self.conditions.warmup):
                run_batch()
            times_ms = [self._time_ms(run_batch) for _ in range(self.conditions.repeats)]
            source = f"eager torch, {_describe(subject.model)}"
        low, median, high = statistics.quantiles(times_ms, n=4, method="inclusive")
        return Measurement(median, self.unit, source, low=low, high=high, samples=len(times_ms))

    def _time_ms(self, run_batch: Callable[[], None]) -> float:
        start_s = self.clock()
        run_batch()
        return (self.clock() - start_s) * 1000


def _describe(model: nn.Module) -> str:
    """The number type and the device, for example `float32, cpu, 2 threads`."""
    device = device_of(model)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    if device.type == "cuda":
        return f"{dtype}, {torch.cuda.get_device_name(device)}"
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{dtype}, {device.type}{threads}"
