"""What a worker tells while it works; a live display, a launcher's pipe and a test listen."""

from typing import Protocol

from search.records import Record, StudyRecord


class Listener(Protocol):
    """Is told how a worker goes on, now and then from another thread."""

    def stage(self, trial: int, name: str, done: int, total: int) -> None:
        """A trial, or the preparation, is at this step of a stage."""
        ...

    def finished(self, record: Record, completed: int, total: int) -> None:
        """A trial ended; so many are complete of so many."""
        ...

    def known(self, study: StudyRecord) -> None:
        """The study holds these trials already."""
        ...

    def note(self, text: str) -> None:
        """Something a person should know."""
        ...
