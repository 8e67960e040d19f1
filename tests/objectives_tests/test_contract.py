"""What holds for every built-in objective."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import torch

from objectives import Conditions, Measurement, MeasurementUnavailable, Objective, Subject, built_in
from search.definition import METRICS, OBJECTIVES, REGRESSION_METRICS
from search.plan import Plan

NAMES = pytest.mark.parametrize("name", OBJECTIVES)
CUT = Plan(heads=(2, 0), neurons=(0, 7))


@pytest.fixture
def objectives(conditions: Conditions) -> dict[str, Objective]:
    return catalogue(conditions, energy_source="model")


def catalogue(conditions: Conditions, **changes: Any) -> dict[str, Objective]:
    arguments: dict[str, Any] = {
        "dense_encoder_parameters": 1000,
        "conditions": conditions,
        "device": torch.device("cpu"),
        "energy_source": "model",
        "energy_window_s": 0.01,
        "picojoules_per_mac": 4.6,
        "picojoules_per_byte": 162.5,
    }
    return built_in(**(arguments | changes))


@pytest.fixture
def subject(build: Callable[..., Any], request: pytest.FixtureRequest) -> Subject:
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if parameters.get("name") in REGRESSION_METRICS:
        return Subject(build(CUT), logits=torch.tensor([[2.0], [0.5], [3.0]]), labels=torch.tensor([1.0, 0.0, 4.5]))
    return Subject(
        build(CUT), logits=torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0]]), labels=torch.tensor([0, 1, 0])
    )


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_the_catalogue_holds_every_name_of_the_definition(objectives: dict[str, Objective]) -> None:
    assert tuple(objectives) == OBJECTIVES
    assert all(objective.name == name for name, objective in objectives.items())


@NAMES
def test_it_is_an_objective(name: str, objectives: dict[str, Objective]) -> None:
    objective = objectives[name]
    assert isinstance(objective, Objective)
    assert objective.direction == ("maximize" if name in METRICS else "minimize")
    assert objective.needs_scores == (name in METRICS)


@NAMES
def test_it_measures_a_finite_value_in_its_unit(name: str, objectives: dict[str, Objective], subject: Subject) -> None:
    measurement = objectives[name].measure(subject)
    assert math.isfinite(measurement.value)
    assert measurement.unit == objectives[name].unit
    assert measurement.source
    assert name in METRICS or measurement.value > 0


@NAMES
def test_it_needs_scores_exactly_if_it_says_so(name: str, objectives: dict[str, Objective], subject: Subject) -> None:
    unscored = Subject(subject.model)
    if objectives[name].needs_scores:
        with pytest.raises(ValueError, match=f"{name} needs logits and labels.*score it first"):
            objectives[name].measure(unscored)
    else:
        objectives[name].measure(unscored)


@NAMES
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("threads", [None, 1])
def test_it_leaves_everything_as_it_found_it(name: str, threads: int | None, subject: Subject) -> None:
    objectives = catalogue(Conditions(batch=2, tokens=5, threads=threads, warmup=1, repeats=3))
    subject.model.train()
    subject.model.bert.encoder.eval()  # type: ignore[union-attr]
    modes = [module.training for module in subject.model.modules()]
    weights = copy.deepcopy(subject.model.state_dict())
    scores, labels = subject.logits.clone(), subject.labels.clone()  # type: ignore[union-attr]
    random_state = torch.get_rng_state()

    objectives[name].measure(subject)

    assert [module.training for module in subject.model.modules()] == modes
    assert all(torch.equal(weights[key], value) for key, value in subject.model.state_dict().items())
    assert torch.equal(scores, subject.logits)
    assert torch.equal(labels, subject.labels)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == 2
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in ("latency_ms",)])
def test_without_a_clock_or_a_counter_it_is_deterministic(
    name: str, objectives: dict[str, Objective], subject: Subject
) -> None:
    assert objectives[name].measure(subject) == objectives[name].measure(subject)


class Depth:
    name = "depth"
    unit = "layers"
    direction: Literal["minimize"] = "minimize"
    needs_scores = False

    def measure(self, subject: Subject) -> Measurement:
        return Measurement(float(len(subject.model.bert.encoder.layer)), self.unit, "counted")  # type: ignore


def test_an_objective_of_ones_own_inherits_nothing(subject: Subject) -> None:
    own: Objective = Depth()
    assert isinstance(own, Objective)
    assert own.measure(subject).value == 2.0


def test_an_energy_source_that_is_missing_stops_the_catalogue(conditions: Conditions) -> None:
    with pytest.raises(MeasurementUnavailable, match="nvml counts NVIDIA boards"):
        catalogue(conditions, energy_source="nvml")
