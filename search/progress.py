"""Progress for people: what is being done, how far it is, the best so far and the time left.

On a terminal two bars stay in place: the study and the stage at hand. Elsewhere (a log file) each preparation stage and
each trial is one line.
"""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from search.records import Record

PREPARATION = -1
"""Stands for the preparation where a trial's number is expected."""


class Display:
    """Shows how a search goes on. Use as a context manager.

    Args:
        console: Where to.
        metric: Name of the task metric.
        total: Trials that the study shall have.
    """

    def __init__(self, console: Console, *, metric: str, total: int) -> None:
        self._console = console
        self._metric = metric
        self._scored: list[Record] = []
        self._start = time.perf_counter()
        self._finished = 0
        self._stage = ""
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[extra]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._study_bar = self._bars.add_task("study", total=total, extra="", visible=False)
        self._stage_bar = self._bars.add_task("", total=1, extra="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def stage(self, trial: int, name: str, done: int, total: int) -> None:
        """Show the step of a stage, of a trial or of the preparation."""
        what = f"preparing: {name}" if trial == PREPARATION else f"trial {trial}: {name}"
        if what != self._stage:
            self._stage = what
            if trial == PREPARATION and not self._console.is_terminal:
                self._console.print(what)
        self._bars.update(self._stage_bar, description=what, completed=done, total=total)

    def known(self, records: tuple[Record, ...], total: int) -> None:
        """Take up what the study holds already, and start the clock of the time left."""
        for record in records:
            self._remember(record)
        self._start = time.perf_counter()
        self._bars.update(self._study_bar, visible=True, completed=len(records), total=total, extra=self._best_so_far())

    def finished(self, record: Record, completed: int, total: int) -> None:
        """Show what became of a trial."""
        self._finished += 1
        self._remember(record)
        left = (total - completed) * (time.perf_counter() - self._start) / self._finished
        summary = f"{self._best_so_far()}, {_minutes(left)} left"
        self._bars.update(self._study_bar, completed=completed, total=total, extra=summary)
        self._console.print(
            f"[{completed}/{total}] {escape(self._line(record))}; {escape(summary)}", highlight=False, soft_wrap=True
        )

    def note(self, text: str) -> None:
        """Show a sentence."""
        self._console.print(escape(text), style="yellow", highlight=False, soft_wrap=True)

    def _remember(self, record: Record) -> None:
        if record.state == "complete" and self._metric in record.quantities:
            self._scored.append(record)

    def _best_so_far(self) -> str:
        """The smallest model that keeps 97 % of the dense metric."""
        dense = next((record for record in self._scored if record.role == "dense"), None)
        if dense is None:
            return "the dense model is not scored yet"
        enough = 0.97 * dense.value(self._metric)
        good = [record for record in self._scored if record.feasible and record.value(self._metric) >= enough]
        best = min(good, key=lambda record: record.value("encoder_share"), default=None)
        if best is None:
            return "no model keeps 97 % of dense and the constraints yet"
        return (
            f"smallest with 97 % of dense: {best.value('encoder_share'):.0%} of the encoder at "
            f"{self._metric} {best.value(self._metric):.3f} (trial {best.trial})"
        )

    def _line(self, record: Record) -> str:
        if record.state != "complete":
            return f"trial {record.trial} failed: {record.failure}"
        parts = [f"trial {record.trial} ({record.role})"]
        if self._metric in record.quantities:
            parts.append(f"{self._metric} {record.value(self._metric):.3f}")
        parts.append(f"{record.value('encoder_share'):.0%} of the encoder")
        parts.append(f"{record.value('latency_ms'):.1f} ms")
        if record.answered_from is not None:
            parts.append(f"same plan as trial {record.answered_from}")
        if not record.feasible:
            parts.append("breaks a constraint")
        return ", ".join(parts)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
