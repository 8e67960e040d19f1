"""The loop of one worker: ask for a plan, have it evaluated, tell what came out; until the study has its trials.

    ┌─► enough trials, or the budget used up? ──yes──► end
    │     no
    │   others are at the last ones? ──yes──► wait: one of them may die
    │     no
    │   study.optimize(n_trials=1)      Optuna runs one trial, with its heartbeat
    │     one too many? ──yes──► give it up
    │     suggest ─► plan ─┬─ known, or being made ──► answer from its record
    │                      └─ new ───────────────────► evaluate ─► attributes, constraints, values
    └─────┘

Any number of workers run this loop on one study, and it ends with exactly the trials that were asked for.

Ctrl-C once lets the running trial finish; twice hands its plan back to the queue and ends now.
"""

import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import numpy as np
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from search.costs import Counter
from search.definition import Definition
from search.engine import attributes, housekeeping, sampler
from search.engine.ancestry import nearest
from search.engine.budget import spent
from search.engine.claims import is_double, is_surplus, made_by_others
from search.engine.constraints import set_constraints
from search.engine.ending import Referee
from search.engine.metering import Metered
from search.engine.patience import is_passing
from search.engine.retry import DOUBLE, STOPPED, SURPLUS, give_up_own, hand_back, this_worker, unsettled
from search.engine.storage import be_patient
from search.engine.study import preparation_j, queue_dense, record, stored
from search.errors import TrialError, UserError
from search.limits import Limits
from search.listener import Listener
from search.plan import Plan
from search.records import SPACE, Ancestor, Evaluation, Record
from search.signals import handled
from search.space import Space


class Evaluate(Protocol):
    """Evaluates one plan; `search.pipeline.evaluate` behind a worker."""

    def __call__(
        self,
        plan: Plan,
        *,
        seed: int,
        on_stage: Callable[[str, int, int], None],
        schedule: Mapping[str, float] | None = None,
        on_rung: Callable[[float, float, Mapping[str, float]], bool] | None = None,
        ancestor: Ancestor | None = None,
        precision: str = "fp32",
    ) -> Evaluation:
        """Cut, measure, recover and score a plan.

        `schedule` is only given where it is a dimension, `on_rung` where the definition names rungs, `ancestor` where
        plans are cut from the nearest finished trial and there is one, `precision` where it is another than fp32.
        """
        ...


POLL_S = 1.0
"""Seconds between two looks at what the other workers do, while there is nothing to begin."""

GIVE_UP_S = 10.0
"""Seconds that a worker that shall stop now waits for the study database."""

LONGEST_POLL_S = 5.0
"""Seconds between two such looks, at most."""

RECOVERY = 1
"""Third part of a recovery's seed, so that it has nothing to do with that of the trial's sampling."""


@dataclass
class _Running:
    """What this worker is at. Mutable: it is the state of the loop."""

    metered: Metered
    trial: Trial | None = None
    draining: bool = False
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Job:
    """What is the same for all trials of this worker."""

    study: Study
    space: Space
    names: tuple[str, ...]
    definition: Definition
    evaluate: Evaluate
    listener: Listener


