"""A study whose trials are a formula and a pause: what the engine costs by itself, without training.

The space is BERT-base's: 24 ratios. As a script it is one worker:

    PARETOBERT_STORAGE=URL python studies/benchmarks/formula.py STUDY SECONDS
"""

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.study import Study
from optuna.trial import TrialState

from search.definition import Definition, EngineSettings
from search.engine import attributes, patience, storage, study
from search.engine.worker import work
from search.plan import Plan, Shape, encoder_macs, encoder_parameters, total_parameters
from search.records import Evaluation, ObjectiveInfo, Record, StudyRecord
from search.space import Space

SHAPE = Shape(
    layers=12,
    heads=12,
    head_size=64,
    hidden=768,
    neurons=3072,
    vocabulary=30522,
    positions=512,
    token_types=2,
    labels=2,
)
OBJECTIVES = (
    ObjectiveInfo("accuracy", "", "maximize"),
    ObjectiveInfo("parameters", "", "minimize"),
    ObjectiveInfo("latency_ms", "ms", "minimize"),
    ObjectiveInfo("energy_mj", "mJ", "minimize"),
)


def definition(name: str, *, trials: int, population: int = 50) -> Definition:
    """The definition of such a study; its checkpoint and its data do not exist."""
    engine = EngineSettings(trials=trials, population=population, ladder=())
    return Definition(name=name, model="formula", data="formula", engine=engine)


def create(url: str, given: Definition) -> Study:
    """A new study."""
    return study.create(
        storage.open_storage(url, create=True),
        given,
        shape=SHAPE,
        objectives=OBJECTIVES,
        energy_source="model",
        content={"rows": "formula", "teacher": "formula"},
        machine="formula",
        ladder=[],
    )


def evaluation_of(plan: Plan) -> Evaluation:
    """Accuracy that falls with what is cut, unevenly over the layers; the costs are the real closed forms."""
    share = encoder_parameters(plan, SHAPE) / encoder_parameters(Plan.dense(SHAPE), SHAPE)
    early = sum((SHAPE.layers - layer) * heads for layer, heads in enumerate(plan.heads)) / 936
    macs = encoder_macs(plan, SHAPE, tokens=32)
    values = {
        "accuracy": 0.5 + 0.4 * share**0.3 * (0.8 + 0.2 * early),
        "parameters": total_parameters(plan, SHAPE),
        "encoder_share": share,
        "latency_ms": 1 + macs / 1e8,
        "energy_mj": 0.1 + macs / 2e9 + sum(plan.heads) / 1000,
    }
    return Evaluation(
        quantities={name: {"value": value, "unit": "", "source": "formula"} for name, value in values.items()},
        violations={},
        seconds={"sleep": 0.001},
        conditions={"device": "formula"},
    )


class Silent:
    """Is told, and tells nobody."""

    def stage(self, trial: int, name: str, done: int, total: int) -> None:
        """Nothing."""

    def finished(self, record: Record, completed: int, total: int) -> None:
        """Nothing."""

    def known(self, study: StudyRecord) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """To the standard error, where a person may look."""
        print(text, file=sys.stderr, flush=True)


class Meter:
    """Seconds in the storage and round trips to it, of the thread that runs the trials."""

    def __init__(self, engine: sqlalchemy.Engine | None) -> None:
        self.seconds = 0.0
        self.round_trips = 0
        self.commits = 0
        main, stock = threading.main_thread(), patience.insist

        def timed(call: Callable[[], Any], **given: Any) -> Any:
            start = time.perf_counter()
            try:
                return stock(call, **given)
            finally:
                if threading.current_thread() is main:
                    self.seconds += time.perf_counter() - start

        patience.insist = timed
        if engine is not None:
            sqlalchemy.event.listen(engine, "before_cursor_execute", lambda *_args: self._count("round_trips"))
            sqlalchemy.event.listen(engine, "commit", lambda *_args: self._count("commits"))

    def _count(self, what: str) -> None:
        if threading.current_thread() is threading.main_thread():
            setattr(self, what, getattr(self, what) + 1)


