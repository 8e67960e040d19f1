"""Mistakes in the fields of a study script, which are found before `run` is reached, in one sentence."""

import os
import sys
from collections.abc import Callable
from types import TracebackType

from pydantic import ValidationError

from search import definition
from search.definition import Part, explain

EXIT_USER_ERROR = 2


def say_in_one_sentence() -> None:
    """Have Python print an uncaught error of a definition's fields without a traceback, and exit with code 2."""
    if sys.excepthook is not _hook:
        _others.append(sys.excepthook)
        sys.excepthook = _hook


_others: list[Callable[[type[BaseException], BaseException, TracebackType | None], object]] = []


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    part = getattr(definition, error.title, None) if isinstance(error, ValidationError) else None
    if not (isinstance(error, ValidationError) and isinstance(part, type) and issubclass(part, Part)):
        _others[-1](kind, error, trace)
        return
    print(f"error: {explain(error, source=f'the study script, {part.__name__}', root=part)}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_USER_ERROR)  # Python exits with 1 after an uncaught error, whatever its hook does
