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

from search.events import ended
from search.records import PREPARATION, Record, StudyRecord
from search.sentences import best_so_far, minutes, outcome


class Display:
    """Shows how a search goes on. Use as a context manager.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._metric = ""
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
        self._study_bar = self._bars.add_task("study", total=None, extra="", visible=False)
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

    def known(self, study: StudyRecord) -> None:
        """Take up what the study holds already, and start the clock of the time left."""
        self._metric = study.definition.task.metric
        for record in study.complete:
            self._remember(record)
        self._start = time.perf_counter()
        total, complete = study.definition.engine.trials, len(study.complete)
        self._bars.update(
            self._study_bar,
            visible=True,
            completed=complete,
            total=total,
            extra=best_so_far(self._scored, self._metric),
        )

    def finished(self, record: Record, completed: int, total: int) -> None:
        """Show what became of a trial."""
        self._finished += 1
        self._remember(record)
        left = (total - completed) * (time.perf_counter() - self._start) / self._finished
        summary = f"{best_so_far(self._scored, self._metric)}, {minutes(left)} left"
        self._bars.update(self._study_bar, completed=completed, total=total, extra=summary)
        line = outcome(ended(record, completed, total), self._metric)
        self._console.print(
            f"[{completed}/{total}] {escape(line)}; {escape(summary)}",
            highlight=False,
            soft_wrap=True,
        )

    def note(self, text: str) -> None:
        """Show a sentence."""
        self._console.print(escape(text), style="yellow", highlight=False, soft_wrap=True)

    def _remember(self, record: Record) -> None:
        if record.state == "complete" and self._metric in record.quantities:
            self._scored.append(record)
