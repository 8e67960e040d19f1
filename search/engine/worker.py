"""The loop of one worker: ask for a plan, have it evaluated, tell what came out; until the study has its trials.

    ┌─► enough trials? ──yes──► end
    │     no
    │   study.optimize(n_trials=1)      Optuna runs one trial, with its heartbeat
    │     suggest ─► plan ─┬─ known ──► answer from its record
    │                      └─ new ────► evaluate ─► attributes, constraints, values
    └─────┘

Ctrl-C once lets the running trial finish; twice hands its plan back to the queue and ends now.
"""

import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Protocol

import numpy as np
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from search.engine import attributes, sampler
from search.engine.constraints import set_constraints
from search.engine.retry import give_up_own, hand_back, take_back_orphans
from search.engine.study import queue_dense, record, stored
from search.errors import TrialError, UserError
from search.plan import Plan
from search.records import Evaluation, Record
from search.space import Space


class Evaluate(Protocol):
    """Evaluates one plan; `search.pipeline.evaluate` behind a worker."""

    def __call__(self, plan: Plan, *, seed: int, on_stage: Callable[[str, int, int], None]) -> Evaluation:
        """Cut, measure, recover and score a plan."""
        ...


class Listener(Protocol):
    """Is told how the search goes on."""

    def stage(self, trial: int, name: str, done: int, total: int) -> None:
        """A trial is at this step of a stage."""
        ...

    def finished(self, record: Record, completed: int, total: int) -> None:
        """A trial ended; so many are complete of so many."""
        ...

    def note(self, text: str) -> None:
        """Something a person should know."""
        ...


RECOVERY = 1
"""Third part of a recovery's seed, so that it has nothing to do with that of the trial's sampling."""


@dataclass
class _Running:
    """What this worker is at. Mutable: it is the state of the loop."""

    trial: Trial | None = None
    draining: bool = False
    failures: list[str] = field(default_factory=list)


def work(study: Study, evaluate: Evaluate, listener: Listener) -> bool:
    """Run trials until the study has as many complete ones as its definition asks for.

    Args:
        study: The study.
        evaluate: Evaluates one plan.
        listener: Is told how it goes on.

    Returns:
        Whether the study is complete; False if the search was interrupted.

    Raises:
        UserError: If as many trials in a row failed as the definition allows.
    """
    about = stored(study)
    space = Space.of(about.definition.space, about.shape)
    names = [objective.name for objective in about.objectives]
    study.sampler = sampler.make(about.definition.engine, space, population=about.population)
    total = about.definition.engine.trials
    running = _Running()

    def run_one(trial: Trial) -> Sequence[float]:
        running.trial = trial
        return _run(trial, study, space, names, evaluate, listener, seed=about.definition.engine.seed)

    for number in take_back_orphans(study):
        listener.note(f"trial {number} was left unfinished by a worker that is gone; its plan is queued again")
    queue_dense(study, space)
    with _interruptible(running, listener):
        while (completed := _completed(study)) < total:
            if running.draining:
                return False
            running.trial = None
            try:
                study.optimize(run_one, n_trials=1, catch=(TrialError,))
            except KeyboardInterrupt:
                _give_up(study, running, listener)
                return False
            except (UpdateFinishedTrialError, ValueError):
                if not _was_taken_away(study, running):
                    raise
                listener.note("this worker was silent for too long; its trial was handed to another")
                continue
            _report(study, names, running, listener, completed, total, about.definition.engine.failures_in_a_row)
    return True


