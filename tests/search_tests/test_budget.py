"""A search ends when its time or energy is over, and begins no trial that could not finish."""

import time
from pathlib import Path
from typing import Any

import pytest
from engine_cases import DEFINITION, SilentListener, begin, evaluation_of
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.costs import Counter
from search.engine import attributes, study
from search.engine.budget import J_PER_KWH, spent
from search.engine.metering import energy_j
from search.engine.worker import work
from search.limits import Limits
from search.plan import Plan
from search.records import Evaluation


def trial(
    seconds: float, joules: float = 0.0, worker: str = "me", state: TrialState = TrialState.COMPLETE
) -> FrozenTrial:
    attrs = {attributes.SECONDS: {"recover": seconds}, attributes.WORKER: worker, attributes.ENERGY_J: joules}
    return create_trial(values=[0.0] if state == TrialState.COMPLETE else None, state=state, user_attrs=attrs)


def test_without_limits_nothing_is_ever_spent() -> None:
    assert spent(Limits(), [trial(1e9, 1e12)], "me") is None


@pytest.mark.parametrize(
    ("now", "why"),
    [(50.0, None), (69.9, None), (70.1, "a trial takes up to 30 s, and 30 s are left"), (100.0, "the time is over")],
)
def test_the_last_trial_is_not_begun_if_it_cannot_finish(now: float, why: str | None) -> None:
    assert spent(Limits(until=100.0), [trial(10), trial(30), trial(20)], "me", now=now) == why


def test_a_worker_goes_by_its_own_trials_and_by_the_others_until_it_has_any() -> None:
    others = [trial(60, worker="a slow one")]
    assert spent(Limits(until=100.0), [*others, trial(10)], "me", now=80.0) is None
    assert spent(Limits(until=100.0), others, "me", now=80.0) == "a trial takes up to 60 s, and 20 s are left"
    assert spent(Limits(until=100.0), [], "me", now=99.9) is None


def test_energy_of_all_workers_counts_also_that_of_failed_trials() -> None:
    kwh = J_PER_KWH / 10
    trials = [trial(1, kwh), trial(1, 2 * kwh, worker="other"), trial(1, kwh, state=TrialState.FAIL)]
    assert sum(map(energy_j, trials)) == pytest.approx(4 * kwh)
    assert spent(Limits(energy_kwh=0.51), trials, "me") is None
    assert spent(Limits(energy_kwh=0.49), trials, "me") == (
        "the study has used 0.4 of 0.49 kWh, and a trial takes up to 0.1 kWh"
    )


def test_a_search_ends_in_time_and_says_why(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, DEFINITION)
    listener = SilentListener()

    begun: list[float] = []

    def slow(plan: Plan, **given: Any) -> Evaluation:
        begun.append(time.time())
        time.sleep(0.1)
        whole = evaluation_of(plan, **given)
        return Evaluation(whole.quantities, {}, {"recover": 1.3}, {})

    until = time.time() + 2.5
    assert work(opened, slow, listener, limits=Limits(until=until))
    # None is begun in the last 1.3 s; on a busy machine more than a little may pass from the decision to the begin.
    assert max(begun) < until - 0.4
    assert time.time() < until + 5
    assert 1 <= len(study.read(opened).complete) < DEFINITION.engine.trials
    assert listener.notes[-1].startswith("no further trial is begun: ")
    assert not [r for r in study.read(opened).records if r.state == "running"]


def test_the_energy_of_a_worker_is_noted_trial_by_trial(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, DEFINITION)
    used = [0.0]

    def hungry(plan: Plan, **given: Any) -> Evaluation:
        used[0] += 1800.0
        if used[0] == 3600.0:
            raise ZeroDivisionError
        return Evaluation(evaluation_of(plan, **given).quantities, {}, {"recover": 1.0}, {})

    listener = SilentListener()
    assert work(opened, hungry, listener, limits=Limits(energy_kwh=0.003), counter=Counter("nvml", lambda: used[0]))
    noted = [t.user_attrs.get(attributes.ENERGY_J) for t in opened.trials if t.state.is_finished()]
    assert noted[:2] == [1800.0, 1800.0]
    assert sum(noted) <= 0.003 * J_PER_KWH
    assert "of 0.003 kWh" in listener.notes[-1]
