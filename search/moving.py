"""Moving a study with what belongs to it: the database's part, and the artifacts that its definition needs."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from search import keys
from search.errors import UserError, unknown_name
from search.manifests import MANIFEST

if TYPE_CHECKING:
    from search.artifacts import Artifacts


def move(
    source: str, target: str, *, study: str | None, artifacts: str | None, to_artifacts: str | None, console: Console
) -> None:
    """Copy a study from one storage to another.

    Args:
        source: URL of the storage that holds it.
        target: URL of the storage that shall hold it.
        study: Its name; None where the source holds one study only.
        artifacts: Where its artifacts are; None is `runs/STUDY/artifacts`.
        to_artifacts: Where they shall be as well; None leaves them where they are.
        console: Where to say what was done.

    Raises:
        UserError: If the source holds no such study, the target holds one already, or either cannot be used.
    """
    from search import candidates
    from search.deploy import confirm
    from search.engine import storage as storages
    from search.engine import study as studies
    from search.engine.artifact_store import open_artifacts
    from search.engine.copy import copy

    opened = storages.open_storage(source, create=False)
    names = studies.names(opened)
    if study is None and len(names) != 1:
        raise UserError(unknown_name("study", "(none named)", names) + " Name one with --study.")
    found = studies.get(opened, study or names[0])
    about = studies.stored(found)
    name = found.study_name
    if to_artifacts is not None:
        cache = Path(f"runs/{name}/artifacts")
        here = open_artifacts(artifacts or str(cache), cache=cache)
        there = open_artifacts(to_artifacts, cache=cache)
        for kind, hash_ in keys.wanted(about.definition, about.content).items():
            if not _copied(here, there, kind, hash_):
                raise UserError(f"the artifact {kind}-{hash_[:20]} is not in '{artifacts or cache}'; name its place")
            console.print(f"{kind}: copied", markup=False, highlight=False)
        read = studies.read(found)
        trainings = [hash_ for each in read.confirmations for hash_ in confirm.kept_as(about, read, each).values()]
        for whose, kind, kept in (
            ("weights of {} trials", candidates.KIND, [each.weights for each in read.records if each.weights]),
            ("weights of {} confirmed trials", candidates.KIND, [o.weights for o in read.confirmations if o.weights]),
            ("{} trainings of confirmed trials", confirm.KIND, trainings),
        ):
            moved = sum(_copied(here, there, kind, hash_) for hash_ in kept)
            if kept:  # those that are missing are made again by those who need them
                said = whose.format(f"{moved} of {len(kept)}")
                console.print(f"{said}: copied", markup=False, highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("trials")
        copied = copy(
            found,
            storages.open_storage(target, create=True),
            on_trial=lambda done, total: progress.update(task, completed=done, total=total),
        )
    console.print(
        f"study {name!r}: {len(copied.get_trials(deepcopy=False))} trials copied to {storages.shown(target)}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _copied(here: "Artifacts", there: "Artifacts", kind: str, hash_: str) -> bool:
    """Have an artifact in another place too; whether it was there to be copied."""
    folder = here.found(kind, hash_)
    if folder is None:
        return False
    key = json.loads((folder / "key.json").read_text(encoding="utf-8"))
    there.made(kind, key, partial(_copy_files, folder))
    return True


def _copy_files(source: Path, target: Path) -> None:
    """What was made, without what `Artifacts` writes beside it."""
    for file in source.iterdir():
        if file.name not in ("key.json", MANIFEST):
            shutil.copy2(file, target / file.name)
