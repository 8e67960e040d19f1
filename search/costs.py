"""What a thing that is made once per study cost when it was really made: a file beside it, in its artifact folder.

A study that finds the teacher of another one among the artifacts spent nothing on it, and still owes what it cost:
figures of searches compare only with the preparation in them.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

FILE = "cost.json"


def noted(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """A maker of an artifact that also notes the seconds that the making took.

    Args:
        make: Writes the thing into the folder it is given.
    """

    def make_and_note(folder: Path) -> None:
        start = time.perf_counter()
        make(folder)
        note(folder, time.perf_counter() - start)

    return make_and_note


def note(folder: Path, seconds: float) -> None:
    """Note what making the thing in a folder took.

    Raises:
        OSError: If it cannot be written.
    """
    (folder / FILE).write_text(json.dumps({"seconds": round(seconds, 3)}), encoding="utf-8")


def read(folder: Path) -> float | None:
    """Seconds that making the thing in a folder took; None where nothing noted it."""
    try:
        return float(json.loads((folder / FILE).read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
