"""The importance scores of a study, as plain arrays: found among its artifacts, without its checkpoint or its data."""

from pathlib import Path

from search import keys
from search.analysis.importance import Importance
from search.errors import UserError


def stored_importance(study: str, *, storage: str, artifacts: str | None) -> Importance:
    """Read the scores that a study was prepared with.

    Args:
        study: Its name.
        storage: URL of its database.
        artifacts: Folder of its artifacts, or s3://BUCKET/PREFIX; None is `runs/STUDY/artifacts`.

    Returns:
        The scores.

    Raises:
        UserError: If there is no such study, or its scores are not among the artifacts.
    """
    from safetensors.numpy import load_file

    from search.engine import storage as storages
    from search.engine import study as studies
    from search.engine.artifact_store import open_artifacts

    about = studies.stored(studies.get(storages.open_storage(storage, create=False), study))
    cache = Path(f"runs/{study}/artifacts")
    hash_ = keys.wanted(about.definition, about.content)["importance"]
    folder = open_artifacts(artifacts or str(cache), cache=cache).found("importance", hash_)
    if folder is None:
        raise UserError(
            f"the artifact importance-{hash_[:20]} of the study {study!r} is not in '{artifacts or cache}'; name with "
            "--artifacts where the study was prepared"
        )
    scores = load_file(folder / "scores.safetensors")
    settings = about.definition.importance
    return Importance(
        study=study,
        method=settings.method,
        loss=settings.loss,
        rows=settings.rows,
        heads=scores["heads"],
        neurons=scores["neurons"],
        blocks=scores.get("blocks"),
        regression=about.definition.task.is_regression,
    )