def fill(opened: Study, trials: int) -> None:
    """Add complete trials with random plans in a few statements: what a search leaves, sooner."""
    space = Space.of(definition("x", trials=1).space, SHAPE)
    random_ = random.Random(0)
    engine = storage.engine_of(opened._storage)
    assert engine is not None, "only a database is filled this way"
    texts = {d.name: distribution_to_json(FloatDistribution(d.low, d.high)) for d in space.dimensions}
    population = study.stored(opened).population
    now = datetime.now(UTC).replace(tzinfo=None) - timedelta(days=1)
    first = len(opened.get_trials(deepcopy=False))
    with engine.begin() as connection:
        highest = connection.execute(sqlalchemy.select(sqlalchemy.func.max(models.TrialModel.trial_id))).scalar() or 0
        rows: dict[Any, list[dict[str, Any]]] = {}

        def add(model: Any, **columns: Any) -> None:
            rows.setdefault(model, []).append(columns)

        for number in range(first, first + trials):
            trial_id = highest + 1 + number - first
            params = {d.name: d.snap(random_.random()) for d in space.dimensions}
            evaluation = evaluation_of(plan := space.plan(params))
            attrs = {
                attributes.ROLE: "search",
                attributes.HEADS: list(plan.heads),
                attributes.NEURONS: list(plan.neurons),
                attributes.SEED: number,
                attributes.QUANTITIES: evaluation.quantities,
                attributes.SECONDS: evaluation.seconds,
                attributes.CONDITIONS: evaluation.conditions,
                attributes.WORKER: "nowhere process 1 started 1.00",
            }
            add(
                models.TrialModel,
                trial_id=trial_id,
                number=number,
                study_id=opened._study_id,
                state=TrialState.COMPLETE,
                datetime_start=now,
                datetime_complete=now,
            )
            for name, value in params.items():
                add(
                    models.TrialParamModel,
                    trial_id=trial_id,
                    param_name=name,
                    param_value=value,
                    distribution_json=texts[name],
                )
            for objective, info in enumerate(OBJECTIVES):
                add(
                    models.TrialValueModel,
                    trial_id=trial_id,
                    objective=objective,
                    value=evaluation.quantities[info.name]["value"],
                    value_type=models.TrialValueModel.TrialValueType.FINITE,
                )
            for key, value in attrs.items():
                add(models.TrialUserAttributeModel, trial_id=trial_id, key=key, value_json=json.dumps(value))
            generation = (number - first) // population
            add(
                models.TrialSystemAttributeModel,
                trial_id=trial_id,
                key="NSGAIISampler:generation",
                value_json=json.dumps(generation),
            )
        for model, columns in rows.items():
            connection.execute(sqlalchemy.insert(model.__table__), columns)
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(
                "SELECT setval(pg_get_serial_sequence('trials', 'trial_id'), (SELECT max(trial_id) FROM trials))"
            )


def main(url: str, name: str, seconds: float) -> None:
    """Work at a study until it is complete, and print what the storage cost."""
    opened = study.get(storage.open_storage(url, create=False, patience_s=120), name)
    storage.be_patient(opened, 120)
    meter = Meter(storage.engine_of(opened._storage))
    trials = []
    print("ready", flush=True)
    sys.stdin.readline()  # until all are ready
    time.sleep(random.Random(os.getpid()).uniform(0, seconds))

    def pause(plan: Plan, **_given: Any) -> Evaluation:
        trials.append(plan)
        time.sleep(seconds)
        return evaluation_of(plan)

    work(opened, pause, Silent())
    print(
        json.dumps(
            {
                "trials": len(trials),
                "storage_s": meter.seconds,
                "round_trips": meter.round_trips,
                "commits": meter.commits,
                "cpu_s": time.process_time(),
            }
        )
    )


if __name__ == "__main__":
    main(os.environ["PARETOBERT_STORAGE"], sys.argv[1], float(sys.argv[2]))
