"""A study that moves between storages is the same study, and goes on as it would have gone on."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from engine_cases import DEFINITION, SilentListener, create_in, evaluation_of
from optuna.trial import TrialState

from search.definition import Definition
from search.engine import attributes, storage, study
from search.engine.copy import copy
from search.engine.worker import work
from search.errors import UserError
from search.plan import Plan
from search.records import Evaluation


def small(**engine: object) -> Definition:
    return DEFINITION.model_copy(update={"engine": DEFINITION.engine.model_copy(update=engine)})


def searched(url: str, trials: int) -> optuna.Study:
    opened = create_in(storage.open_storage(url, create=True), small(trials=trials, population=8))
    assert work(opened, evaluation_of, SilentListener())
    return opened


@pytest.mark.parametrize(("one", "other"), [("sqlite", "journal"), ("journal", "sqlite")])
def test_everything_is_copied(one: str, other: str, tmp_path: Path) -> None:
    opened = searched(f"{one}:///{tmp_path}/one.db", 20)
    opened._storage.set_study_system_attr(opened._study_id, "dashboard:note", "a person's note")
    target = storage.open_storage(f"{other}:///{tmp_path}/other.db", create=True)
    create_in(target, small(trials=8).model_copy(update={"name": "beside"}))  # numbers of trials differ in the target
    moved = copy(opened, target)
    assert study.read(moved) == study.read(opened)
    assert study.stored(moved) == study.stored(opened)
    assert moved.metric_names == opened.metric_names
    assert [t.distributions for t in moved.trials] == [t.distributions for t in opened.trials]
    assert [t.system_attrs for t in moved.trials] == [t.system_attrs for t in opened.trials]
    assert [t.datetime_start for t in moved.trials] == [t.datetime_start for t in opened.trials]
    assert moved._storage.get_study_system_attrs(moved._study_id)["dashboard:note"] == "a person's note"


def test_a_copied_search_goes_on_as_the_source_would(tmp_path: Path) -> None:
    """The parents of a generation are stored by numbers of the storage: copied as they are, they would be others."""
    opened = searched(f"sqlite:///{tmp_path}/one.db", 20)
    target = storage.open_storage(f"sqlite:///{tmp_path}/other.db", create=True)
    create_in(target, small(trials=8).model_copy(update={"name": "beside"}))
    moved = copy(opened, target)
    parents = "NSGAIISampler:parent:1"
    stored = [each._storage.get_study_system_attrs(each._study_id)[parents] for each in (opened, moved)]
    assert stored[0] != stored[1]
    numbers = [
        {t.number for t in each.trials if t._trial_id in ids} for each, ids in zip((opened, moved), stored, strict=True)
    ]
    assert numbers[0] == numbers[1]
    for each in (opened, moved):
        study.set_trials(each, small(trials=30, population=8))
        assert work(each, evaluation_of, SilentListener())
    assert [r.plan for r in study.read(moved).records] == [r.plan for r in study.read(opened).records]
    assert len(study.read(moved).complete) == 30


def test_what_runs_is_failed_and_queued_in_the_copy(tmp_path: Path) -> None:
    opened = create_in(storage.open_storage(f"sqlite:///{tmp_path}/one.db", create=True), small(trials=8))
    opened._storage.set_trial_state_values(opened.trials[0]._trial_id, state=TrialState.RUNNING)
    moved = copy(opened, storage.open_storage(f"sqlite:///{tmp_path}/other.db", create=True))
    assert opened.trials[0].state == TrialState.RUNNING
    assert moved.trials[0].state == TrialState.FAIL
    assert moved.trials[-1].user_attrs[attributes.RETRY_OF] == 0
    assert work(moved, evaluation_of, SilentListener())
    assert study.read(moved).dense is not None


def test_an_interrupted_copy_is_never_taken_for_a_study_and_begun_anew(tmp_path: Path) -> None:
    opened = searched(f"sqlite:///{tmp_path}/one.db", 12)
    target = storage.open_storage(f"sqlite:///{tmp_path}/other.db", create=True)

    def interrupt(done: int, _total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy(opened, target, on_trial=interrupt)
    with pytest.raises(UserError, match="is an unfinished copy; run the same paretobert copy again"):
        study.read(study.get(target, DEFINITION.name))
    whole = copy(opened, target)
    assert study.read(whole) == study.read(opened)
    third = storage.open_storage(f"sqlite:///{tmp_path}/third.db", create=True)
    with pytest.raises(KeyboardInterrupt):  # a copy of a copy
        copy(whole, third, on_trial=interrupt)
    assert study.read(copy(whole, third)) == study.read(opened)


def test_a_study_of_that_name_is_not_overwritten(tmp_path: Path) -> None:
    opened = searched(f"sqlite:///{tmp_path}/one.db", 8)
    target = storage.open_storage(f"sqlite:///{tmp_path}/other.db", create=True)
    copy(opened, target)
    with pytest.raises(UserError, match="holds a study 'case' already"):
        copy(opened, target)
    foreign = optuna.create_study(study_name="foreign", storage=opened._storage)
    foreign.set_user_attr("theirs", 1)
    with pytest.raises(UserError, match="'foreign' was not made by paretobert"):
        copy(foreign, target)


def test_a_copy_that_differs_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = searched(f"sqlite:///{tmp_path}/one.db", 8)
    target = storage.open_storage(f"sqlite:///{tmp_path}/other.db", create=True)
    stock = type(target.inner).create_new_trial

    def loses(self: Any, study_id: int, template_trial: Any = None) -> int:
        template_trial.user_attrs.pop(attributes.SEED, None)
        return int(stock(self, study_id, template_trial))

    monkeypatch.setattr(type(target.inner), "create_new_trial", loses)
    monkeypatch.setattr("search.engine.copy._finished", lambda trial: __import__("copy").deepcopy(trial))
    with pytest.raises(UserError, match=r"trial 0 was not copied whole \(its user_attrs differ\)"):
        copy(opened, target)


def test_an_overview_says_how_far_each_study_is(tmp_path: Path) -> None:
    opened = create_in(storage.open_storage(f"sqlite:///{tmp_path}/one.db", create=True), small(trials=12))

    def stops(plan: Plan, **given: Any) -> Evaluation:
        if len(opened.get_trials(states=(TrialState.COMPLETE,))) == 2:
            raise KeyboardInterrupt
        return evaluation_of(plan, **given)

    assert not work(opened, stops, SilentListener())
    optuna.create_study(study_name="foreign", storage=opened._storage)
    ours, foreign = study.overview(opened._storage)
    assert (ours.name, ours.total) == ("case", 12)
    assert ours.counts == {"complete": 2, "failed": 1, "waiting": 3}
    assert ours.last is not None
    assert (foreign.name, foreign.total, foreign.counts, foreign.last) == ("foreign", None, {}, None)