def work(
    study: Study,
    evaluate: Evaluate,
    listener: Listener,
    *,
    limits: Limits | None = None,
    counter: Counter | None = None,
) -> bool:
    """Run trials until the study has as many complete ones as its definition asks for, or the budget is used up.

    The total is read again before each trial: it may be raised while workers run.

    Args:
        study: The study.
        evaluate: Evaluates one plan.
        listener: Is told how it goes on, now and then from another thread.
        limits: What the search may use; by default there is no end but the total.
        counter: Energy counter of this worker's device; None where none can be read.

    Returns:
        Whether the search ended by itself; False if it was interrupted.

    Raises:
        UserError: If as many trials in a row failed as the definition allows.
    """
    about, prepared_j = stored(study), preparation_j(study)
    space = Space.of(about.definition.space, about.shape, about.definition.recovery)
    names = tuple(objective.name for objective in about.objectives)
    study.sampler = sampler.make(about.definition, space, population=about.population)
    job = _Job(study, space, names, about.definition, evaluate, listener)
    running = _Running(metered=Metered(counter))

    def run_one(trial: Trial) -> Sequence[float]:
        running.trial = trial
        if is_surplus(study, trial.number, asked(study)):
            _give_way(trial, SURPLUS)
        if attributes.RETRY_OF in trial.user_attrs and is_double(study, trial.number):
            _give_way(trial, DOUBLE)
        with running.metered.noted(trial):
            try:
                values = _run(trial, job)
            except ValueError as error:  # below, one says that a trial was told which had ended: this is none of these
                raise RuntimeError(f"trial {trial.number} cannot be run: {error}") from error
        if _stored_trial(study, trial).state != TrialState.RUNNING:  # another worker declared it dead
            raise UpdateFinishedTrialError
        return values

    housekeeping.tidy(study, listener.note)
    queue_dense(study, space)
    _warn_of_crowd(study, about.population, listener)
    idle = _Idle()
    in_background = housekeeping.in_background(study, listener.note, running.metered.say_so_far)
    with in_background, _interruptible(running, listener):
        try:
            while True:
                total, trials = asked(study), study.get_trials(deepcopy=False)
                complete = sum(trial.state == TrialState.COMPLETE for trial in trials)
                # What has just failed by no fault of its own is about to be queued again, and shall not lose its place.
                begun = sum(trial.state == TrialState.RUNNING for trial in trials) + len(unsettled(trials))
                if complete >= total:
                    return True
                if running.draining:
                    return False
                why = None if limits is None else spent(limits, trials, this_worker(), prepared_j=prepared_j)
                if why is not None:
                    listener.note(f"no further trial is begun: {why}")
                    return True
                if complete + begun >= total:
                    time.sleep(idle.pause_s())
                    continue
                idle = _Idle()
                if _ran(study, run_one, running, listener):
                    _report(job, running, total, about.definition.engine.failures_in_a_row)
                running.trial = None
        except KeyboardInterrupt:
            _give_up(study, running, listener)
            return False


def _ran(study: Study, run_one: Callable[[Trial], Sequence[float]], running: _Running, listener: Listener) -> bool:
    """Run one trial; whether it was this worker's to its end."""
    try:
        study.optimize(run_one, n_trials=1, catch=(TrialError,))
    except UserError:
        if running.trial is not None:  # what is wrong may be put right, and the plan tried again
            hand_back(study, _stored_trial(study, running.trial))
        raise
    except (UpdateFinishedTrialError, ValueError, AssertionError) as error:
        if running.trial is None and isinstance(error, UpdateFinishedTrialError):
            return False  # declared dead while it was sampled
        if not _has_ended(study, running) or not _is_of_telling(error):
            raise
        if _was_taken_away(study, running):
            listener.note("this worker was silent for too long; its trial was handed to another")
            return False
    return True


def _give_way(trial: Trial, reason: str) -> None:
    trial.set_user_attr(attributes.FAILURE, reason)
    raise TrialError(reason)


def asked(study: Study) -> int:
    """Completed trials that the study shall have, as it says now."""
    return stored(study).definition.engine.trials


def _warn_of_crowd(study: Study, population: int, listener: Listener) -> None:
    """Say so where so many workers run that NSGA-II has little to learn from."""
    workers = 1 + len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
    if 2 * workers > population and workers > 1:
        listener.note(
            f"{workers} workers share a population of {population}: the plans of a generation are proposed before its "
            f"results are in, and the search comes close to a random one; use at most {population // 2} workers, or "
            "start a study with a larger engine.population"
        )


class _Idle:
    """How long a worker without a trial waits before it looks again: longer each time, so that many do not press."""

    def __init__(self) -> None:
        self._next_s = POLL_S

    def pause_s(self) -> float:
        """Seconds until the next look."""
        now_s, self._next_s = self._next_s, min(1.5 * self._next_s, LONGEST_POLL_S)
        return now_s


