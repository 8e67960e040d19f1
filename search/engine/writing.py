"""What a worker writes about the trial that it runs, gathered into few transactions.

Optuna writes each ratio and each attribute of a trial in a transaction of its own: about forty per trial, each with
several round trips to the database. Here they wait until somebody reads through the same storage, or the trial ends:
then all go in one. Optuna's contract for its own cache is the same: attributes are written before the state.

Nothing is lost that is not lost anyhow: what waits lies in the process that runs the trial, and dies with its trial.
"""

import json
import threading
from collections import defaultdict
from typing import Any

import sqlalchemy
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.dialects import postgresql, sqlite

UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)

INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
"""How a row is written that may be there already, by dialect; on others nothing waits."""


class Buffer:
    """Ratios and attributes of running trials that are not written yet. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._rows: dict[Any, dict[tuple[int, str], dict[str, Any]]] = defaultdict(dict)

    def param(self, trial_id: int, name: str, value: float, distribution_json: str) -> None:
        """Remember a ratio.

        Args:
            trial_id: The trial's number in the database.
            name: Name of the parameter.
            value: Its value as Optuna stores it.
            distribution_json: What it was drawn from, as Optuna stores it.
        """
        row = {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": value,
            "distribution_json": distribution_json,
        }
        with self._lock:
            self._rows[models.TrialParamModel][trial_id, name] = row

    def attr(self, model: Any, trial_id: int, key: str, value: Any) -> None:
        """Remember an attribute; a later value replaces an earlier one.

        Args:
            model: Optuna's table of user or of system attributes.
            trial_id: The trial's number in the database.
            key: Name of the attribute.
            value: JSON-serialisable.
        """
        with self._lock:
            self._rows[model][trial_id, key] = {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}

    def flush(self, engine: sqlalchemy.Engine) -> None:
        """Write what waits, in one transaction; writing it twice does no harm.

        What belongs to a trial that another worker has declared dead is dropped: its end will show that.
        """
        with self._lock:
            if not any(self._rows.values()):
                return
            ids = {trial_id for rows in self._rows.values() for trial_id, _ in rows}
            insert = INSERTS[engine.dialect.name]
            with engine.begin() as connection:
                states = sqlalchemy.select(models.TrialModel.trial_id, models.TrialModel.state)
                found = connection.execute(states.where(models.TrialModel.trial_id.in_(ids)))
                alive = {trial_id for trial_id, state in found if state in UNFINISHED}
                for model, waiting in self._rows.items():
                    rows = [row for (trial_id, _), row in waiting.items() if trial_id in alive]
                    if rows:
                        connection.execute(_upsert(insert, model, rows))
            self._rows.clear()


def _upsert(insert: Any, model: Any, rows: list[dict[str, Any]]) -> Any:
    statement = insert(model).values(rows)
    if model is models.TrialParamModel:
        return statement.on_conflict_do_nothing(index_elements=["trial_id", "param_name"])
    return statement.on_conflict_do_update(
        index_elements=["trial_id", "key"], set_={"value_json": statement.excluded.value_json}
    )
