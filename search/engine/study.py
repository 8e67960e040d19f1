"""One study in its database: create it, compare it, read it back as plain records.

The database is self-contained: the definition stands in it as JSON, with the sizes of the model and the objectives, so
that every command works from the storage and the study's name alone.
"""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search import definition as definitions
from search.definition import Definition
from search.engine import attributes
from search.engine.constraints import violations_of
from search.engine.metering import counter_of, energy_j, lasted_s
from search.engine.retry import ATTEMPTS, unsettled
from search.engine.sampler import population_size
from search.errors import UserError, unknown_name
from search.plan import Plan, Shape
from search.records import LOST, Confirmation, ObjectiveInfo, Overview, Record, State, StudyRecord
from search.space import Space

STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
    TrialState.PRUNED: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}

FOR_GOOD = f"{LOST}, like {ATTEMPTS - 1} others with this plan: it is not tried again"
"""Reason of the last such trial of a plan."""


CREATION_S = 10.0
"""Seconds that a study's creation may take before another process completes it."""


@dataclass(frozen=True)
class Stored:
    """What a study says about itself.

    Attributes:
        definition: The definition it was created with.
        shape: Sizes of the dense model.
        objectives: Its objectives, in the order of the vector.
        energy_source: `nvml`, `rapl` or `model`.
        content: Hashes of the rows and of the dense model's making.
        machine: Device and threads that latencies are measured with.
        population: Plans per generation.
        reference_ms: Latencies of the dense model when the study was created, by quantity; empty where there are none.
    """

    definition: Definition
    shape: Shape
    objectives: tuple[ObjectiveInfo, ...]
    energy_source: str
    content: dict[str, str]
    machine: str
    population: int
    reference_ms: dict[str, float]


def names(storage: BaseStorage) -> list[str]:
    """Names of all studies in a storage."""
    return optuna.get_all_study_names(storage)


def overview(storage: BaseStorage) -> list[Overview]:
    """How far each study of a storage is, by name."""
    found = []
    for name in sorted(names(storage)):
        study = optuna.load_study(study_name=name, storage=storage)
        trials = study.get_trials(deepcopy=False)
        moments = [at for trial in trials for at in (trial.datetime_start, trial.datetime_complete) if at is not None]
        try:
            total = stored(study).definition.engine.trials
        except UserError:
            total = None
        counts: dict[State, int] = {}
        for trial in trials:
            counts[STATES[trial.state]] = counts.get(STATES[trial.state], 0) + 1
        found.append(Overview(name, counts, total, max(moments, default=None)))
    return found


def find(storage: BaseStorage, name: str) -> Study | None:
    """The study of that name, or None where there is none."""
    if name not in names(storage):
        return None
    return optuna.load_study(study_name=name, storage=storage)


def get(storage: BaseStorage, name: str) -> Study:
    """The study of that name.

    Raises:
        UserError: If the storage holds no such study; the studies that it holds are listed.
    """
    study = find(storage, name)
    if study is None:
        raise UserError(unknown_name("study", name, names(storage)))
    return study


def is_whole(study: Study) -> bool:
    """Whether a study's creation was finished; one that was interrupted is completed by `create`.

    Raises:
        UserError: If the study was not made by paretobert.
    """
    attrs = study.user_attrs
    if attributes.POPULATION in attrs:
        return True
    if attributes.UNFINISHED in attrs:
        raise UserError(f"the study {study.study_name!r} is an unfinished copy; run the same paretobert copy again")
    if attributes.SHAPE in attrs or not (attrs or study.get_trials(deepcopy=False)):
        return False
    raise UserError(f"the study {study.study_name!r} was not made by paretobert; choose another name or storage")


def stored(study: Study) -> Stored:
    """What a study says about itself.

    Raises:
        UserError: If the study was not made by paretobert.
    """
    attrs = study.user_attrs
    if not is_whole(study):
        raise UserError(
            f"the creation of the study {study.study_name!r} was interrupted; start it again with its script"
        )
    return Stored(
        definition=definitions.from_json(
            attrs[attributes.DEFINITION], source=f"the study {study.study_name!r}", stored=True
        ),
        shape=Shape(**attrs[attributes.SHAPE]),
        objectives=tuple(ObjectiveInfo(**info) for info in attrs[attributes.OBJECTIVES]),
        energy_source=attrs[attributes.ENERGY_SOURCE],
        content=attrs[attributes.CONTENT],
        machine=attrs[attributes.MACHINE],
        population=attrs[attributes.POPULATION],
        reference_ms=attrs.get(attributes.REFERENCE, {}),
    )


def check_same(study: Study, given: Definition) -> None:
    """Refuse to resume a study with a definition that differs where it matters.

    Raises:
        UserError: If it differs; the differences are listed.
    """
    different = definitions.differences(stored(study).definition, given)
    if different:
        raise UserError(
            f"the study {study.study_name!r} exists with another definition; choose another name (--name), or go back "
            f"to the stored values. Stored -> given: " + "; ".join(different)
        )


