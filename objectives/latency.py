"""How long does a batch take: the median over repeated batches, tokenisation left out.

    warm-up            observations of the model, and after every third one of the reference (the dense model)
    |███|███|███|  |◄──►|██████|◄──►|██████|◄──►|██████|◄──►|▒▒▒▒▒▒▒▒▒▒|◄──►|██████| ...
                        t0     t1                           r0         r1
    absolute  = median of t1 - t0, with quartiles
    ratio     = absolute / median of r1 - r0        both from the same seconds, so what slows the machine cancels
    corrected = ratio · what the reference took when the study was created

The device is idle before t0 and has finished before t1. An observation is one batch, or for a mix of lengths one pass
over all its batches, divided by their number. Observations go on until the confidence interval of their median is
narrow enough, or time is up. No figure from other conditions, another device or another backend may be compared with
this one.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn

from objectives.backends import BACKENDS
from objectives.clocks import clock_mhz
from objectives.inference import Conditions, Run, device_of, modes, prepare, ready
from objectives.measurement import Measurement
from objectives.median import median_interval, relative_width
from objectives.objective import Direction, Subject

__all__ = ["Conditions", "Latency"]

REFERENCE_EVERY = 3
"""Observations of the model between two of the reference: it shall cost no more than the model itself."""

WIDE = 0.1
"""Inter-quartile range as a share of the median above which a latency carries a warning, as in torch's benchmarks."""


