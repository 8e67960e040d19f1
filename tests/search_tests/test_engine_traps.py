"""Each trap of Optuna 5 that touches a search, shown closed: on real databases, with real processes."""

import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import optuna
import pytest
from engine_cases import DEFINITION, SHAPE, SilentListener, begin, evaluation_of
from filelock import FileLock
from optuna.samplers import NSGAIISampler, RandomSampler
from optuna.trial import TrialState
from optuna_dashboard._serializer import serialize_frozen_trial

from search.definition import Definition, EngineSettings, LayerRanges, Range, SpaceSettings
from search.engine import attributes, heartbeats, storage, study
from search.engine.retry import ATTEMPTS, hand_back, take_back_orphans
from search.engine.sampler import BY_NAME, population_size
from search.engine.worker import work
from search.plan import Plan
from search.space import Space


def small(definition: Definition, **engine: object) -> Definition:
    return definition.model_copy(update={"engine": definition.engine.model_copy(update=engine)})


def test_queued_ladder_trials_become_parents(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, small(DEFINITION, trials=14, population=8))
    assert work(opened, evaluation_of, SilentListener())
    ladder = {t.number for t in opened.trials if t.user_attrs[attributes.ROLE] in ("dense", "ladder")}
    parents = opened._storage.get_study_system_attrs(opened._study_id)["NSGAIISampler:parent:1"]
    numbers = {t.number for t in opened.trials if t._trial_id in parents}
    assert len(ladder) == 5  # eight rungs, of which four heads and four blocks tell five apart
    assert ladder <= numbers
    assert len(numbers) == 8


