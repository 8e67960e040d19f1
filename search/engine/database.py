"""An SQL database as Optuna keeps it, with fewer and faster calls, and with heartbeats that miss no trial.

Optuna reads trials through SQLAlchemy's object mapper, parses each parameter's distribution anew, and does so several
times in each trial for all trials that are not finished; and it writes each ratio and each attribute in a transaction
of its own. Here the same rows are read as rows, and what is written about a trial goes together
(studies/benchmarks/scaling.py has the figures).
"""

import json
from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

from search.engine import heartbeats
from search.engine.retry import hand_back
from search.engine.writing import INSERTS, UNFINISHED, Buffer

READING = "reading"
"""Execution option of a transaction that only reads: in SQLite it then takes no lock that a writer waits for."""

IN_LIST = 500
"""Trials that are asked for by their numbers; more are asked for by their study."""


class Database(RDBStorage):
    """An SQL database whose heartbeats also find the trials that never gave a sign of life.

    A process does not declare its own trial dead: after the whole machine slept, the sign it is about to give is late.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._watches: dict[int, heartbeats.Watch] = defaultdict(heartbeats.Watch)
        self._own: set[int] = set()
        self._buffer = Buffer()
        self._gathered: set[int] = set()
        self._unfinished: dict[int, tuple[Any, FrozenTrial]] = {}
        """Unfinished trials as they were last read, with what tells whether they have changed since."""
        self.gathers = True
        """Whether what is written about the trials that this process runs may wait (`search.engine.writing`)."""
        super().__init__(
            url,
            heartbeat_interval=heartbeats.HEARTBEAT_S,
            grace_period=heartbeats.GRACE_S,
            heartbeat_stale_trial_callback=hand_back,
            **options,
        )

    def record_heartbeat(self, trial_id: int) -> None:
        """Write the sign of life of a trial that this process runs."""
        self._own.add(trial_id)
        super().record_heartbeat(trial_id)

    def record_for_another(self, trial_id: int) -> None:
        """Write the sign of life of a trial that another process runs."""
        super().record_heartbeat(trial_id)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        running = (
            sqlalchemy.select(models.TrialModel.trial_id, models.TrialHeartbeatModel.heartbeat, sqlalchemy.func.now())
            .outerjoin(models.TrialHeartbeatModel)
            .where(models.TrialModel.study_id == study_id, models.TrialModel.state == TrialState.RUNNING)
        )
        with self.engine.connect().execution_options(**{READING: True}) as connection:
            rows = connection.execute(running).all()
        unchanged = self._watches[study_id].unchanged_s({number: beat for number, beat, _ in rows})
        grace = timedelta(seconds=self.grace_period or 0)
        old = {number for number, beat, now in rows if beat is not None and now.replace(tzinfo=None) - beat > grace}
        return [
            number
            for number, seconds in unchanged.items()
            if seconds > (heartbeats.CONFIRM_S if number in old else heartbeats.GRACE_S) and number not in self._own
        ]

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial; one without a template is run by this process."""
        return self._create_new_trial(study_id, template_trial)._trial_id

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        trial = super()._create_new_trial(study_id, template_trial)
        if template_trial is None:
            self._mine(trial._trial_id)
        return trial

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set a trial's state, after all that waits to be written."""
        self._buffer.flush(self.engine)
        done = super().set_trial_state_values(trial_id, state, values)
        if done and state == TrialState.RUNNING:
            self._mine(trial_id)
        elif done and state.is_finished():
            self._gathered.discard(trial_id)
        return done

    def _mine(self, trial_id: int) -> None:
        if self.gathers and self.engine.dialect.name in INSERTS:
            self._gathered.add(trial_id)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a user attribute, at the latest before anything is read through this storage."""
        if trial_id in self._gathered:
            self._buffer.attr(models.TrialUserAttributeModel, trial_id, key, value)
        else:
            super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a system attribute, at the latest before anything is read through this storage."""
        if trial_id in self._gathered:
            self._buffer.attr(models.TrialSystemAttributeModel, trial_id, key, value)
        else:
            super().set_trial_system_attr(trial_id, key, value)

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None = None,
    ) -> None:
        if trial_id in self._gathered:
            self._buffer.param(trial_id, param_name, param_value_internal, distribution_to_json(distribution))
        else:
            super()._set_trial_param(trial_id, param_name, param_value_internal, distribution, previous_distribution)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """One trial by the number that the database gave it.

        Raises:
            KeyError: If there is none.
        """
        found = self._read([models.TrialModel.trial_id == trial_id])
        if not found:
            raise KeyError(f"there is no trial of the number {trial_id}")
        return found[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """The trials of a study by number: those of `included_trial_ids`, and those above `trial_id_greater_than`."""
        trials = models.TrialModel
        meant: list[Any] = [trials.study_id == study_id]
        if states is not None:
            assert isinstance(states, Iterable)
            meant.append(trials.state.in_(states))
        if trial_id_greater_than > -1:
            above = trials.trial_id > trial_id_greater_than
            earlier = [number for number in included_trial_ids if number <= trial_id_greater_than]
            meant.append(sqlalchemy.or_(trials.trial_id.in_(earlier), above) if earlier else above)
        found = self._read(meant)
        if not found:
            self.get_study_name_from_id(study_id)  # KeyError, where there is no such study
        return found

    def _read(self, meant: list[Any]) -> list[FrozenTrial]:
        """The trials that meet these conditions, in the order of their numbers."""
        self._buffer.flush(self.engine)
        trials = models.TrialModel
        columns = (
            trials.trial_id,
            trials.number,
            trials.state,
            trials._datetime_start_utc,
            trials._datetime_complete_utc,
        )
        with self.engine.connect().execution_options(**{READING: True}) as connection:
            rows = connection.execute(sqlalchemy.select(*columns).where(*meant).order_by(trials.trial_id)).all()
            prints = _fingerprints(connection, [(row[0], row[2]) for row in rows if row[2] in UNFINISHED])
            known = {
                trial_id: trial
                for trial_id, print_ in prints.items()
                if (found := self._unfinished.get(trial_id)) is not None and found[0] == print_
                for trial in (found[1],)
            }
            parts = _Parts(connection, meant, [row[0] for row in rows if row[0] not in known])
        read = {}
        for trial_id, number, state, start, complete in rows:
            read[trial_id] = known.get(trial_id) or FrozenTrial(
                number=number,
                state=state,
                value=None,
                values=parts.values.get(trial_id),
                datetime_start=_local(start),
                datetime_complete=_local(complete),
                params=parts.params.get(trial_id, {}),
                distributions=parts.distributions.get(trial_id, {}),
                user_attrs=parts.user_attrs.get(trial_id, {}),
                system_attrs=parts.system_attrs.get(trial_id, {}),
                intermediate_values=parts.intermediate.get(trial_id, {}),
                trial_id=trial_id,
            )
            if trial_id in prints:
                self._unfinished[trial_id] = (prints[trial_id], read[trial_id])
            else:
                self._unfinished.pop(trial_id, None)
        return list(read.values())


def _fingerprints(connection: sqlalchemy.Connection, trials: Collection[tuple[int, TrialState]]) -> dict[int, Any]:
    """What changes when something is written about a trial, by its number: how many rows there are, and how long."""
    ids = [trial_id for trial_id, _ in trials]
    prints: dict[int, Any] = dict(trials)
    if not ids:
        return {}
    counts = []
    for kind, model, text in (
        ("p", models.TrialParamModel, models.TrialParamModel.param_name),
        ("u", models.TrialUserAttributeModel, models.TrialUserAttributeModel.value_json),
        ("s", models.TrialSystemAttributeModel, models.TrialSystemAttributeModel.value_json),
        ("i", models.TrialIntermediateValueModel, sqlalchemy.literal("x")),
    ):
        length = sqlalchemy.func.sum(sqlalchemy.func.length(text))
        of_kind = sqlalchemy.select(sqlalchemy.literal(kind), model.trial_id, sqlalchemy.func.count(), length)
        counts.append(of_kind.where(model.trial_id.in_(ids)).group_by(model.trial_id))
    rows: dict[int, set[Any]] = defaultdict(set)
    for kind, trial_id, count, letters in connection.execute(sqlalchemy.union_all(*counts)):
        rows[trial_id].add((kind, count, letters))
    return {trial_id: (state, frozenset(rows[trial_id])) for trial_id, state in prints.items()}


class _Parts:
    """What belongs to trials, by the number that the database gave them."""

    def __init__(self, connection: sqlalchemy.Connection, meant: list[Any], trial_ids: Collection[int]) -> None:
        self._connection = connection
        self._meant = meant
        self._trial_ids = trial_ids
        self.values: dict[int, list[float]] = defaultdict(list)
        self.params: dict[int, dict[str, Any]] = defaultdict(dict)
        self.distributions: dict[int, dict[str, BaseDistribution]] = defaultdict(dict)
        self.user_attrs: dict[int, dict[str, Any]] = defaultdict(dict)
        self.system_attrs: dict[int, dict[str, Any]] = defaultdict(dict)
        self.intermediate: dict[int, dict[int, float]] = defaultdict(dict)
        if trial_ids:
            self._read()

    def _read(self) -> None:
        value, param, step = models.TrialValueModel, models.TrialParamModel, models.TrialIntermediateValueModel
        to_value = value.stored_repr_to_value
        for number, stored, kind in self._rows(value, "value", "value_type", order=value.objective):
            self.values[number].append(to_value(stored, kind))
        for number, name, internal, text in self._rows(
            param, "param_name", "param_value", "distribution_json", order=param.param_id
        ):
            distribution = _distribution(text)
            self.params[number][name] = distribution.to_external_repr(internal)
            self.distributions[number][name] = distribution
        for model, into in (
            (models.TrialUserAttributeModel, self.user_attrs),
            (models.TrialSystemAttributeModel, self.system_attrs),
        ):
            for number, key, text in self._rows(model, "key", "value_json"):
                into[number][key] = json.loads(text)
        to_step = step.stored_repr_to_intermediate_value
        for number, at, stored, kind in self._rows(step, "step", "intermediate_value", "intermediate_value_type"):
            self.intermediate[number][at] = to_step(stored, kind)

    def _rows(self, model: Any, *names: str, order: Any = None) -> Iterable[Any]:
        """Rows of one table that belong to the trials: the trial's number, then the columns that are named."""
        query = sqlalchemy.select(model.trial_id, *(getattr(model, name) for name in names))
        if len(self._trial_ids) <= IN_LIST:
            query = query.where(model.trial_id.in_(self._trial_ids))
        else:
            query = query.where(model.trial_id.in_(sqlalchemy.select(models.TrialModel.trial_id).where(*self._meant)))
        found: Iterable[Any] = self._connection.execute(query if order is None else query.order_by(order))
        return found


@lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _local(moment: datetime | None) -> datetime | None:
    """What the database keeps in UTC, in this machine's time, as Optuna gives it."""
    return None if moment is None else moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