@dataclass(frozen=True)
class Latency:
    """Median time of one batch, in milliseconds.

    Attributes:
        conditions: Batch, tokens, threads, warm-up, repeats, number type and backend.
        clock: A monotonic clock in seconds.
        name: Name of the quantity: `latency_ms`, or another where a study has several.
        reference: The dense model, which is measured in the same window; None measures none.
        reference_ms: Its latency when the study was created, in milliseconds; None where there is none: then nothing
            can be corrected.
        corrected: Whether the value is the corrected figure; else it is the absolute one.

    Raises:
        ValueError: If `corrected` is asked for without both references, or `reference_ms` is not above 0.
    """

    conditions: Conditions
    clock: Callable[[], float] = time.perf_counter
    name: str = "latency_ms"
    reference: nn.Module | None = None
    reference_ms: float | None = None
    corrected: bool = False
    unit: ClassVar[str] = "ms"
    direction: ClassVar[Direction] = "minimize"
    needs_scores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.reference_ms is not None and not self.reference_ms > 0:
            raise ValueError(f"reference_ms is {self.reference_ms}: a reference takes more than 0 ms")
        if self.corrected and (self.reference is None or self.reference_ms is None):
            raise ValueError(f"{self.name} is to be corrected without a reference: give reference and reference_ms")

    def measure(self, subject: Subject) -> Measurement:
        """Run the model on random tokens and time it.

        Returns:
            The median in milliseconds per batch, with its quartiles, 95 % confidence interval and 95th percentile of
            single batches; `details` hold the throughput in sequences per second and, where there is a reference, both
            figures, the ratio and the reference. The source names backend, type and device.

        Raises:
            MeasurementUnavailable: If the backend cannot run the model.
            ValueError: If the model has fewer positions than the conditions have tokens.
        """
        with ExitStack() as stack:
            runs = stack.enter_context(ready(subject.model, self.conditions))
            reference_runs = [] if self.reference is None else self._reference_runs
            if self.reference is not None:
                stack.enter_context(modes(self.reference, self.conditions))
            for run in [*_repeated(reference_runs, 1), *_repeated(runs, self.conditions.warmup)]:
                run()
            observed, reference = self._observe(runs, reference_runs)
            conditions = self._conditions(subject.model)
        absolute = self._summary(observed, conditions)
        return absolute if not reference else self._with_reference(absolute, reference)

    @cached_property
    def _reference_runs(self) -> list[Run]:
        """The reference, prepared once: compiling it again for every model would cost more than the measurement."""
        assert self.reference is not None
        with modes(self.reference, self.conditions):
            return prepare(self.reference, self.conditions)

    def _observe(self, runs: Sequence[Run], reference_runs: Sequence[Run]) -> tuple[list[list[float]], list[float]]:
        """Milliseconds of each batch of each pass over the model, and of each pass over the reference."""
        passes: list[list[float]] = []
        reference: list[float] = []
        spent_ms, look = 0.0, self.conditions.repeats
        while True:
            passes.append([self._time_ms(run) for run in runs])
            spent_ms += sum(passes[-1])
            if reference_runs and len(passes) % REFERENCE_EVERY == 0:
                times_ms = [self._time_ms(run) for run in reference_runs]
                reference.append(statistics.fmean(times_ms))
                spent_ms += sum(times_ms)
            if len(passes) >= look:
                means = [statistics.fmean(times_ms) for times_ms in passes]
                if self._is_enough(means) or spent_ms >= 1000 * self.conditions.limit_s:
                    return passes, reference
                look += max(1, look // 2)  # seldom: who looks often stops at a narrow interval by luck

    def _is_enough(self, means: Sequence[float]) -> bool:
        if self.conditions.interval is None:
            return True
        return relative_width(median_interval(means), statistics.median(means)) <= self.conditions.interval

    def _time_ms(self, run_batch: Callable[[], None]) -> float:
        start_s = self.clock()
        run_batch()
        return (self.clock() - start_s) * 1000

    def _summary(self, passes: Sequence[Sequence[float]], conditions: dict[str, Any]) -> Measurement:
        means = [statistics.fmean(times_ms) for times_ms in passes]
        singles = [time_ms for times_ms in passes for time_ms in times_ms]
        low, median, high = statistics.quantiles(means, n=4, method="inclusive")
        spread = (high - low) / median if median > 0 else 0.0
        return Measurement(
            median,
            self.unit,
            f"{BACKENDS[self.conditions.backend].title}, {_describe(conditions)}",
            low=low,
            high=high,
            samples=len(means),
            interval=median_interval(means),
            details={
                "p95": statistics.quantiles(singles, n=20, method="inclusive")[-1],
                **({"throughput_per_s": 1000 * self.conditions.batch / median} if median > 0 else {}),
            },
            conditions=conditions,
            warning=None
            if spread <= WIDE
            else f"{self.name}: the inter-quartile range is {spread:.0%} of the median, above {WIDE:.0%}: "
            "the machine is busy with something else, or there are too few repeats",
        )

    def _with_reference(self, absolute: Measurement, times_ms: Sequence[float]) -> Measurement:
        """The same with the reference of the same window beside it, and as the corrected figure where that is asked."""
        reference_ms = statistics.median(times_ms)
        ratio = absolute.value / reference_ms
        details = {**absolute.details, "absolute": absolute.value, "ratio": ratio, "reference": reference_ms}
        if self.reference_ms is None:
            return replace(absolute, details=details)
        details |= {"reference_at_start": self.reference_ms, "corrected": ratio * self.reference_ms}
        noted = replace(absolute, details=details)
        return noted.scaled(self.reference_ms / reference_ms) if self.corrected else noted

    def _conditions(self, model: nn.Module) -> dict[str, Any]:
        """Everything that the figure depends on, as plain values; what cannot be read is left out."""
        device = device_of(model)
        conditions = {
            "batch": self.conditions.batch,
            "tokens": self.conditions.tokens if not self.conditions.lengths else "mix",
            "mean_tokens": statistics.fmean(self.conditions.lengths) if self.conditions.lengths else None,
            "dtype": self.conditions.dtype,
            "threads": torch.get_num_threads() if device.type == "cpu" else None,
            "backend": self.conditions.backend,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "clock_mhz": clock_mhz(device),
        }
        return {name: value for name, value in conditions.items() if value is not None}


def _repeated(runs: Sequence[Run], times: int) -> list[Run]:
    return [run for _ in range(times) for run in runs]


def _describe(conditions: dict[str, Any]) -> str:
    """The number type and the device, for example `float32, cpu, 2 threads`."""
    threads = f", {conditions['threads']} threads" if "threads" in conditions else ""
    return f"{conditions['dtype']}, {conditions['device']}{threads}"
