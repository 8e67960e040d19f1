"""What a worker uses is written down once, and stays known as far as it was said where the worker dies."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_cases import DEFINITION, SilentListener, begin, evaluation_of
from optuna.trial import TrialState

from objectives import MeasurementUnavailable
from objectives.energy.choose import COUNTERS
from search import costs, process
from search.analysis.ledger import ledger
from search.artifacts import Artifacts
from search.costs import Cost, Counter
from search.engine import attributes, housekeeping, study
from search.engine.budget import spent
from search.engine.metering import Metered
from search.engine.retry import take_back_orphans
from search.engine.worker import work
from search.limits import Limits
from search.plan import Plan
from search.records import LOST, Evaluation

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage")  # trials are asked for one by one here


class Device:
    """A device whose counter stands where a test puts it, and a clock likewise."""

    def __init__(self) -> None:
        self.used_j = 0.0
        self.now_s = 0.0
        self.counter = Counter("nvml", lambda: self.used_j)
        self.metered = Metered(self.counter, clock=lambda: self.now_s)

    def runs(self, seconds: float, joules: float) -> None:
        self.now_s, self.used_j = self.now_s + seconds, self.used_j + joules


def test_each_joule_is_noted_once_and_those_between_two_trials_are_the_later_ones(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, DEFINITION)
    device = Device()
    device.runs(9.0, 50.0)
    for number in range(2):
        trial = opened.ask()
        with device.metered.noted(trial):
            device.runs(2.0, 100.0)
            device.metered.say_so_far()
            device.runs(1.0, 20.0)
        device.runs(1.0, 7.0)
        found = study.read(opened).records[number]
        assert (found.lasted_s, found.counter) == (3.0, "nvml")
        assert found.energy_j == (170.0 if number == 0 else 127.0)
    device.metered.say_so_far()  # between two trials there is nothing to say it in
    assert study.read(opened).records[1].energy_j == 127.0


def test_what_a_dead_worker_said_last_is_what_its_trial_used(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, DEFINITION)
    device = Device()
    trial = opened.ask()
    running = device.metered.noted(trial)
    running.__enter__()
    device.runs(20.0, 400.0)
    device.metered.say_so_far()
    device.runs(15.0, 300.0)  # it dies here, and nothing more is known
    trial.set_user_attr(attributes.WORKER, "elsewhere")
    opened._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    found = study.read(opened).records[0]
    assert (found.energy_j, found.lasted_s, found.counter, found.failure) == (400.0, 20.0, "nvml", LOST)
    (lost,) = [entry for entry in ledger(study.read(opened)).entries if entry.group == "worker lost"]
    assert (lost.seconds, lost.counted_j) == (20.0, 400.0)
    trials = opened.get_trials()
    assert spent(Limits(energy_kwh=1e-4), trials, "me") == (
        "the study has used 0.000111111 of 0.0001 kWh, and a trial takes up to 0 kWh"
    )


def test_a_worker_whose_trial_was_taken_away_owes_only_the_rest_to_its_next(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, DEFINITION)
    device = Device()
    first = opened.ask()
    with device.metered.noted(first):
        device.runs(20.0, 400.0)
        device.metered.say_so_far()
        opened._storage.set_trial_state_values(first._trial_id, state=TrialState.FAIL)
        device.runs(15.0, 300.0)
        device.metered.say_so_far()  # too late, and not counted as said
    second = opened.ask()
    with device.metered.noted(second):
        device.runs(1.0, 11.0)
    found = [each.energy_j for each in study.read(opened).records[:2]]
    assert found == [400.0, 311.0]
    assert sum(found) == device.used_j


def test_without_a_counter_the_time_is_noted_all_the_same(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, DEFINITION)
    metered = Metered(None)
    trial = opened.ask()
    with metered.noted(trial):
        metered.say_so_far()
    found = study.read(opened).records[0]
    assert found.energy_j is None
    assert found.counter is None
    assert found.lasted_s is not None
    assert attributes.COUNTER not in opened.trials[0].user_attrs


def test_a_counter_that_cannot_be_read_for_a_moment_costs_no_trial(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, DEFINITION)
    meter = Meter()
    used_j = process._used_since_now(meter, 1.0)
    metered = Metered(Counter("nvml", used_j))
    for refusing in (False, True, False):
        trial = opened.ask()
        with metered.noted(trial):
            meter.refuses = refusing
            metered.say_so_far()
        opened.tell(trial, [0.0] * 4)
    found = study.read(opened).records[:3]
    assert [each.counter for each in found] == ["nvml", None, "nvml"]
    assert found[1].energy_j is None
    assert found[1].lasted_s is not None
    total = used_j()
    assert total is not None
    assert sum(each.energy_j or 0.0 for each in found) == total - 1.0  # the second's joules are the third's
    counter = Counter("nvml", used_j)
    make = costs.noted(lambda _folder: setattr(meter, "refuses", True), counter)
    make(tmp_path)
    cost = costs.read(tmp_path)
    assert cost is not None
    assert cost.joules is None


class Meter:
    """Counts 1,000 mJ between any two readings, where it does not refuse."""

    source = "rapl"
    readings = 0
    refuses = False

    def read_mj(self) -> float:
        if self.refuses:
            raise MeasurementUnavailable("nvml cannot read the board's energy (Unknown Error)")
        self.readings += 1
        return 1000.0 * self.readings


def test_a_working_worker_says_what_it_used_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "EVERY_S", 0.05)
    opened, _url = begin(tmp_path, DEFINITION)
    seen = []

    def slow(plan: Plan, **_given: Any) -> Evaluation:
        end = time.monotonic() + 30
        while attributes.SO_FAR not in opened.get_trials(deepcopy=False)[0].user_attrs and time.monotonic() < end:
            time.sleep(0.05)
        seen.append(opened.get_trials(deepcopy=False)[0].user_attrs[attributes.SO_FAR])
        raise ZeroDivisionError(str(plan))

    failing = DEFINITION.engine.model_copy(update={"failures_in_a_row": 1})
    opened.set_user_attr(attributes.DEFINITION, DEFINITION.model_copy(update={"engine": failing}).to_json())
    with pytest.raises(Exception, match="1 trials in a row failed"):
        work(opened, slow, SilentListener(), counter=Counter("rapl", lambda: 25.0))
    (seconds, joules, source) = seen[0]
    assert seconds >= 0
    assert (joules, source) == (25.0, "rapl")
    found = study.read(opened).records[0]
    assert (found.state, found.energy_j, found.counter) == ("failed", 25.0, "rapl")
    assert found.lasted_s is not None


def test_the_budget_counts_the_preparation_and_no_running_trial_twice(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, DEFINITION)
    opened.set_user_attr(attributes.PREPARATION_J, {"teacher": [3.6e5, "nvml"]})
    listener = SilentListener()
    assert work(opened, evaluation_of, listener, limits=Limits(energy_kwh=0.05), counter=Counter("nvml", lambda: 0.0))
    assert listener.notes[-1].startswith("no further trial is begun: the study has used 0.1 of 0.05 kWh")
    device = Device()
    done, running = opened.ask(), opened.ask()
    with device.metered.noted(done):
        device.runs(1.0, 3.6e5)
    done.set_user_attr(attributes.SECONDS, {"recover": 1.0})
    opened.tell(done, [0.0] * 4)
    with device.metered.noted(running):
        device.runs(1.0, 3.6e5)
        device.metered.say_so_far()
        trials = opened.get_trials()
        assert spent(Limits(energy_kwh=0.301), trials, "me") is None  # one done, one running, one to come
        assert spent(Limits(energy_kwh=0.299), trials, "me") is not None
    assert take_back_orphans(opened) == []


# --- what is made once


def test_a_counter_in_millijoules_is_a_cost_in_joules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(_device: torch.device) -> Meter:
        raise MeasurementUnavailable("no driver")

    meter = Meter()
    monkeypatch.setitem(COUNTERS, "nvml", unreadable)  # type: ignore[arg-type]
    monkeypatch.setitem(COUNTERS, "rapl", lambda _device: meter)  # type: ignore[arg-type]
    counter = process._counter(torch.device("cpu"), Limits())
    assert counter is not None
    assert counter.source == "rapl"
    artifacts = Artifacts(tmp_path)
    artifacts.counter = counter
    make = costs.noted(lambda folder: (folder / "x").write_text("x") and None, artifacts.counter)
    folder = artifacts.made("thing", {"a": 1}, make)
    # Opened and read first at 1,000 mJ; before and after the making at 2,000 and 3,000: 1 J for it, 1 J before it.
    cost = costs.read(folder)
    assert cost is not None
    assert (cost.joules, cost.source) == (1.0, "rapl")
    assert counter.open_j() == 2.0  # 3 J used, 1 J of them written down
    monkeypatch.setenv(process.WORKERS_VARIABLE, "4")
    quarter = process._counter(torch.device("cpu"), Limits())
    assert quarter is not None
    assert quarter.open_j() == 0.25


def test_what_was_made_without_a_counter_or_by_an_earlier_version_has_no_joules(tmp_path: Path) -> None:
    costs.note(tmp_path, 2.5)
    assert costs.read(tmp_path) == Cost(2.5)
    (tmp_path / costs.FILE).write_text(json.dumps({"seconds": 4}))
    assert costs.read(tmp_path) == Cost(4.0)
