"""Many workers, one view: the study's totals, and what every worker is at.

On a terminal a table stays in place, below one line for each trial that ended. Elsewhere (a log file) there are the
lines alone: one for each trial, restart and note, and the totals every minute.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleRenderable, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.devices import Device
from search.events import Event, Finished, Known, Note, Stage
from search.launch import Ending
from search.records import PREPARATION, StudyRecord
from search.sentences import best_so_far, minutes, outcome

REFRESH_S = 0.2
"""Seconds between two pictures on a terminal."""

TOTALS_S = 60.0
"""Seconds between two lines of totals off a terminal."""

POLL_S = 5.0
"""Seconds between two looks into the study database."""

BAR_WIDTH = 10
"""Characters of the bar of a stage."""


@dataclass(frozen=True)
class Totals:
    """What the study database says.

    Attributes:
        total: Trials that the study shall have.
        completed: Complete trials.
        running: Running trials, those of other machines included.
        failed: Failed trials.
        hypervolume: Share of the box between reference and ideal that is dominated; None without a dense trial.
        best: A sentence about the best model so far.
    """

    total: int
    completed: int
    running: int
    failed: int
    hypervolume: float | None
    best: str

    @classmethod
    def of(cls, study: StudyRecord) -> Self:
        """Sum a study up."""
        from search.analysis.indicators import hypervolume

        states = [record.state for record in study.records]
        metric = study.definition.task.metric
        return cls(
            total=study.definition.engine.trials,
            completed=states.count("complete"),
            running=states.count("running"),
            failed=states.count("failed"),
            hypervolume=hypervolume(study),
            best=best_so_far(study.complete, metric),
        )


@dataclass
class _Row:
    """What is known of one worker. Mutable: it is the state of the view."""

    device: str
    state: str
    style: str = "dim"
    stage: Stage | None = None
    done: int = 0
    since: float | None = None
    """When its first trial began, by the clock."""
    starts: int = 0
    again_at: float | None = None
    error: str = ""


class View:
    """Shows how the workers of a study go on. Use as a context manager; `search.launch` tells it what happens.

    Args:
        console: Where to.
        devices: One per worker, in the order of the workers.
        metric: Name of the task metric.
        total: Trials that the study shall have; it can be raised while it runs.
        study: Reads the study; None where it does not exist yet. Called in a thread of its own, where it may be slow
            and may raise: the view then goes on with what it knows.
        clock: Seconds that only ever grow.
        poll_s: Seconds between two calls of `study`.
    """

    def __init__(
        self,
        console: Console,
        devices: Sequence[Device],
        *,
        metric: str,
        total: int,
        study: Callable[[], StudyRecord | None],
        clock: Callable[[], float] = time.perf_counter,
        poll_s: float = POLL_S,
    ) -> None:
        self._console = console
        self._clock = clock
        self._rows = {
            str(number): _Row(device.name, "waiting for worker 0" if number else "starting")
            for number, device in enumerate(devices)
        }
        self._poller = _Poller(study, poll_s)
        self._live = Live(self, console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._begin: float | None = None
        self._known: Known | None = None
        """What the study held before the first trial that a worker told of."""
        self._completed = 0
        """Complete trials that the workers told of."""
        self._metric = metric
        self._told_total = total
        self._shown_at = clock()
        self._totals_shown = ""

    def __enter__(self) -> Self:
        self._poller.start()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        self._poller.stop()

    @property
    def totals(self) -> Totals | None:
        """What the study database said last; None if it has said nothing yet."""
        return self._poller.totals

    @property
    def is_silent(self) -> bool:
        """Whether the study database did not answer when it was last asked."""
        return self._poller.is_silent

    def started(self, worker: str) -> None:
        """Show that a worker's process was started."""
        row = self._rows[worker]
        row.starts += 1
        row.state, row.style, row.stage, row.again_at = "starting", "dim", None, None
        if self._live is None:
            self._say(worker, "started" if row.starts == 1 else "started again")

    def told(self, worker: str, event: Event) -> None:
        """Show what a worker told."""
        match event:
            case Stage():
                self._stage(worker, event)
            case Known():
                self._known = self._known or event
                self._told_total = event.total
            case Finished():
                self._finished(worker, event)
            case Note():
                self._say(worker, event.text, style="yellow")

    def printed(self, worker: str, text: str) -> None:
        """Show what code in a worker printed."""
        self._line(Text.assemble((f"worker {worker}: ", "dim"), Text.from_ansi(text)))

    def ended(self, worker: str, ending: Ending, reason: str, again_s: float | None) -> None:
        """Show how a worker ended, and whether it starts again."""
        row = self._rows[worker]
        row.stage, row.error = None, reason or row.error
        row.again_at = None if again_s is None else self._clock() + again_s
        row.state, row.style = {"complete": "finished", "interrupted": "stopped"}.get(ending, ending), "dim"
        if ending in ("error", "given up"):
            row.style = "red"
        if ending == "died":
            self._say(worker, f"died, and starts again in {minutes(again_s or 0)}: {reason}", style="yellow")
        elif reason:
            said = {"error": "error: ", "given up": "is given up after ", "interrupted": "stopped: "}.get(ending, "")
            self._say(worker, said + reason, style=row.style)

    def note(self, text: str) -> None:
        """Show a sentence."""
        self._line(Text(text, style="yellow"))

    def tick(self) -> None:
        """Draw the table anew, or say the totals, when it is time."""
        now = self._clock()
        if now - self._shown_at < (TOTALS_S if self._live is None else REFRESH_S):
            return
        self._shown_at = now
        if self._live is not None:
            self._live.refresh()
            return
        totals = self._totals_line()
        if totals != self._totals_shown:
            self._totals_shown = totals
            self._line(Text(f"study {self._progress()}: {totals}"))

    def __rich__(self) -> ConsoleRenderable:
        """The picture on a terminal."""
        total, totals = self._total(), self.totals
        study = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=total, completed=min(self._completed_now(), total), width=24)
        totals_line = Text(self._totals_line(with_best=False), no_wrap=True, overflow="ellipsis")
        study.add_row("study", bar, self._progress(), totals_line)
        lines: list[ConsoleRenderable] = [Text(), study]
        if totals is not None:
            lines.append(Text(totals.best, style="dim", no_wrap=True, overflow="ellipsis"))
        lines.append(self._table())
        for name, row in self._rows.items():
            if row.error:
                restarts = f"restarted {row.starts - 1} ×, " if row.starts > 1 else ""
                said = f"worker {name}: {restarts}last error: {row.error}"
                lines.append(Text(said, style=row.style, no_wrap=True, overflow="ellipsis"))
        return Group(*lines)

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for title in ("worker", "device"):
            table.add_column(title, no_wrap=True)
        table.add_column("trial", justify="right", no_wrap=True)
        # Wide enough for most, so that the columns stay where they are; 80 characters hold them all.
        table.add_column("stage", min_width=16, overflow="ellipsis")
        table.add_column("", no_wrap=True, min_width=BAR_WIDTH + 8)
        for title in ("done", "per hour"):
            table.add_column(title, justify="right", no_wrap=True)
        for name, row in self._rows.items():
            trial = "" if row.stage is None or row.stage.trial == PREPARATION else str(row.stage.trial)
            numbers = (str(row.done or ""), self._rate(row))
            table.add_row(name, row.device, trial, self._stage_cell(row), self._bar_cell(row), *numbers)
        return table

    def _stage_cell(self, row: _Row) -> Text:
        text, style = row.state, row.style
        if row.again_at is not None:
            text, style = f"starts again in {minutes(max(0.0, row.again_at - self._clock()))}", "yellow"
        elif row.stage is not None:
            text, style = row.stage.name, ""
            if row.stage.trial == PREPARATION:
                text = f"preparing: {text}"
        return Text(text, style=style, no_wrap=True, overflow="ellipsis")

    def _bar_cell(self, row: _Row) -> ConsoleRenderable:
        if row.stage is None or row.stage.total <= 1:
            return Text()
        cell = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=row.stage.total, completed=row.stage.done, width=BAR_WIDTH)
        cell.add_row(bar, f"{row.stage.done}/{row.stage.total}")
        return cell

    def _rate(self, row: _Row) -> str:
        if row.since is None or not row.done:
            return ""
        per_hour = row.done * 3600 / max(1e-9, self._clock() - row.since)
        return f"{per_hour:.0f}" if per_hour >= 10 else f"{per_hour:.1f}"

    def _stage(self, worker: str, stage: Stage) -> None:
        row = self._rows[worker]
        before, row.stage = row.stage, stage
        if stage.trial == PREPARATION:
            if self._live is None and (before is None or before.name != stage.name):
                self._say(worker, f"preparing: {stage.name}")
            return
        now = self._clock()
        row.since = now if row.since is None else row.since
        self._begin = now if self._begin is None else self._begin

    def _finished(self, worker: str, event: Finished) -> None:
        row = self._rows[worker]
        row.done += 1
        row.stage, row.state, row.style = None, "next trial", "dim"
        is_complete = event.state == "complete"
        self._completed += is_complete
        self._told_total = event.total
        left = self._left()
        text = f"[{self._progress()}] worker {worker}: {outcome(event, self._metric)}"
        self._line(Text(f"{text}; {left}" if left else text, style="" if is_complete else "yellow"))

    def _completed_now(self) -> int:
        """Complete trials: what the workers told, or what the database says where other machines take part."""
        totals = self.totals
        return max(totals.completed if totals else 0, self._known_completed() + self._completed)

    def _known_completed(self) -> int:
        return self._known.completed if self._known else 0

    def _total(self) -> int:
        return self.totals.total if self.totals is not None else self._told_total

    def _progress(self) -> str:
        return f"{self._completed_now()}/{self._total()}"

    def _left(self) -> str:
        """The time left at the speed so far."""
        if self._begin is None or not self._completed:
            return ""
        completed = self._completed_now()
        each = (self._clock() - self._begin) / (completed - self._known_completed())
        return f"{minutes(max(0, self._total() - completed) * each)} left"

    def _totals_line(self, *, with_best: bool = True) -> str:
        totals = self.totals
        parts = []
        if totals is not None:
            parts.append(f"{totals.running} running")
            if totals.failed:
                parts.append(f"{totals.failed} failed")
            if totals.hypervolume is not None:
                parts.append(f"hypervolume {totals.hypervolume:.3f}")
            if with_best:
                parts.append(totals.best)
        if self.is_silent:
            parts.append("the study database does not answer")
        return ", ".join([*parts, *filter(None, [self._left()])])

    def _say(self, worker: str, text: str, *, style: str = "") -> None:
        self._line(Text(f"worker {worker} ({self._rows[worker].device}): {text}", style=style))

    def _line(self, text: Text) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


class _Poller:
    """Looks into the study database every now and then, in a thread: it may be far away, or gone."""

    def __init__(self, study: Callable[[], StudyRecord | None], seconds: float) -> None:
        self.totals: Totals | None = None
        self.is_silent = False
        self._study = study
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="study totals", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; one that waits for the database is left to its end."""
        self._stop.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                study = self._study()
                if study is not None:
                    self.totals = Totals.of(study)
                self.is_silent = study is None and self.totals is not None
            except Exception:
                # Whatever a driver raises, a picture of the search is no reason to end it. What it says is not shown,
                # since it may hold the address, or more.
                self.is_silent = True
            self._stop.wait(self._seconds)
