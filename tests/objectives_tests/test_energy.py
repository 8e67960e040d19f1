"""Energy by a counter that is told what to count, and by the model of operations."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from objectives import Conditions, MeasurementUnavailable, Subject
from objectives.energy import Energy, Meter, ModelledEnergy
from objectives.energy.counted import IDLE_FOR_S
from objectives.energy.operations import NUMBERS, count_operations
from search.plan import Plan, Shape


@dataclass
class Bench:
    """A clock and a counter of a device on which every batch takes the same time and energy."""

    batch_s: float
    batch_mj: float
    source: str = "fake"
    events: list[str] = field(default_factory=list)

    @property
    def batches(self) -> int:
        return self.events.count("batch")

    def read_mj(self) -> float:
        self.events.append("read")
        return 5000.0 + self.batches * self.batch_mj

    def clock(self) -> float:
        return self.batches * self.batch_s

    def watch(self, model: Any) -> Any:
        model.register_forward_hook(lambda *_: self.events.append("batch"))
        return model


@pytest.fixture
def subject(build: Callable[..., Any]) -> Subject:
    return Subject(build())


def test_a_counter_of_1000_mj_over_10_inferences_gives_100_mj(subject: Subject) -> None:
    bench = Bench(batch_s=0.5, batch_mj=200.0)  # 5 batches of 2 sequences in 2.5 s
    bench.watch(subject.model)
    conditions = Conditions(batch=2, tokens=4, threads=None, warmup=3, repeats=3)
    measurement = Energy(conditions, bench, window_s=2.5, clock=bench.clock).measure(subject)
    assert (measurement.value, measurement.unit, measurement.source) == (100.0, "mJ", "fake")
    assert measurement.samples == 10
    assert bench.events == ["batch"] * 3 + ["read"] + ["batch"] * 5 + ["read"]


def test_the_last_batch_of_the_window_is_finished_and_counted(subject: Subject) -> None:
    bench = Bench(batch_s=1.0, batch_mj=30.0)
    bench.watch(subject.model)
    conditions = Conditions(batch=3, tokens=4, threads=None, warmup=0, repeats=3)
    measurement = Energy(conditions, bench, window_s=2.5, clock=bench.clock).measure(subject)
    assert (measurement.value, measurement.samples) == (10.0, 9)


def test_a_batch_longer_than_the_window_runs_once(subject: Subject, conditions: Conditions) -> None:
    bench = Bench(batch_s=60.0, batch_mj=8.0)
    bench.watch(subject.model)
    assert Energy(conditions, bench, window_s=0.1, clock=bench.clock).measure(subject).samples == 2


@pytest.mark.parametrize(("batch_mj", "how"), [(0.0, "did not move"), (-1.0, r"went backwards \(it was reset\)")])
def test_a_counter_that_does_not_move_is_no_measurement(
    batch_mj: float, how: str, subject: Subject, conditions: Conditions
) -> None:
    bench = Bench(batch_s=1.0, batch_mj=batch_mj)
    bench.watch(subject.model)
    with pytest.raises(MeasurementUnavailable, match=rf"'fake' {how} in 2\.0 s.*lengthen the window"):
        Energy(conditions, bench, window_s=2.0, clock=bench.clock).measure(subject)


def test_the_counter_is_read_after_the_device_has_finished(
    subject: Subject, conditions: Conditions, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(batch_s=1.0, batch_mj=1.0)
    bench.watch(subject.model)
    monkeypatch.setattr("objectives.inference.synchronise", lambda _: bench.events.append("finished"))
    Energy(replace(conditions, warmup=1), bench, window_s=2.0, clock=bench.clock).measure(subject)
    assert bench.events == ["batch", "finished", "read", "batch", "finished", "batch", "finished", "read"]


@dataclass
class Resting(Bench):
    """The same device, which draws power at rest too; its counter says what batches and rest have used."""

    idle_w: float = 0.0
    slept_s: float = 0.0

    def clock(self) -> float:
        return super().clock() + self.slept_s

    def read_mj(self) -> float:
        return super().read_mj() + 1000 * self.idle_w * self.clock()

    def sleep(self, seconds: float) -> None:
        self.events.append("rest")
        self.slept_s += seconds


def test_the_energy_above_idle_is_kept_beside_the_whole(subject: Subject, conditions: Conditions) -> None:
    bench = Resting(batch_s=0.5, batch_mj=200.0, idle_w=0.25)
    bench.watch(subject.model)
    energy = Energy(conditions, bench, 2.5, bench.clock, windows=3, idle_s=2.0, sleep=bench.sleep)
    measurement = energy.measure(subject)  # windows of 5 batches of 2 sequences: 1,000 mJ, and 625 mJ of idle power
    assert measurement.value == pytest.approx(162.5)
    assert measurement.details == pytest.approx({"gross": 162.5, "net": 100.0, "idle_w": 0.25, "windows": 3.0})
    assert (measurement.low, measurement.high, measurement.samples) == (*[pytest.approx(162.5)] * 2, 30)
    window = ["read"] + ["batch"] * 5 + ["read"]
    assert bench.events == ["read", "rest", "read"] + ["batch"] * conditions.warmup + window * 3


def test_idle_power_is_measured_anew_after_a_while(subject: Subject, conditions: Conditions) -> None:
    bench = Resting(batch_s=1.0, batch_mj=10.0, idle_w=1.0)
    bench.watch(subject.model)
    energy = Energy(conditions, bench, 1.0, bench.clock, idle_s=2.0, sleep=bench.sleep)
    for _ in range(3):
        energy.measure(subject)
    assert bench.events.count("rest") == 1
    bench.idle_w = 3.0
    bench.slept_s += IDLE_FOR_S
    assert energy.measure(subject).details["idle_w"] == pytest.approx(3.0)
    assert bench.events.count("rest") == 2


def test_windows_give_the_value_its_spread(subject: Subject, conditions: Conditions) -> None:
    readings = iter([0.0, 100.0, 100.0, 400.0, 400.0, 600.0])

    class Told:
        source = "told"

        def read_mj(self) -> float:
            return next(readings)

    measurement = Energy(replace(conditions, batch=1), Told(), 1e-9, windows=3).measure(subject)
    assert (measurement.low, measurement.value, measurement.high) == (150.0, 200.0, 250.0)


@pytest.mark.parametrize(("given", "part"), [({"windows": 0}, "windows is 0"), ({"idle_s": -1.0}, "idle_s is -1")])
def test_windows_and_rest_have_their_range(given: dict[str, Any], part: str, conditions: Conditions) -> None:
    with pytest.raises(ValueError, match=part):
        Energy(conditions, Bench(1.0, 1.0), 1.0, **given)


@pytest.mark.parametrize("window_s", [0.0, -1.0, float("nan")])
def test_a_window_of_no_length_is_refused(window_s: float, conditions: Conditions) -> None:
    with pytest.raises(ValueError, match="window_s is"):
        Energy(conditions, Bench(1.0, 1.0), window_s)


def test_a_meter_is_anything_with_a_source_and_a_reading() -> None:
    assert isinstance(Bench(1.0, 1.0), Meter)


def by_hand(plan: Plan, shape: Shape, *, batch: int, tokens: int) -> tuple[int, float]:
    """The rules at the top of operations.py, written once more for a whole model at once."""
    hidden, size = shape.hidden, shape.head_size
    macs = hidden * hidden + hidden * shape.labels
    activations = 2 * hidden + hidden + shape.labels
    weights = (hidden + 1) * hidden + (hidden + 1) * shape.labels
    for heads, neurons in zip(plan.heads, plan.neurons, strict=True):
        width = heads * size
        weights += 6 * hidden
        if heads:
            weights += 3 * (hidden + 1) * width + width * hidden
            macs += 4 * tokens * hidden * width + 2 * tokens**2 * width
            activations += 3 * (tokens * hidden + tokens * width)  # query, key, value
            activations += 2 * (2 * tokens * width + heads * tokens**2)  # scores, then context
            activations += tokens * width + tokens * hidden  # output
        if neurons:
            weights += (2 * hidden + 1) * neurons
            macs += 2 * tokens * hidden * neurons
            activations += 2 * (tokens * hidden + tokens * neurons)
    return macs, 4 * (weights / batch + 3 * tokens * hidden + activations)


@pytest.mark.parametrize(
    "plan", [Plan((3, 3), (20, 20)), Plan((2, 1), (7, 16)), Plan((0, 3), (5, 0)), Plan((0, 0), (0, 0))], ids=str
)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (4, 7), (32, 16)])
def test_operations_equal_the_rules_worked_out_by_hand(
    plan: Plan, batch: int, tokens: int, build: Callable[..., Any], shape: Shape
) -> None:
    macs, moved_bytes = by_hand(plan, shape, batch=batch, tokens=tokens)
    model = build(plan)
    counted = count_operations(model, batch=batch, tokens=tokens)
    assert (counted.macs, counted.moved_bytes) == (macs, pytest.approx(moved_bytes, rel=1e-12))

    conditions = Conditions(batch=batch, tokens=tokens, threads=None, warmup=0, repeats=3)
    measurement = ModelledEnergy(conditions, picojoules_per_mac=4.6, picojoules_per_byte=162.5).measure(Subject(model))
    assert measurement.value == pytest.approx((macs * 4.6 + moved_bytes * 162.5) * 1e-9, rel=1e-12)
    assert (measurement.unit, measurement.source) == ("mJ", "model")
    assert measurement.conditions == {"precision": "fp32"}
    half = ModelledEnergy(replace(conditions, dtype="bfloat16"), 4.6, 162.5).measure(Subject(model))
    assert half == measurement  # of older studies too: the precision of a plan changes it, and stands beside it


def test_smaller_numbers_cost_less_where_they_are_used(build: Callable[..., Any], shape: Shape) -> None:
    """By hand for one layer with heads only: in int8 what meets weights is small, attention and results are not."""
    model, tokens = build(Plan((2, 0), (0, 0))), 5
    hidden, width, labels = shape.hidden, 2 * shape.head_size, shape.labels
    with_weights = tokens * 4 * hidden * width + hidden * hidden + hidden * labels
    between = 2 * tokens * tokens * width
    left = tokens * (3 * hidden + width) + 2 * hidden
    results = tokens * (3 * width + hidden) + hidden + labels
    attention = 2 * 2 * (2 * tokens * shape.head_size + tokens * tokens)  # scores and context, each of two heads
    plain = count_operations(model, batch=1, tokens=tokens)
    half = count_operations(model, batch=1, tokens=tokens, precision="bf16")
    small = count_operations(model, batch=1, tokens=tokens, precision="int8")
    assert plain.macs == with_weights + between
    assert half.macs == pytest.approx(plain.macs * 1.5 / 4.6)
    assert half.moved_bytes == plain.moved_bytes / 2
    assert small.macs == pytest.approx(with_weights * 0.3 / 4.6 + between)
    stored = plain.moved_bytes / 4 - left - results - attention  # weights and embedding rows
    assert small.moved_bytes == stored + left + 4 * (results + attention)
    conditions = Conditions(batch=1, tokens=tokens, threads=None, warmup=0, repeats=3)
    found = [ModelledEnergy(conditions, 4.6, 162.5, precision).measure(Subject(model)) for precision in NUMBERS]
    energies = [measurement.value for measurement in found]
    assert [measurement.details for measurement in found] == [{}, {"fp32": energies[0]}, {"fp32": energies[0]}]
    assert energies == sorted(energies, reverse=True)
    assert energies[2] == pytest.approx((small.macs * 4.6 + small.moved_bytes * 162.5) * 1e-9)


def test_a_larger_batch_shares_the_weights_only(build: Callable[..., Any]) -> None:
    model = build()
    one, two, four = (count_operations(model, batch=batch, tokens=5).moved_bytes for batch in (1, 2, 4))
    weights = sum(parameter.numel() for parameter in model.parameters()) - sum(
        parameter.numel() for parameter in model.bert.embeddings.parameters()
    )
    assert one - two == 4 * weights / 2
    assert one - four == 4 * weights * 3 / 4


@pytest.mark.parametrize(("per_mac", "per_byte"), [(0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)])
def test_operations_that_cost_nothing_are_refused(per_mac: float, per_byte: float, conditions: Conditions) -> None:
    with pytest.raises(ValueError, match="both must be above 0"):
        ModelledEnergy(conditions, per_mac, per_byte)
