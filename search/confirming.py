"""`paretobert confirm`: the points, their trainings one seed after the other, and what came of them in the study.

Seeds go round: after the first round every point has been trained once. What is done is written into the study at once;
what was confirmed with more seeds before keeps them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from search.analysis.front import front
from search.analysis.quantities import quantity
from search.errors import TrialError, UserError
from search.listener import Listener
from search.process import Place
from search.records import Confirmation, Record, StudyRecord


@dataclass(frozen=True)
class Wanted:
    """What is to be confirmed, and how.

    Attributes:
        trials: Numbers of the trials; empty takes the front.
        points: How many points of the front at most, spread over its sizes; None takes all.
        seeds: Trainings per point.
        epochs: Passes over the training rows; None takes as many as the dense model was fine-tuned for.
        steps: Optimizer steps instead.
    """

    trials: tuple[int, ...] = ()
    points: int | None = None
    seeds: int = 3
    epochs: float | None = None
    steps: int | None = None


def confirm(name: str, place: Place, wanted: Wanted, listener: Listener) -> StudyRecord:
    """Confirm points of a study, the dense model beside them.

    Args:
        name: Its name.
        place: Where it is kept, and the device: one like that which it was measured on.
        wanted: What is to be confirmed.
        listener: Is told how it goes on.

    Returns:
        The study, with what came of it.

    Raises:
        UserError: If the study is not there, a trial cannot be confirmed, or no training succeeded.
    """
    from search import weighing
    from search.deploy import confirm as deployed
    from search.engine import storage as storages
    from search.engine import study as studies
    from search.preparation import held_out_rows
    from search.reopening import reopen

    opened = reopen(name, place, listener, measures=True)
    study, prepared, artifacts = opened.study, opened.prepared, opened.artifacts
    records = _points(study, wanted)
    rows = held_out_rows(prepared, artifacts)
    kept = studies.get(storages.open_storage(place.storage, create=False, **place.patience), name)
    settings = {
        record.trial: None
        if deployed.is_dense(study, record)
        else deployed.full_budget(
            study, record.trial, rows=len(prepared.train), epochs=wanted.epochs, steps=wanted.steps
        )
        for record in records
    }
    there = {each.trial: each for each in study.confirmations}
    before = {  # as many trainings of the same kind lie there: fewer never take their place
        trial: len(deployed.remembered(prepared, study, artifacts, there[trial]))
        for trial, recovery in settings.items()
        if trial in there and there[trial].recovery == ({} if recovery is None else recovery.model_dump(mode="json"))
    }
    turns = {
        trial: 1 if recovery is None else max(wanted.seeds, before.get(trial, 0))
        for trial, recovery in settings.items()
    }
    done: dict[int, list[deployed.Training]] = {record.trial: [] for record in records}
    known = {}
    made: dict[int, Confirmation] = {}
    for turn in range(max(turns.values())):
        for record in records:
            trial, recovery = record.trial, settings[record.trial]
            if turn >= turns[trial]:
                continue
            listener.note(f"trial {trial}, training {turn + 1} of {turns[trial]}")
            try:
                training = deployed.train_again(
                    prepared,
                    study,
                    artifacts,
                    rows,
                    trial,
                    recovery,
                    None if recovery is None else deployed.seeds_of(study, trial, turns[trial])[turn],
                    on_stage=partial(listener.stage, trial),
                    on_wait=listener.note,
                )
            except TrialError as failure:
                listener.note(f"trial {trial}, training {turn + 1} failed: {failure}")
                continue
            done[trial].append(training)
            known[trial] = weighing.evidence_of(study, done[trial], rows.labels)
            made[trial] = weighing.summarise(
                study,
                trial,
                done[trial],
                known[trial],
                rows.labels,
                recovery=recovery,
                asked=0 if recovery is None else turns[trial],
            )
            if len(done[trial]) >= before.get(trial, 0):
                studies.keep_confirmation(kept, made[trial])
    trained = [trial for trial, recovery in settings.items() if recovery is not None]
    if trained and not any(done[trial] for trial in trained):
        raise UserError(f"no training of the study {name!r} succeeded; the reasons are above")
    made = {trial: each for trial, each in made.items() if len(done[trial]) >= before.get(trial, 0)}
    now = studies.read(kept)  # another process may have confirmed something meanwhile
    others = {each.trial: each for each in now.confirmations if each.trial not in made}
    compared = list(made.values())
    for trial, earlier in others.items():
        if trainings := deployed.remembered(prepared, now, artifacts, earlier):
            known[trial] = weighing.evidence_of(now, trainings, rows.labels)
            compared.append(earlier)
        elif set(earlier.beats) & made.keys():  # it was compared with what these were before
            studies.keep_confirmation(
                kept, replace(earlier, beats=tuple(beaten for beaten in earlier.beats if beaten not in made))
            )
    for confirmation in weighing.ranked(compared, known):
        if confirmation != others.get(confirmation.trial):
            studies.keep_confirmation(kept, confirmation)
    return studies.read(kept)


def _points(study: StudyRecord, wanted: Wanted) -> list[Record]:
    """The records to confirm, the dense model first; a trial that another one answered stands for that one."""
    from search.deploy.rebuild import origin

    chosen = [origin(study, trial) for trial in wanted.trials] or spread(study, front(study), wanted.points)
    dense = [] if study.dense is None else [origin(study, study.dense.trial)]
    if not chosen:
        raise UserError(f"the study {study.name!r} has no front yet; name the trials to confirm")
    return list({record.trial: record for record in (*dense, *chosen)}.values())


def spread(study: StudyRecord, members: Sequence[Record], points: int | None) -> list[Record]:
    """Some points of a front, from its largest encoder to its smallest in even steps.

    Args:
        study: The study.
        members: Its front.
        points: How many at most; None takes all.

    Returns:
        The points; the dense model is none of them.
    """
    ordered = sorted(
        (record for record in members if record.role != "dense"),
        key=lambda record: (-(quantity(study, record, "encoder_share") or 0.0), record.trial),
    )
    if points is None or len(ordered) <= points:
        return ordered
    if points == 1:
        return [ordered[len(ordered) // 2]]
    return [ordered[round(at * (len(ordered) - 1) / (points - 1))] for at in range(points)]