def _run(trial: Trial, job: _Job) -> Sequence[float]:
    """One trial: the values of its plan, and everything that is kept beside them."""
    study, space, names, listener = job.study, job.space, job.names, job.listener
    role = trial.user_attrs.get(attributes.ROLE, "search")
    ratios = {d.name: trial.suggest_float(d.name, d.low, d.high) for d in space.dimensions}
    plan = Plan.dense(space.shape) if role == "dense" else space.plan(ratios)
    schedule = {} if plan == Plan.dense(space.shape) else space.schedule(ratios)  # the dense model is not recovered
    trial.set_user_attr(attributes.ROLE, role)
    if plan.rank is not None:  # first: where heads and neurons stand, the plan is whole
        trial.set_user_attr(attributes.RANK, plan.rank)
    if schedule:
        trial.set_user_attr(attributes.SCHEDULE, schedule)
    precision = space.precisions[0] if role == "dense" else space.precision(ratios)
    if precision != "fp32":
        trial.set_user_attr(attributes.PRECISION, precision)
    trial.set_user_attr(attributes.HEADS, list(plan.heads))
    trial.set_user_attr(attributes.NEURONS, list(plan.neurons))
    while (other := made_by_others(study, plan, trial.number, schedule, precision)) is not None:
        if other.state == TrialState.COMPLETE:
            return _answer(trial, record(other, list(names)), names)
        listener.stage(trial.number, "wait for the same plan", 0, 1)
        time.sleep(POLL_S)
    lineage = trial.user_attrs.get(attributes.RETRY_OF, trial.number)
    number = int(np.random.SeedSequence([job.definition.engine.seed, lineage, RECOVERY]).generate_state(1)[0])
    trial.set_user_attr(attributes.SEED, number)
    referee = Referee(study, job.definition, space, plan, trial.number)
    asked_for: dict[str, Any] = {"schedule": schedule} if schedule else {}
    if precision != "fp32":
        asked_for["precision"] = precision
    if job.definition.ending.rungs:
        asked_for["on_rung"] = referee
    try:
        if job.definition.recovery.inherits and (ancestor := nearest(study, plan, space.shape)) is not None:
            asked_for["ancestor"] = ancestor
        evaluation = job.evaluate(
            plan,
            seed=number,
            on_stage=lambda name, done, all_: listener.stage(trial.number, name, done, all_),
            **asked_for,
        )
        missing = [name for name in names if name not in evaluation.quantities]
        if missing:
            raise TrialError(f"the evaluation did not measure {', '.join(missing)}")
    except (TrialError, UserError) as failure:
        trial.set_user_attr(attributes.FAILURE, str(failure))
        raise
    except KeyboardInterrupt:
        trial.set_user_attr(attributes.FAILURE, STOPPED)
        raise
    except Exception as error:
        trial.set_user_attr(attributes.FAILURE, f"{type(error).__name__}: {error}")
        trial.set_user_attr(attributes.TRACEBACK, traceback.format_exc(limit=-6))
        raise TrialError(f"{type(error).__name__}: {error}") from error
    other = made_by_others(study, plan, trial.number, schedule, precision)
    if other is not None and other.state == TrialState.COMPLETE:  # begun at the same moment, and finished sooner
        return _answer(trial, record(other, list(names)), names)
    referee.note(trial)  # only now: a trial that another one answers was not ended itself
    outside = {SPACE: 1.0} if role == "dense" and space.plan(space.uniform(1.0)) != plan else {}
    return _store(trial, evaluation, {**evaluation.violations, **outside}, names)


def _store(
    trial: Trial, evaluation: Evaluation, violations: Mapping[str, float], names: Sequence[str]
) -> Sequence[float]:
    trial.set_user_attr(attributes.QUANTITIES, evaluation.quantities)
    warned = [quantity["warning"] for quantity in evaluation.quantities.values() if "warning" in quantity]
    if warned:
        trial.set_user_attr(attributes.WARNINGS, warned)
    trial.set_user_attr(attributes.SECONDS, evaluation.seconds)
    trial.set_user_attr(attributes.CONDITIONS, evaluation.conditions)
    if evaluation.cut_from is not None:
        trial.set_user_attr(attributes.CUT_FROM, evaluation.cut_from)
    if evaluation.weights is not None:
        trial.set_user_attr(attributes.WEIGHTS, evaluation.weights)
    _keep_answers(trial, evaluation.answers)
    set_constraints(trial, violations)
    return [float(evaluation.quantities[name]["value"]) for name in names]


