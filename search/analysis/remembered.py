"""What was worked out about a study once: a study record never changes, so it need not be worked out again."""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from search.records import StudyRecord

T = TypeVar("T")


def remembered(function: Callable[[StudyRecord], T]) -> Callable[[StudyRecord], T]:
    """Keep what a function of a study returns beside the study's fields, as `functools.cached_property` does.

    It goes with the record: a changed copy (`dataclasses.replace`) begins without it, and it counts in no comparison.

    Args:
        function: Its result depends on the study alone, and nobody changes it.

    Returns:
        The function, which calls the original once per study record.
    """
    key = f"{function.__module__}.{function.__qualname__}"

    @wraps(function)
    def looked_up(study: StudyRecord) -> T:
        known = vars(study)
        if key not in known:
            known[key] = function(study)
        result: T = known[key]
        return result

    return looked_up
