"""Ratios and attributes that wait: written before anything is read, and never to a trial that others have ended."""

from pathlib import Path

import pytest
from engine_cases import DEFINITION, begin
from optuna.study import Study
from optuna.trial import Trial, TrialState
from sqlalchemy import event

from search.engine import storage, study

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage")  # the trials here are asked for by hand


def two(tmp_path: Path) -> tuple[Study, Study]:
    """One study, as two workers' connections see it."""
    opened, url = begin(tmp_path, DEFINITION)
    return opened, study.get(storage.open_storage(url, create=False), DEFINITION.name)


def told(trial: Trial) -> None:
    trial.suggest_float("layer.0.heads", 0.0, 1.0)
    trial.set_user_attr("a", 1)
    trial.set_user_attr("a", [2, "ü"])


def test_what_waits_is_there_for_whoever_reads_after_its_writer_did(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    trial = one.ask()
    told(trial)
    number = trial.number
    assert other.get_trials(deepcopy=False)[number].params == {}  # it waits
    seen = one.get_trials(deepcopy=False)[number]
    assert seen.user_attrs["a"] == [2, "ü"]
    assert other.get_trials(deepcopy=False)[number].params == seen.params == trial.params
    assert other.get_trials(deepcopy=False)[number].user_attrs["a"] == [2, "ü"]


def test_the_end_of_a_trial_writes_all_of_it_in_few_commits(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    trial = one.ask()
    commits: list[object] = []
    event.listen(one._storage.inner._backend.engine, "commit", commits.append)
    for number in range(40):
        trial.set_user_attr(f"attribute {number}", number)
    assert not commits
    one.tell(trial, state=TrialState.FAIL)
    assert len(commits) <= 5
    attrs = other.get_trials(deepcopy=False)[trial.number].user_attrs
    assert all(attrs[f"attribute {number}"] == number for number in range(40))


def test_nothing_is_written_to_a_trial_that_another_worker_declared_dead(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    trial, alive = one.ask(), one.ask()
    told(trial)
    told(alive)
    other._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    one.get_trials(deepcopy=False)  # writes what waits
    dead, living = (other.get_trials(deepcopy=False)[each.number] for each in (trial, alive))
    assert dead.params == {}
    assert "a" not in dead.user_attrs
    assert living.user_attrs["a"] == [2, "ü"]