def _run(
    trial: Trial,
    study: Study,
    space: Space,
    names: Sequence[str],
    evaluate: Evaluate,
    listener: Listener,
    *,
    seed: int,
) -> Sequence[float]:
    """One trial: the values of its plan, and everything that is kept beside them."""
    role = trial.user_attrs.get(attributes.ROLE, "search")
    ratios = {d.name: trial.suggest_float(d.name, d.low, d.high) for d in space.dimensions}
    plan = Plan.dense(space.shape) if role == "dense" else space.plan(ratios)
    trial.set_user_attr(attributes.ROLE, role)
    trial.set_user_attr(attributes.HEADS, list(plan.heads))
    trial.set_user_attr(attributes.NEURONS, list(plan.neurons))
    known = _same_plan(study, names, plan)
    if known is not None:
        return _answer(trial, known, names)
    lineage = trial.user_attrs.get(attributes.RETRY_OF, trial.number)
    number = int(np.random.SeedSequence([seed, lineage, RECOVERY]).generate_state(1)[0])
    trial.set_user_attr(attributes.SEED, number)
    try:
        evaluation = evaluate(
            plan, seed=number, on_stage=lambda name, done, all_: listener.stage(trial.number, name, done, all_)
        )
        missing = [name for name in names if name not in evaluation.quantities]
        if missing:
            raise TrialError(f"the evaluation did not measure {', '.join(missing)}")
    except (TrialError, UserError) as failure:
        trial.set_user_attr(attributes.FAILURE, str(failure))
        raise
    except KeyboardInterrupt:
        trial.set_user_attr(attributes.FAILURE, "stopped on request; its plan is queued again")
        raise
    except Exception as error:
        trial.set_user_attr(attributes.FAILURE, f"{type(error).__name__}: {error}")
        trial.set_user_attr("traceback", traceback.format_exc(limit=-6))
        raise TrialError(f"{type(error).__name__}: {error}") from error
    outside = {"space": 1.0} if role == "dense" and space.plan(space.uniform(1.0)) != plan else {}
    return _store(trial, evaluation, {**evaluation.violations, **outside}, names)


def _store(
    trial: Trial, evaluation: Evaluation, violations: Mapping[str, float], names: Sequence[str]
) -> Sequence[float]:
    trial.set_user_attr(attributes.QUANTITIES, evaluation.quantities)
    trial.set_user_attr(attributes.SECONDS, evaluation.seconds)
    trial.set_user_attr(attributes.CONDITIONS, evaluation.conditions)
    set_constraints(trial, violations)
    return [float(evaluation.quantities[name]["value"]) for name in names]


def _same_plan(study: Study, names: Sequence[str], plan: Plan) -> Record | None:
    """The complete record of the same network, if there is one."""
    heads, neurons = list(plan.heads), list(plan.neurons)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        attrs = trial.user_attrs
        if attrs.get(attributes.HEADS) == heads and attrs.get(attributes.NEURONS) == neurons:
            return record(trial, list(names))
    return None


def _answer(trial: Trial, known: Record, names: Sequence[str]) -> Sequence[float]:
    """Equal plans are one network: take over what its record says, and say so."""
    first = known.answered_from if known.answered_from is not None else known.trial
    trial.set_user_attr(attributes.ANSWERED_FROM, first)
    trial.set_user_attr(attributes.QUANTITIES, known.quantities)
    trial.set_user_attr(attributes.CONDITIONS, known.conditions)
    set_constraints(trial, known.violations)
    return [known.values[name] for name in names]


def _completed(study: Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def _report(
    study: Study,
    names: Sequence[str],
    running: _Running,
    listener: Listener,
    completed: int,
    total: int,
    failures_in_a_row: int,
) -> None:
    """Tell the listener what became of the trial; stop after too many failures in a row."""
    assert running.trial is not None
    finished = record(_stored_trial(study, running.trial), list(names))
    listener.finished(finished, completed + (finished.state == "complete"), total)
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
    with _deaf():
        given_up = give_up_own(study)  # stopped before Optuna noticed, while it was sampling, say
        if running.trial is not None:
            frozen = _stored_trial(study, running.trial)
            if frozen.state == TrialState.FAIL and frozen.number not in given_up:
                hand_back(study, frozen, counts=False)
                given_up.append(frozen.number)
        for number in given_up:
            listener.note(f"trial {number} was stopped; its plan is queued again")


def _was_taken_away(study: Study, running: _Running) -> bool:
    """Whether another worker declared this worker's trial dead."""
    return running.trial is not None and _stored_trial(study, running.trial).state == TrialState.FAIL


def _stored_trial(study: Study, trial: Trial) -> FrozenTrial:
    return study.get_trials(deepcopy=False)[trial.number]


@contextmanager
def _deaf() -> Iterator[None]:
    """Let no signal interrupt the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _interruptible(running: _Running, listener: Listener) -> Iterator[None]:
    """First Ctrl-C: finish the running trial, then end. Second Ctrl-C, or a request to terminate: end now.

    Signals reach the main thread only; in another one nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if running.draining:
            raise KeyboardInterrupt
        running.draining = True
        number = "" if running.trial is None else f" {running.trial.number}"
        listener.note(f"finishing trial{number}, then stopping; press Ctrl-C again to hand it back and stop now")

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, interrupt),
        signal.SIGTERM: signal.signal(signal.SIGTERM, terminate),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
