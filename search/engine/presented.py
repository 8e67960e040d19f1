"""A study database as the dashboard shall see it: readable attributes, and something to download. Nothing is written.

    stored trial ──► record ──► short attributes (`search.analysis.readable`) ─┐
                        └─────► trial-12.json, made when it is downloaded ─────┴─► what optuna-dashboard reads

What was stored for programs, a trial's measurements for example, optuna-dashboard would show as JSON, cut off after
1,024 characters.
"""

import copy
import json
import math
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial

from search.engine import attributes
from search.engine import study as studies
from search.errors import UserError
from search.records import StudyRecord

ARTIFACT = "artifacts:"
"""What Optuna's names of artifacts begin with."""

AGAIN_S = 5.0
"""Seconds until a study that has no dense trial yet, or is not ours, is read again."""

OF_STUDY = {
    "front.csv": "text/csv",
    "trials.csv": "text/csv",
    "definition.json": "application/json",
    "report.html": "application/octet-stream",  # not text/html: it is to be saved, not run among the dashboard's pages
}
"""What can be downloaded of a study, with its type."""


class Downloads:
    """Optuna's artifact store, in which each file is made when it is asked for.

    Args:
        folder: Where files lie that a person uploads; it is made with the first of them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._uploaded = FileSystemArtifactStore(folder)
        self._made: dict[str, Callable[[], bytes]] = {}

    def offer(self, of: str, filename: str, mimetype: str, make: Callable[[], bytes]) -> tuple[str, str]:
        """Offer a file.

        Args:
            of: What it belongs to, the same in every process.
            filename: Its name.
            mimetype: Its type.
            make: Gives its content.

        Returns:
            Name and value of the attribute by which Optuna knows it.
        """
        number = str(uuid.uuid5(uuid.NAMESPACE_URL, f"paretobert:{of}/{filename}"))
        self._made[number] = make
        about = {"artifact_id": number, "filename": filename, "mimetype": mimetype, "encoding": None}
        return f"{ARTIFACT}{number}", json.dumps(about)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """A file's content.

        Raises:
            ArtifactNotFound: If there is no such file.
        """
        make = self._made.get(artifact_id)
        return self._uploaded.open_reader(artifact_id) if make is None else BytesIO(make())

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Keep a file that a person uploads."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._uploaded.write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """Remove an uploaded file; what is made on demand stays."""
        if artifact_id not in self._made:
            self._uploaded.remove(artifact_id)


class _Presented:
    """What a presented storage does beside passing calls on."""

    def __init__(self, inner: BaseStorage, downloads: Downloads) -> None:
        self.inner = inner
        self._downloads = downloads
        self._trials: dict[int, tuple[FrozenTrial, bool, FrozenTrial]] = {}
        """Finished trials by their number in the database: as stored, whether the dense one was known, as presented."""
        self._confirmations: dict[int, tuple[dict[str, Any], dict[str, str]]] = {}
        """By number of the study: its confirmations as stored, and as presented."""
        self._about: dict[int, tuple[float, StudyRecord | None]] = {}
        """By number of the study: when it was read, and what it says about itself; None where it is not ours."""

    def get_all_studies(self) -> list[FrozenStudy]:
        return [self._study(study) for study in self.inner.get_all_studies()]

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return {**self.inner.get_study_system_attrs(study_id), **self._files(study_id)}

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Sequence[optuna.trial.TrialState] | None = None
    ) -> list[FrozenTrial]:
        found = self.inner.get_all_trials(study_id, deepcopy=False, states=tuple(states) if states else None)
        about = self._read(study_id)
        shown = found if about is None else [self._trial(about, trial) for trial in found]
        return copy.deepcopy(shown) if deepcopy else shown

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        known = self._trials.get(trial_id)
        return self.inner.get_trial_system_attrs(trial_id) if known is None else known[2].system_attrs

    def _study(self, stored: FrozenStudy) -> FrozenStudy:
        about = self._read(stored._study_id)
        if about is None:
            return stored
        from search.analysis.readable import study_attributes

        shown = copy.copy(stored)
        shown.user_attrs = {**study_attributes(about), **self._confirmed(stored)}
        shown.system_attrs = {**stored.system_attrs, **self._files(stored._study_id)}
        return shown

    def _confirmed(self, stored: FrozenStudy) -> dict[str, str]:
        """What confirmations came to, by attribute; read anew when there is another one."""
        present = {name: value for name, value in stored.user_attrs.items() if name.startswith(attributes.CONFIRMED)}
        known = self._confirmations.get(stored._study_id)
        if known is None or known[0] != present:
            from search.analysis.readable import confirmed_attributes

            lines = confirmed_attributes(studies.read(self._opened(stored._study_id))) if present else {}
            known = self._confirmations[stored._study_id] = (present, lines)
        return known[1]

    def _trial(self, about: StudyRecord, stored: FrozenTrial) -> FrozenTrial:
        has_dense, known = about.dense is not None, self._trials.get(stored._trial_id)
        if known is not None and known[0] is stored and known[1] == has_dense:
            return known[2]
        from search.analysis.readable import trial_attributes

        record = studies.record(stored, [objective.name for objective in about.objectives])
        shown = copy.copy(stored)
        shown.user_attrs = dict(trial_attributes(about, record))
        if stored.state.is_finished():
            name, file = self._downloads.offer(
                f"{about.name}/{record.trial}",
                f"trial-{record.trial}.json",
                "application/json",
                lambda: _json({"study": about.name, **asdict(record)}),
            )
            shown.system_attrs = {**stored.system_attrs, name: file}
            self._trials[stored._trial_id] = (stored, has_dense, shown)
        return shown

    def _read(self, study_id: int) -> StudyRecord | None:
        """What a study says about itself, with no trial but the dense one; None where paretobert did not make it."""
        at, about = self._about.get(study_id, (-math.inf, None))
        if (about is None or about.dense is None) and time.monotonic() - at > AGAIN_S:
            about = self._asked(study_id)
            self._about[study_id] = (time.monotonic(), about)
        return about

    def _asked(self, study_id: int) -> StudyRecord | None:
        study = self._opened(study_id)
        try:
            if attributes.POPULATION not in study.user_attrs:
                return None
            whole = studies.read(study)
        except UserError:  # of another version
            return None
        dense = whole.dense
        return StudyRecord(
            whole.name, whole.definition, whole.objectives, whole.shape, () if dense is None else (dense,)
        )

    def _files(self, study_id: int) -> dict[str, str]:
        """What can be downloaded of a study, as Optuna's attributes."""
        about = self._read(study_id)
        if about is None:
            return {}
        return dict(
            self._downloads.offer(about.name, filename, mimetype, partial(self._file, study_id, filename))
            for filename, mimetype in OF_STUDY.items()
        )

    def _file(self, study_id: int, filename: str) -> bytes:
        from search.analysis.report import render_report
        from search.analysis.table import frame, front_frame

        whole = studies.read(self._opened(study_id))
        made: dict[str, Callable[[], str]] = {
            "front.csv": lambda: str(front_frame(whole).to_csv(index=False)),
            "trials.csv": lambda: str(frame(whole).to_csv(index=False)),
            "definition.json": whole.definition.to_json,
            "report.html": lambda: render_report(whole),
        }
        return made[filename]().encode()

    def _opened(self, study_id: int) -> Study:
        return optuna.load_study(study_name=self.inner.get_study_name_from_id(study_id), storage=self.inner)


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1, ensure_ascii=False, default=str).encode()


def _passed_on(name: str) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.inner, name)(*args, **kwargs)

    call.__name__ = name
    return call


PresentedStorage: Any = type(
    "PresentedStorage",
    (_Presented, BaseStorage),
    {
        name: _passed_on(name)
        for name, member in vars(BaseStorage).items()
        if callable(member) and not name.startswith("_") and name not in vars(_Presented)
    },
)
"""A storage that passes every call of Optuna's interface on to another one, and presents what is read."""