def _answer(trial: Trial, known: Record, names: Sequence[str]) -> Sequence[float]:
    """Equal plans are one network: take over what its record says, and say so."""
    first = known.answered_from if known.answered_from is not None else known.trial
    trial.set_user_attr(attributes.ANSWERED_FROM, first)
    trial.set_user_attr(attributes.QUANTITIES, known.quantities)
    trial.set_user_attr(attributes.CONDITIONS, known.conditions)
    if known.ended_at is not None:
        trial.set_user_attr(attributes.ENDED, known.ended_at)
    _keep_answers(trial, known.answers)
    set_constraints(trial, known.violations)
    return [known.values[name] for name in names]


def _keep_answers(trial: Trial, answers: Mapping[str, Any] | None) -> None:
    """Write the answers in the transaction of the trial's end, so that no record has those of another attempt."""
    if answers is not None:
        trial.storage.set_trial_system_attr(trial._trial_id, attributes.ANSWERS, dict(answers))


def _report(job: _Job, running: _Running, total: int, failures_in_a_row: int) -> None:
    """Tell the listener what became of the trial; stop after too many failures in a row."""
    assert running.trial is not None
    trials = job.study.get_trials(deepcopy=False)
    frozen = trials[running.trial.number]
    finished = record(frozen, list(job.names))
    if finished.failure == SURPLUS:
        hand_back(job.study, frozen, counts=False)
    if finished.failure in (SURPLUS, DOUBLE):
        return
    completed = sum(trial.state == TrialState.COMPLETE for trial in trials)
    job.listener.finished(finished, completed, total)
    if finished.state == "complete":
        running.failures.clear()
        return
    running.failures.append(f"trial {finished.trial}: {finished.failure}")
    if len(running.failures) >= failures_in_a_row:
        raise UserError(
            f"{len(running.failures)} trials in a row failed (engine.failures_in_a_row is {failures_in_a_row}); the "
            f"last reason: {running.failures[-1]}; put that right and start the same command again"
        )


def _give_up(study: Study, running: _Running, listener: Listener) -> None:
    """Hand the plan of the interrupted trial back to the queue, and say so; a further Ctrl-C waits."""
    be_patient(study, GIVE_UP_S)
    with handled({signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN}):
        try:
            given_up = give_up_own(study)  # stopped before Optuna noticed, while it was sampling, say
            if running.trial is not None:
                frozen = _stored_trial(study, running.trial)
                own = frozen.user_attrs.get(attributes.FAILURE) in (None, STOPPED)
                if frozen.state == TrialState.FAIL and own and frozen.number not in given_up:
                    hand_back(study, frozen, counts=False)
                    given_up.append(frozen.number)
        except Exception as error:
            if not is_passing(error):
                raise
            listener.note("the study database does not answer; the trial will be found by its missing heartbeat")
            return
        for number in given_up:
            listener.note(f"trial {number} was stopped; its plan is queued again")


def _is_of_telling(error: Exception) -> bool:
    """Whether it comes from telling a trial that has ended; Optuna's loop hides that behind an assertion of its own."""
    hidden = error.__context__ if isinstance(error, AssertionError) else error
    return isinstance(hidden, UpdateFinishedTrialError | ValueError)


def _has_ended(study: Study, running: _Running) -> bool:
    """Whether the trial that could not be told has ended: by another worker, or by a call whose answer was lost."""
    return running.trial is not None and _stored_trial(study, running.trial).state.is_finished()


def _was_taken_away(study: Study, running: _Running) -> bool:
    """Whether another worker declared this worker's trial dead."""
    assert running.trial is not None
    frozen = _stored_trial(study, running.trial)
    return frozen.state == TrialState.FAIL and attributes.FAILURE not in frozen.user_attrs


def _stored_trial(study: Study, trial: Trial) -> FrozenTrial:
    return study.get_trials(deepcopy=False)[trial.number]


def _interruptible(running: _Running, listener: Listener) -> AbstractContextManager[None]:
    """First Ctrl-C: finish the running trial, then end. Second Ctrl-C, or a request to terminate: end now."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if running.draining:
            raise KeyboardInterrupt
        running.draining = True
        number = "" if running.trial is None else f" {running.trial.number}"
        listener.note(f"finishing trial{number}, then stopping; press Ctrl-C again to hand it back and stop now")

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    return handled({signal.SIGINT: interrupt, signal.SIGTERM: terminate})