def create(
    storage: BaseStorage,
    definition: Definition,
    *,
    shape: Shape,
    objectives: tuple[ObjectiveInfo, ...],
    energy_source: str,
    content: dict[str, str],
    machine: str,
    ladder: Sequence[Mapping[str, float]],
    preparation: Mapping[str, float] | None = None,
    preparation_j: Mapping[str, tuple[float, str]] | None = None,
    rows: Mapping[str, tuple[int, float]] | None = None,
    reference_ms: Mapping[str, float] | None = None,
    mass: Mapping[str, Sequence[float]] | None = None,
) -> Study:
    """Create the study, or complete one whose creation was interrupted, or open the one that exists.

    Args:
        storage: Where.
        definition: Everything that determines it.
        shape: Sizes of the dense model.
        objectives: Its objectives, in the order of the vector.
        energy_source: `nvml`, `rapl` or `model`.
        content: Hashes of the rows and of the dense model's making.
        machine: Device and threads that latencies are measured with.
        ladder: Plans to begin with, as ratios by dimension.
        preparation: Seconds that each artifact took when it was really made, by kind.
        preparation_j: Joules that each took, and the counter that says so, by kind.
        rows: Rows and mean tokens of the splits that a search reads, by split.
        reference_ms: Latencies of the dense model, by quantity, that those of all trials are related to.
        mass: Importance that each dimension keeps with 0, 1, ... units, for samplers that can use it.

    Returns:
        The study, with the dense model and then the ladder queued.

    Raises:
        UserError: If it exists with a definition that differs where it matters, or empty with other directions.
    """
    directions = [objective.direction for objective in objectives]
    try:
        study = optuna.create_study(study_name=definition.name, storage=storage, directions=directions)
    except DuplicatedStudyError:
        study = optuna.load_study(study_name=definition.name, storage=storage)
        _wait_for_creator(study)
    if is_whole(study):
        check_same(study, definition)
    else:
        known = [direction.name.lower() for direction in study.directions]
        if known != directions:
            raise UserError(
                f"the study {definition.name!r} is there, empty, and is to {', '.join(known)}, where the definition is "
                f"to {', '.join(directions)}: its creation was interrupted before the objectives were changed, or "
                "another program made it; choose another name (--name)"
            )
        # The population comes last: where it stands, everything stands.
        study.set_user_attr(attributes.SHAPE, asdict(shape))
        study.set_user_attr(attributes.OBJECTIVES, [asdict(objective) for objective in objectives])
        study.set_user_attr(attributes.ENERGY_SOURCE, energy_source)
        study.set_user_attr(attributes.CONTENT, content)
        study.set_user_attr(attributes.MACHINE, machine)
        study.set_user_attr(attributes.PREPARATION, dict(preparation or {}))
        if preparation_j:
            study.set_user_attr(attributes.PREPARATION_J, {kind: list(cost) for kind, cost in preparation_j.items()})
        if rows:
            study.set_user_attr(attributes.ROWS, {split: list(size) for split, size in rows.items()})
        if reference_ms:
            study.set_user_attr(attributes.REFERENCE, dict(reference_ms))
        if mass is not None:
            study.set_user_attr(attributes.MASS, {name: list(kept) for name, kept in mass.items()})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names([objective.label for objective in objectives])
        queue_dense(study, Space.of(definition.space, shape, definition.recovery))
        for ratios in ladder:
            study.enqueue_trial(dict(ratios), user_attrs={attributes.ROLE: "ladder"}, skip_if_exists=True)
        study.set_user_attr(attributes.DEFINITION, definition.to_json())
        study.set_user_attr(attributes.POPULATION, population_size(definition.engine))
    return study


def _wait_for_creator(study: Study) -> None:
    """Give another process that is creating the study the time to finish; one that died is stood in for."""
    end = time.monotonic() + CREATION_S
    while not is_whole(study) and time.monotonic() < end:
        time.sleep(0.2)


def set_trials(study: Study, definition: Definition, *, may_lower: bool = True) -> Definition:
    """Store the given definition: `check_same` allows it to differ only in when to stop.

    Args:
        study: The study.
        definition: The definition.
        may_lower: Whether its total replaces a higher one, at which all workers would stop.

    Returns:
        What is stored then.
    """
    known = stored(study).definition
    if not may_lower and definition.engine.trials < known.engine.trials:
        engine = definition.engine.model_copy(update={"trials": known.engine.trials})
        definition = definition.model_copy(update={"engine": engine})
    if known != definition:
        study.set_user_attr(attributes.DEFINITION, definition.to_json())
    return definition


