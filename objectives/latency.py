"""How long does a batch take: the median over repeated batches, tokenisation left out.

    warm-up            observations of the model, by turns with the reference (the dense model; `objectives.pairs`)
    |███|███|███|  |◄──►|██████|◄──►|▒▒▒▒▒▒▒▒▒▒|◄──►|▒▒▒▒▒▒▒▒▒▒|◄──►|██████| ...
                        t0     t1   r0         r1
    absolute  = median of t1 - t0, with quartiles
    ratio     = median of the pairs (t1 - t0) / (r1 - r0) of neighbours, so what slows the machine cancels
    corrected = ratio · what the reference took when the study was created, with the quartiles of the pairs

The device is idle before t0 and has finished before t1. An observation is one batch, or for a mix of lengths one pass
over all its batches, divided by their number. Observations go on until the confidence interval of the figure is
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

from objectives.backends import BACKENDS, Forward
from objectives.clocks import clock_mhz
from objectives.inference import Conditions, Run, device_of, modes, prepare, ready
from objectives.measurement import Measurement
from objectives.median import median_interval
from objectives.objective import Direction, Subject
from objectives.pairs import Observed, observe

__all__ = ["Conditions", "Latency"]

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
        reference_conditions: How the reference is run; None runs it as the model.
        forward: What runs the model under the conditions' backend, where it has been prepared already; None prepares
            each model.
        work_clock: What counts the seconds of running that end the observations; None takes what was timed.

    Raises:
        ValueError: If `corrected` is asked for without both references, or `reference_ms` is not above 0.
    """

    conditions: Conditions
    clock: Callable[[], float] = time.perf_counter
    name: str = "latency_ms"
    reference: nn.Module | None = None
    reference_ms: float | None = None
    corrected: bool = False
    reference_conditions: Conditions | None = None
    forward: Forward | None = None
    work_clock: Callable[[], float] | None = None
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
            figures, the ratio and the reference. Of a corrected figure, percentile and throughput are corrected too.
            The source names backend, type and device.

        Raises:
            MeasurementUnavailable: If the backend cannot run the model.
            ValueError: If the model has fewer positions than the conditions have tokens.
        """
        with ExitStack() as stack:
            runs = stack.enter_context(ready(subject.model, self.conditions, self.forward))
            reference_runs = [] if self.reference is None else self._reference_runs
            if self.reference is not None:
                stack.enter_context(modes(self.reference, self._conditions_beside))
            for run in [*_repeated(reference_runs, 1), *_repeated(runs, self.conditions.warmup)]:
                run()
            observed = observe(
                runs,
                reference_runs,
                self.conditions,
                self.clock,
                related=self.corrected,
                work_clock=self.work_clock,
            )
            conditions = self._conditions(subject.model)
        absolute = self._summary(observed, conditions)
        return absolute if not observed.pairs else self._with_reference(absolute, observed)

    @cached_property
    def _reference_runs(self) -> list[Run]:
        """The reference, prepared once: compiling it again for every model would cost more than the measurement."""
        assert self.reference is not None
        with modes(self.reference, self._conditions_beside):
            return prepare(self.reference, self._conditions_beside)

    @property
    def _conditions_beside(self) -> Conditions:
        return self.reference_conditions or self.conditions

    def _summary(self, observed: Observed, conditions: dict[str, Any]) -> Measurement:
        means = observed.means
        singles = [time_ms for times_ms in observed.passes for time_ms in times_ms]
        (low, high), median = _quartiles(means), statistics.median(means)
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
            warning=self._warning(low, high, median),
        )

    def _warning(self, low: float, high: float, median: float) -> str | None:
        """What is to be said of observations with these quartiles and median."""
        spread = (high - low) / median if median > 0 else 0.0
        if spread <= WIDE:
            return None
        return (
            f"{self.name}: the inter-quartile range is {spread:.0%} of the median, above {WIDE:.0%}: "
            "the machine is busy with something else, or there are too few repeats"
        )

    def _with_reference(self, absolute: Measurement, observed: Observed) -> Measurement:
        """The same with the reference of the same window beside it, and as the corrected figure where that is asked."""
        pairs = observed.pairs
        ratio = statistics.median(pairs)
        details = {
            **absolute.details,
            "absolute": absolute.value,
            "ratio": ratio,
            "pairs": float(len(pairs)),
            "reference": statistics.median(observed.reference),
        }
        if self.reference_ms is None:
            return replace(absolute, details=details)
        details |= {"reference_at_start": self.reference_ms, "corrected": ratio * self.reference_ms}
        if not self.corrected:
            return replace(absolute, details=details)
        if absolute.value > 0 and ratio > 0:
            factor = ratio * self.reference_ms / absolute.value
            details["p95"] *= factor
            details["throughput_per_s"] /= factor
        low, high = _quartiles(pairs)
        related = replace(
            absolute,
            value=ratio,
            low=low,
            high=high,
            samples=len(pairs),
            interval=median_interval(pairs),
            details=details,
            warning=self._warning(low, high, ratio),
        )
        return related.scaled(self.reference_ms)

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


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _repeated(runs: Sequence[Run], times: int) -> list[Run]:
    return [run for _ in range(times) for run in runs]


def _describe(conditions: dict[str, Any]) -> str:
    """The number type and the device, for example `float32, cpu, 2 threads`."""
    threads = f", {conditions['threads']} threads" if "threads" in conditions else ""
    return f"{conditions['dtype']}, {conditions['device']}{threads}"
