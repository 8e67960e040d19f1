"""What a thing that is made once per study cost when it was really made: a file beside it, in its artifact folder.

A study that finds the teacher of another one among the artifacts spent nothing on it, and still owes what it cost:
figures of searches compare only with the preparation in them.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FILE = "cost.json"


class Counter:
    """Energy that this process's device has used, and how much of it is written down. Mutable: it knows the latter.

    Everything that a process uses is written down once: beside the thing that it made, or in the trial that it ran.
    What lies between two of them is the later one's.

    Args:
        source: Name of the counter, `nvml` or `rapl` say.
        used_j: Joules that the device has used since some moment, which never fall; None where the counter cannot be
            read now.

    Example:
        >>> counter = Counter("rapl", iter([5.0, 12.0]).__next__)
        >>> counter.open_j()
        5.0
        >>> counter.charge(3.0)
        >>> counter.open_j()
        9.0
    """

    def __init__(self, source: str, used_j: Callable[[], float | None]) -> None:
        self.source = source
        self._used_j = used_j
        self._charged_j = 0.0

    def open_j(self) -> float | None:
        """Joules that were used and are not written down anywhere; None where the counter cannot be read now."""
        used_j = self._used_j()
        return None if used_j is None else used_j - self._charged_j

    def charge(self, joules: float) -> None:
        """Note that so many joules have been written down."""
        self._charged_j += joules


@dataclass(frozen=True)
class Cost:
    """What making a thing took.

    Attributes:
        seconds: Time.
        joules: Energy of the maker's device, as a counter says; None where none could be read over the whole time.
        source: Name of that counter; empty where there is none.
    """

    seconds: float
    joules: float | None = None
    source: str = ""


def noted(make: Callable[[Path], None], counter: Counter | None = None) -> Callable[[Path], None]:
    """A maker of an artifact that also notes what the making took.

    Args:
        make: Writes the thing into the folder it is given.
        counter: Of the maker's device; None where none can be read.
    """

    def make_and_note(folder: Path) -> None:
        start, before_j = time.perf_counter(), counter.open_j() if counter else 0.0
        make(folder)
        note(folder, time.perf_counter() - start, counter, before_j=before_j)

    return make_and_note


def note(folder: Path, seconds: float, counter: Counter | None = None, *, before_j: float | None = 0.0) -> None:
    """Note what making the thing in a folder took.

    Args:
        folder: Where the thing is.
        seconds: Time.
        counter: Of the maker's device; None where none can be read, or where it did not see all of the making.
        before_j: What the counter had open (`Counter.open_j`) when the making began; None where it could not be read.

    Raises:
        OSError: If it cannot be written.
    """
    values: dict[str, float | str] = {"seconds": round(seconds, 3)}
    open_j = None if counter is None else counter.open_j()
    if counter is not None and open_j is not None and before_j is not None:
        joules = open_j - before_j
        counter.charge(joules)
        values |= {"joules": round(joules, 3), "source": counter.source}
    (folder / FILE).write_text(json.dumps(values), encoding="utf-8")


def read(folder: Path) -> Cost | None:
    """What making the thing in a folder took; None where nothing noted it."""
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        joules = values.get("joules")
        return Cost(float(values["seconds"]), None if joules is None else float(joules), str(values.get("source", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