def queue_dense(study: Study, space: Space) -> None:
    """Queue the dense model again where its trial failed and nobody will: without it a study has no reference."""
    states = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)
    trials = study.get_trials(deepcopy=False)
    pending = {trial.number for trial in unsettled(trials)}
    dense = [trial for trial in trials if trial.user_attrs.get(attributes.ROLE) == "dense"]
    for_good = any(  # it kills its workers
        trial.user_attrs.get(attributes.ATTEMPT, 1) >= ATTEMPTS and attributes.FAILURE not in trial.user_attrs
        for trial in dense
    )
    if not for_good and not any(trial.state in states or trial.number in pending for trial in dense):
        study.enqueue_trial(space.uniform(1.0), user_attrs={attributes.ROLE: "dense"})


def preparation_j(study: Study) -> float:
    """Joules that a study's preparation took, as counters say; 0 where none could be read."""
    return sum(float(joules) for joules, _by in study.user_attrs.get(attributes.PREPARATION_J, {}).values())


def read(study: Study) -> StudyRecord:
    """The whole study as plain data.

    Raises:
        UserError: If the study was not made by paretobert.
    """
    about = stored(study)
    names = [objective.name for objective in about.objectives]
    return StudyRecord(
        name=study.study_name,
        definition=about.definition,
        objectives=about.objectives,
        shape=about.shape,
        records=tuple(record(trial, names) for trial in study.get_trials(deepcopy=False)),
        preparation=study.user_attrs.get(attributes.PREPARATION, {}),
        preparation_j={kind: (j, by) for kind, (j, by) in study.user_attrs.get(attributes.PREPARATION_J, {}).items()},
        rows={split: (count, mean) for split, (count, mean) in study.user_attrs.get(attributes.ROWS, {}).items()},
        confirmations=_confirmations(study.user_attrs),
    )


def plan_of(trial: FrozenTrial) -> Plan | None:
    """What a trial keeps; None where it has not said so yet."""
    attrs = trial.user_attrs
    if attributes.HEADS not in attrs or attributes.NEURONS not in attrs:
        return None
    return Plan(tuple(attrs[attributes.HEADS]), tuple(attrs[attributes.NEURONS]), attrs.get(attributes.RANK))


def keep_confirmation(study: Study, confirmation: Confirmation) -> None:
    """Store what became of a trial that was confirmed, in place of an earlier confirmation of it.

    Args:
        study: The study.
        confirmation: It is one row: who reads meanwhile sees the earlier one or this one.
    """
    study.set_user_attr(f"{attributes.CONFIRMED}{confirmation.trial}", asdict(confirmation))


def _confirmations(attrs: Mapping[str, Any]) -> tuple[Confirmation, ...]:
    """By number of the trial; fields that another version wrote are passed over."""
    known = {each.name for each in fields(Confirmation)}
    stored = [value for name, value in attrs.items() if name.startswith(attributes.CONFIRMED)]
    found = []
    for value in stored:
        values = {name: each for name, each in value.items() if name in known}
        found.append(Confirmation(**{**values, "seeds": tuple(values["seeds"]), "beats": tuple(values["beats"])}))
    return tuple(sorted(found, key=lambda each: each.trial))


def record(trial: FrozenTrial, objective_names: list[str]) -> Record:
    """One trial as plain data.

    Args:
        trial: The trial as Optuna stores it.
        objective_names: Names of the values, in their order.
    """
    attrs = trial.user_attrs
    state = STATES[trial.state]
    values = cast("list[float]", trial.values) if state == "complete" else []
    return Record(
        trial=trial.number,
        state=state,
        plan=plan_of(trial),
        ratios=dict(trial.params),
        schedule=attrs.get(attributes.SCHEDULE, {}),
        precision=attrs.get(attributes.PRECISION, "fp32"),
        rungs=tuple((share, metric) for share, metric in attrs.get(attributes.RUNGS, ())),
        ended_at=attrs.get(attributes.ENDED),
        audited_at=attrs.get(attributes.AUDITED),
        values=dict(zip(objective_names, values, strict=bool(values))),
        quantities=attrs.get(attributes.QUANTITIES, {}),
        feasible=all(value <= 0 for value in trial.constraints.values()),
        violations=violations_of(trial),
        seconds=attrs.get(attributes.SECONDS, {}),
        seed=attrs.get(attributes.SEED),
        answered_from=attrs.get(attributes.ANSWERED_FROM),
        role=attrs.get(attributes.ROLE, "search"),
        failure=attrs.get(attributes.FAILURE, _lost(attrs)) if state == "failed" else None,
        conditions=attrs.get(attributes.CONDITIONS, {}),
        energy_j=energy_j(trial),
        counter=counter_of(trial),
        lasted_s=lasted_s(trial),
        cut_from=attrs.get(attributes.CUT_FROM),
        weights=attrs.get(attributes.WEIGHTS),
        answers=trial.system_attrs.get(attributes.ANSWERS),
    )


def _lost(attrs: Mapping[str, Any]) -> str:
    return LOST if attrs.get(attributes.ATTEMPT, 1) < ATTEMPTS else FOR_GOOD
