"""A study from its database, as plain records: where everything that looks at a study begins."""

from typing import TYPE_CHECKING

from search.arguments import default_storage

if TYPE_CHECKING:
    from search.records import StudyRecord


def load(study: str, storage: str | None = None) -> "StudyRecord":
    """Read a study.

    Args:
        study: Name of the study.
        storage: URL of its database; by default the environment variable `PARETOBERT_STORAGE`, else
            `sqlite:///runs/STUDY/study.db`.

    Returns:
        The study with all its trials, for `search.analysis`.

    Raises:
        UserError: If the database cannot be reached or holds no such study.
    """
    from search.engine import storage as storages
    from search.engine import study as studies

    return studies.read(studies.get(storages.open_storage(storage or default_storage(study), create=False), study))