@pytest.mark.parametrize("name", ["nsga2", "nsga3", "surrogate"])
def test_no_plan_is_drawn_by_chance_once_a_trial_has_finished(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(*_args: object) -> None:
        raise AssertionError("a ratio was drawn at random")

    monkeypatch.setattr(RandomSampler, "sample_independent", drawn)
    opened, _url = begin(tmp_path, small(DEFINITION, trials=14, population=20, sampler=name))
    assert work(opened, evaluation_of, SilentListener())  # the first generation alone would take 20 trials
    assert len([t for t in opened.trials if t.user_attrs[attributes.ROLE] == "search"]) >= 8


def test_stock_sampler_leaves_queued_trials_without_generation() -> None:
    """The trap itself, as this version of Optuna has it: when this fails, the wrapper may lose a line."""
    plain = optuna.create_study(directions=["minimize", "minimize"], sampler=NSGAIISampler(population_size=2, seed=0))
    plain.enqueue_trial({"x": 0.5})
    plain.optimize(lambda trial: (trial.suggest_float("x", 0, 1),) * 2, n_trials=1)
    assert "NSGAIISampler:generation" not in plain.trials[0].system_attrs


def test_no_sample_is_repeated_when_a_search_is_resumed(tmp_path: Path) -> None:
    opened, url = begin(tmp_path, small(DEFINITION, trials=18, ladder=(), sampler="random"))
    work(opened, evaluation_of, SilentListener())
    first = [tuple(t.params.values()) for t in opened.trials]
    again = study.get(storage.open_storage(url, create=False), DEFINITION.name)
    study.set_trials(again, small(DEFINITION, trials=36, ladder=(), sampler="random"))
    work(again, evaluation_of, SilentListener())
    second = [tuple(t.params.values()) for t in again.trials[18:]]
    assert len(second) == 18
    assert not set(first) & set(second)


SAMPLER = """
import sys
from engine_cases import DEFINITION, SilentListener, evaluation_of
from search.engine import storage, study
from search.engine.worker import work
work(study.get(storage.open_storage(sys.argv[1], create=False), DEFINITION.name), evaluation_of, SilentListener())
"""


def test_workers_do_not_draw_the_same(tmp_path: Path) -> None:
    opened, url = begin(tmp_path, small(DEFINITION, trials=40, ladder=(), sampler="random"))
    here = str(Path(__file__).parent)
    workers = [subprocess.Popen([sys.executable, "-c", SAMPLER, url], cwd=here) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    drawn = [tuple(t.params.values()) for t in opened.trials]
    assert len(drawn) >= 40
    assert len(set(drawn)) == len(drawn)


def test_an_interrupted_search_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    plans = []
    for name, stops in (("whole", [24]), ("parts", [7, 16, 24])):
        folder = tmp_path / name
        folder.mkdir()
        opened, url = begin(folder, small(DEFINITION, trials=stops[-1], population=8))
        for stop in stops:
            again = study.get(storage.open_storage(url, create=False), DEFINITION.name)
            study.set_trials(again, small(DEFINITION, trials=stop, population=8))
            assert work(again, evaluation_of, SilentListener())
        plans.append([r.plan for r in study.read(opened).records])
    assert plans[0] == plans[1]


@pytest.mark.parametrize("name", BY_NAME)
def test_samples_lie_on_the_grid_and_are_new(name: str, tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, small(DEFINITION, trials=40, population=8, sampler=name))
    assert work(opened, evaluation_of, SilentListener())
    space = Space.of(DEFINITION.space, SHAPE)
    for trial in opened.trials:
        for dimension in space.dimensions:
            assert trial.params[dimension.name] == dimension.snap(trial.params[dimension.name])
    plans = Counter(space.plan(t.params) for t in opened.trials)
    assert sum(n - 1 for n in plans.values()) <= (0 if name in ("nsga2", "nsga3", "surrogate") else 4)


@pytest.mark.parametrize("name", ["nsga2", "nsga3", "surrogate"])
def test_plans_are_new_where_a_dimension_leaves_no_choice(name: str, tmp_path: Path) -> None:
    space = SpaceSettings(neuron_block=16, layers={"0": LayerRanges(heads=Range(low=0.5, high=0.5))})
    wanted = small(DEFINITION.model_copy(update={"space": space}), trials=40, population=8, sampler=name)
    opened, _url = begin(tmp_path, wanted)
    assert work(opened, evaluation_of, SilentListener())
    plans = Counter(record.plan for record in study.read(opened).complete)
    assert len(plans) == 40
    dense = study.read(opened).dense
    assert all(plan == dense.plan or plan.heads[0] == SHAPE.heads // 2 for plan in plans)


def test_infeasible_trials_are_infeasible_for_optuna_and_for_the_dashboard(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, DEFINITION)
    work(opened, partial(evaluation_of, at_most=20_000.0), SilentListener())
    about = study.read(opened)
    infeasible = [r for r in about.complete if not r.feasible]
    assert infeasible
    assert len(infeasible) < len(about.complete)
    assert all(r.violations["parameters"] > 0 for r in infeasible)
    best = {t.number for t in opened.best_trials}
    for record in about.complete:
        shown = serialize_frozen_trial(opened._study_id, opened.trials[record.trial], {})
        assert any(value > 0 for value in shown["constraints"]) == (not record.feasible)
        assert record.feasible or record.trial not in best


def test_metric_names_are_set(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, DEFINITION)
    assert opened.metric_names == ["accuracy", "parameters", "latency_ms", "energy_mj"]


def test_population_fits_the_number_of_trials() -> None:
    for trials in (10, 24, 100, 1000):
        size = population_size(EngineSettings(trials=trials))
        assert 8 <= size <= 50
        assert size < trials


def test_sqlite_uses_a_write_ahead_log_and_immediate_transactions(tmp_path: Path) -> None:
    opened = storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    with storage.engine_of(opened).connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1


TAKER = """
import sys, optuna
from search.engine.storage import open_storage
study = optuna.load_study(study_name="queue", storage=open_storage(sys.argv[1], create=False))
while study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
"""


def test_a_waiting_trial_is_taken_by_one_worker_only(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/queue.db"
    queue = optuna.create_study(study_name="queue", storage=storage.open_storage(url, create=True))
    for number in range(30):
        queue.enqueue_trial({"x": number / 30})
    workers = [subprocess.Popen([sys.executable, "-c", TAKER, url], stderr=subprocess.PIPE) for _ in range(4)]
    errors = [worker.communicate()[1].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0, 0], errors
    taken = Counter(
        trial.params["x"] for trial in queue.trials if trial.state == TrialState.COMPLETE and trial.number < 30
    )
    assert len(taken) == 30
    assert queue.get_trials(states=(TrialState.WAITING, TrialState.RUNNING)) == []


CUT_SHORT = """
import optuna, pathlib, resource, sys
from search.engine.storage import open_storage
study = optuna.load_study(study_name="kept", storage=open_storage(sys.argv[1], create=False))
size = pathlib.Path(sys.argv[2]).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, size + 40))
try:
    study.set_user_attr("half", "x" * 100)
except OSError:
    print("full")
"""


def test_a_write_that_was_cut_short_costs_a_journal_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "study.journal"
    url = f"journal:///{file}"
    kept = optuna.create_study(study_name="kept", storage=storage.open_storage(url, create=True))
    kept.set_user_attr("before", 1)
    for name in ("first", "second"):
        told = subprocess.run([sys.executable, "-c", CUT_SHORT, url, file], capture_output=True, text=True, check=True)
        assert told.stdout == "full\n"
        assert not file.read_bytes().endswith(b"\n")
        assert "half" not in optuna.load_study(study_name="kept", storage=kept._storage).user_attrs
        opened = optuna.load_study(study_name="kept", storage=storage.open_storage(url, create=False))
        opened.set_user_attr(name, 1)
        kept.set_user_attr(f"{name} of another", 1)
    again = optuna.load_study(study_name="kept", storage=storage.open_storage(url, create=False))
    assert again.user_attrs.keys() == {
        "before", "first", "first of another", "second", "second of another"
    }  # fmt: skip


def test_a_journal_that_cannot_be_repaired_is_not_left_locked(tmp_path: Path) -> None:
    file = tmp_path / "study.journal"
    opened = storage.open_storage(f"journal:///{file}", create=True)
    file.unlink()
    file.mkdir()
    with pytest.raises(IsADirectoryError):
        optuna.create_study(storage=opened)
    with FileLock(f"{file}.writing", timeout=1):
        pass


def test_a_trial_is_handed_back_with_its_plan_and_clean_attributes(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, DEFINITION)
    trial = _ask(opened)
    trial.set_constraint("parameters", 5.0)
    opened._storage.set_trial_system_attr(trial._trial_id, "NSGAIISampler:generation", 7)
    trial.set_user_attr(attributes.QUANTITIES, {"accuracy": {"value": 0.1}})
    opened.tell(trial, state=TrialState.FAIL)
    hand_back(opened, opened.trials[trial.number])
    queued = opened.trials[-1]
    assert queued.state == TrialState.WAITING
    assert queued.system_attrs.keys() == {"fixed_params"}
    assert queued.system_attrs["fixed_params"] == opened.trials[trial.number].system_attrs["fixed_params"]
    assert queued.user_attrs == {attributes.ROLE: "dense", attributes.RETRY_OF: trial.number, attributes.ATTEMPT: 2}


def test_a_plan_is_handed_back_only_so_often(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, small(DEFINITION, ladder=()))
    for _ in range(ATTEMPTS):
        assert len(opened.get_trials(states=(TrialState.WAITING,))) == 1
        trial = _ask(opened)
        opened.tell(trial, state=TrialState.FAIL)
        hand_back(opened, opened.trials[trial.number])
    assert opened.get_trials(states=(TrialState.WAITING,)) == []


def _ask(opened: optuna.Study) -> optuna.Trial:
    with pytest.warns(UserWarning, match="Heartbeat"):
        return opened.ask()


KILLED = """
import sys, time
from engine_cases import DEFINITION, SilentListener
from search.engine import storage, study
from search.engine.worker import work
def hang(plan, *, seed, on_stage):
    print("running", flush=True)
    time.sleep(60)
work(study.get(storage.open_storage(sys.argv[1], create=False), DEFINITION.name), hang, SilentListener())
"""


def test_a_killed_workers_plan_is_found_by_its_heartbeat_and_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = small(DEFINITION, trials=9)
    opened, url = begin(tmp_path, definition)
    here = str(Path(__file__).parent)
    with subprocess.Popen([sys.executable, "-c", KILLED, url], stdout=subprocess.PIPE, cwd=here) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"running\n"
        victim.kill()
    assert opened.trials[0].state == TrialState.RUNNING
    monkeypatch.setattr("search.engine.retry._machine", lambda: "another machine")
    monkeypatch.setattr(heartbeats, "GRACE_S", 1)
    monkeypatch.setattr(heartbeats, "CONFIRM_S", 1)
    time.sleep(2)
    again = study.get(storage.open_storage(url, create=False), DEFINITION.name)
    assert work(again, evaluation_of, SilentListener())
    records = study.read(again).records
    assert records[0].state == "failed"
    assert records[0].failure == study.LOST
    assert len([r for r in records if r.role == "dense" and r.state == "complete"]) == 1
    assert len([r for r in records if r.state == "complete"]) == 9
    assert not [r for r in records if r.state in ("running", "waiting")]


def test_a_killed_workers_plan_is_taken_back_at_once_on_the_same_machine(tmp_path: Path) -> None:
    opened, url = begin(tmp_path, small(DEFINITION, trials=9))
    here = str(Path(__file__).parent)
    with subprocess.Popen([sys.executable, "-c", KILLED, url], stdout=subprocess.PIPE, cwd=here) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"running\n"
        assert take_back_orphans(opened) == []  # it lives
        victim.kill()
    listener = SilentListener()
    assert work(opened, evaluation_of, listener)
    assert listener.notes == ["trial 0 was left unfinished by a worker that is gone; its plan is queued again"]
    records = study.read(opened).records
    assert len([r for r in records if r.state == "complete"]) == 9
    assert [r.state for r in records if r.role == "dense"] == ["failed", "complete"]


def test_a_retried_trial_has_the_seed_of_the_first(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, small(DEFINITION, trials=8))
    seeds = []

    def note_seed(plan: Plan, **given: object) -> object:
        seeds.append(given["seed"])
        if len(seeds) == 1:
            raise KeyboardInterrupt
        return evaluation_of(plan, **given)

    assert not work(opened, note_seed, SilentListener())
    assert work(opened, note_seed, SilentListener())
    dense = [r for r in study.read(opened).complete if r.role == "dense"]
    assert [r.seed for r in dense] == [seeds[0]]
