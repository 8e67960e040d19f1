"""Latency under a clock that is told what to say, and the batch it is measured on."""

import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

from objectives import Conditions, Measurement, Subject
from objectives.clocks import clock_mhz, work_clock
from objectives.inference import MIX_BATCHES, prepare, random_batches, ready
from objectives.latency import Latency
from objectives.median import median_interval, relative_width
from objectives.pairs import observe
from search.plan import Shape


class Clock:
    """Says after each batch that as many seconds have passed as it was told."""

    def __init__(self, durations_s: Iterable[float]) -> None:
        self.readings = self._read(durations_s)

    def _read(self, durations_s: Iterable[float]) -> Iterator[float]:
        now_s = 1000.0
        for duration_s in durations_s:
            yield now_s
            now_s += duration_s
            yield now_s
            now_s += 7.0  # time between the batches is nobody's

    def __call__(self) -> float:
        return next(self.readings)


class Calls:
    """Writes down what a model was called with."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.batches: list[dict[str, torch.Tensor]] = []
        self.modes: list[tuple[bool, bool, int]] = []
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, model: torch.nn.Module, _: Any, batch: dict[str, torch.Tensor]) -> None:
        self.batches.append(batch)
        self.modes.append((model.training, torch.is_inference_mode_enabled(), torch.get_num_threads()))


def test_the_value_is_the_median_with_its_quartiles(build: Callable[..., Any]) -> None:
    conditions = Conditions(batch=3, tokens=4, threads=None, warmup=2, repeats=5)
    clock = Clock([0.5, 0.125, 2.0, 0.25, 1.0])
    measurement = Latency(conditions, clock=clock).measure(Subject(build()))
    assert (measurement.low, measurement.value, measurement.high) == (250.0, 500.0, 1000.0)
    assert (measurement.unit, measurement.samples) == ("ms", 5)
    assert measurement.interval is None  # five observations are too few
    assert measurement.details == {"p95": pytest.approx(1800.0), "throughput_per_s": 6.0}


def test_quartiles_lie_between_neighbours(build: Callable[..., Any]) -> None:
    conditions = Conditions(batch=1, tokens=4, threads=None, warmup=0, repeats=4)
    measurement = Latency(conditions, clock=Clock([0.5, 0.25, 1.0, 0.75])).measure(Subject(build()))
    assert (measurement.low, measurement.value, measurement.high) == (437.5, 625.0, 812.5)


def test_the_source_names_backend_type_device_and_threads(build: Callable[..., Any]) -> None:
    conditions = Conditions(batch=1, tokens=4, threads=1, warmup=0, repeats=3)
    assert Latency(conditions).measure(Subject(build())).source == "eager torch, float32, cpu, 1 threads"


def test_the_model_runs_warm_in_eval_and_inference_mode_on_the_threads_asked_for(build: Callable[..., Any]) -> None:
    model = build().train()
    calls = Calls(model)
    Latency(Conditions(batch=3, tokens=6, threads=1, warmup=2, repeats=4)).measure(Subject(model))
    assert calls.modes == [(False, True, 1)] * (2 + 4)
    assert all(batch["input_ids"].shape == (3, 6) for batch in calls.batches)


def test_the_clock_stops_after_the_device_has_finished(build: Callable[..., Any], monkeypatch: Any) -> None:
    events: list[str] = []
    model = build()
    model.register_forward_hook(lambda *_: events.append("forward"))
    monkeypatch.setattr("objectives.inference.synchronise", lambda _: events.append("finished"))

    def clock() -> float:
        events.append("clock")
        return float(len(events))

    Latency(Conditions(batch=1, tokens=4, threads=None, warmup=1, repeats=3), clock).measure(Subject(model))
    assert events == ["forward", "finished"] + ["clock", "forward", "finished", "clock"] * 3


def test_the_batch_is_random_full_and_always_the_same(build: Callable[..., Any], conditions: Conditions) -> None:
    model = build()
    (first,) = random_batches(model, replace(conditions, batch=8, tokens=16))
    torch.manual_seed(99)
    (second,) = random_batches(model, replace(conditions, batch=8, tokens=16))
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert first["input_ids"].unique().numel() > 20
    assert first["attention_mask"].eq(1).all()


def test_modes_and_threads_are_put_back_after_an_error(build: Callable[..., Any], conditions: Conditions) -> None:
    model = build().train()
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="out of memory"), ready(model, replace(conditions, threads=threads + 1)):
        raise RuntimeError("out of memory")
    assert model.training
    assert torch.get_num_threads() == threads
    assert not torch.is_inference_mode_enabled()


def test_more_tokens_than_positions_are_refused(build: Callable[..., Any], conditions: Conditions) -> None:
    with pytest.raises(ValueError, match="tokens is 17, and the model has 16 positions"):
        Latency(replace(conditions, tokens=17)).measure(Subject(build()))


def test_all_wrong_conditions_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"batch is 0.*tokens is 0.*threads is 0.*warmup is -1.*repeats is 2"):
        Conditions(batch=0, tokens=0, threads=0, warmup=-1, repeats=2)


def test_cuda_and_mps_are_waited_for_and_the_cpu_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from objectives.inference import synchronise

    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append(str(device)))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    for name in ("cpu", "cuda:1", "mps"):
        synchronise(torch.device(name))
    assert waited == ["cuda:1", "mps"]


def noise(seed: int, width: float) -> Iterator[float]:
    """Seconds of a batch whose true median is 10 ms, without end."""
    draw = random.Random(seed)
    while True:
        yield 0.01 * (1 + width * (draw.random() - 0.5) + (0.5 if draw.random() < 0.1 else -0.05 * draw.random()))


ADAPTIVE = Conditions(
    batch=1, tokens=1, threads=None, warmup=0, repeats=10, interval=0.05, limit_s=5.0, backend="eager"
)


def test_observations_go_on_until_the_interval_is_narrow(build: Callable[..., Any]) -> None:
    model = build(shape=Shape(1, 1, 4, 4, 4, 50, 16, 2, 2))
    quiet = Latency(ADAPTIVE, clock=Clock(noise(1, 0.01))).measure(Subject(model))
    loud = Latency(ADAPTIVE, clock=Clock(noise(1, 0.4))).measure(Subject(model))
    assert quiet.samples == 10 < loud.samples
    assert relative_width(loud.interval, loud.value) <= 0.05


def test_time_ends_the_observations_and_repeats_are_the_least(build: Callable[..., Any]) -> None:
    model = build(shape=Shape(1, 1, 4, 4, 4, 50, 16, 2, 2))
    for limit_s, samples in ((0.0, 10), (0.12, 15)):  # of about 10 ms each
        limited = replace(ADAPTIVE, interval=1e-6, limit_s=limit_s)
        assert Latency(limited, clock=Clock(noise(2, 0.4))).measure(Subject(model)).samples == samples
    unasked = replace(ADAPTIVE, interval=None)
    assert Latency(unasked, clock=Clock(noise(2, 0.4))).measure(Subject(model)).samples == 10


def test_the_seconds_of_others_do_not_count() -> None:
    """Each batch takes about 10 ms by the clock, in which this process has the core for 1 ms."""
    limited, ran = replace(ADAPTIVE, interval=1e-6, limit_s=0.12), list[int]()
    clock = Clock(noise(2, 0.4))
    observed = observe([lambda: ran.append(1)], [], limited, clock, work_clock=lambda: len(ran) / 1000)
    assert len(observed.passes) == 163  # looked at after 10, 15, 22, 33, 49, 73, 109 and 163 batches


@pytest.fixture
def threads_of_torch() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_a_cpu_counts_its_own_seconds_and_a_board_those_of_the_wall() -> None:
    assert work_clock(torch.device("cuda")) is None
    clock = work_clock(torch.device("cpu"))
    assert clock is not None
    before_s = clock()
    time.sleep(0.3)
    assert clock() - before_s < 0.1


def test_what_one_of_many_threads_does_alone_counts_in_full(threads_of_torch: Callable[[int], None]) -> None:
    clock = work_clock(torch.device("cpu"))
    assert clock is not None
    threads_of_torch(8)
    before_s, end_s = clock(), time.process_time() + 0.1
    while time.process_time() < end_s:
        pass
    assert clock() - before_s == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("backend", ["eager", "onnxruntime"])
def test_what_many_threads_do_counts_at_least_as_a_share(
    backend: str, threads_of_torch: Callable[[int], None], build: Callable[..., Any]
) -> None:
    clock = work_clock(torch.device("cpu"))
    assert clock is not None
    threads_of_torch(2)
    conditions = Conditions(batch=16, tokens=16, threads=2, warmup=1, repeats=3, backend=backend)
    with ready(build(shape=Shape(2, 4, 32, 128, 512, 50, 16, 2, 2)), conditions) as runs:
        runs[0]()
        before_s, process_s = clock(), time.process_time()
        for _ in range(50):
            runs[0]()
        assert clock() - before_s > 0.5 * (time.process_time() - process_s) / 2


def covered(rounds: int, observed: Callable[[int], Sequence[float]], truth: float) -> float:
    """Share of rounds in which the interval of what was observed holds the truth."""
    hits = 0
    for seed in range(rounds):
        interval = median_interval(observed(seed))
        assert interval is not None
        hits += interval[0] <= truth <= interval[1]
    return hits / rounds


def least(rounds: int) -> float:
    """Share that 95 % stay above, but for three standard errors of so many rounds."""
    return 0.95 - 3 * (0.95 * 0.05 / rounds) ** 0.5


def test_the_interval_covers_the_truth_though_it_decides_when_to_stop() -> None:
    """The stopping rule by itself, without a model: the median of what a batch takes is known."""
    truth = 1000 * statistics.median(islice(noise(0, 0.3), 100_001))
    means = [observe([lambda: None], [], ADAPTIVE, Clock(noise(seed + 1, 0.3))).means for seed in range(400)]
    assert len({len(found) for found in means}) > 1
    assert covered(400, means.__getitem__, truth) >= least(400)


def test_the_interval_of_the_pairs_covers_the_true_ratio_though_the_machine_drifts() -> None:
    """Model and reference have the same noise, so that the true ratio is 0.6; the machine gets slower all the time."""

    def pairs(seed: int) -> list[float]:
        clock, draws = Now(), noise(seed, 0.1)

        def spend(share: float) -> None:
            slower = 1 + 0.05 * clock.now_s + (1.0 if clock.now_s > 0.5 else 0.0)
            clock.now_s += share * 5 * next(draws) * slower

        return observe([lambda: spend(0.6)], [lambda: spend(1.0)], ADAPTIVE, lambda: clock.now_s).pairs

    found = [pairs(seed) for seed in range(400)]
    assert len({len(one) for one in found}) > 1
    assert covered(400, found.__getitem__, 0.6) >= least(400)


def test_a_wide_spread_is_warned_of(build: Callable[..., Any]) -> None:
    conditions = Conditions(batch=1, tokens=4, threads=None, warmup=0, repeats=5)
    calm = Latency(conditions, clock=Clock([1.0, 1.0, 1.0, 1.0625, 1.125])).measure(Subject(build()))
    wild = Latency(conditions, clock=Clock([1.0, 1.0, 1.0, 1.125, 1.125])).measure(Subject(build()))
    assert calm.warning is None
    assert wild.warning is not None
    assert wild.warning.startswith("latency_ms: the inter-quartile range is 12% of the median, above 10%")


def test_a_corrected_figure_is_warned_of_its_own_spread(build: Callable[..., Any]) -> None:
    """The machine gets slower from pair to pair: the batches are far apart, and the pairs are not."""
    conditions = Conditions(batch=1, tokens=4, threads=None, warmup=0, repeats=6)
    seconds = [second for slow in (1.0, 2.0, 4.0) for second in (0.25 * slow, 0.5 * slow)]
    seconds[2:4] = reversed(seconds[2:4])
    latency = Latency(conditions, Clock(seconds), reference=build(), reference_ms=400.0)
    absolute = latency.measure(Subject(build()))
    assert absolute.warning is not None
    assert "range is 75% of the median" in absolute.warning
    related = replace(latency, clock=Clock(seconds), corrected=True).measure(Subject(build()))
    assert (related.value, related.warning) == (200.0, None)


def test_a_mix_is_one_pass_over_batches_of_its_lengths(build: Callable[..., Any]) -> None:
    model = build()
    calls = Calls(model)
    mix = Conditions(batch=2, tokens=6, threads=None, warmup=1, repeats=3, lengths=(1, 2, 3, 4, 5, 6, 7, 16))
    clock = Clock([1.0, 3.0] * (4 * 3))
    measurement = Latency(mix, clock=clock).measure(Subject(model))
    assert (measurement.value, measurement.samples) == (2000.0, 3)
    assert measurement.details == {"p95": 3000.0, "throughput_per_s": 1.0}
    assert len(calls.batches) == MIX_BATCHES * (1 + 3)
    lengths = [int(row.sum()) for batch in calls.batches[:MIX_BATCHES] for row in batch["attention_mask"]]
    assert sorted(lengths) == sorted([1, 2, 3, 4, 5, 6, 7, 16] * 2)
    for batch in calls.batches:
        assert batch["input_ids"].shape[1] == int(batch["attention_mask"].sum(dim=1).max())
    assert (measurement.conditions["tokens"], measurement.conditions["mean_tokens"]) == ("mix", 5.5)


def test_conditions_are_kept_with_the_value(build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("objectives.latency.clock_mhz", lambda _: 2400.0)
    conditions = Conditions(batch=3, tokens=4, threads=1, warmup=0, repeats=3)
    measurement = Latency(conditions, name="latency_ms.mine").measure(Subject(build()))
    assert measurement.conditions == {
        "batch": 3, "tokens": 4, "dtype": "float32", "threads": 1, "backend": "eager", "device": "cpu",
        "clock_mhz": 2400.0,
    }  # fmt: skip
    assert Measurement.from_dict(json.loads(json.dumps(measurement.to_dict()))) == measurement


class Now:
    """A clock that stands still but where time is spent."""

    def __init__(self) -> None:
        self.now_s = 0.0


def alternating(model_s: float, reference_s: float) -> Iterator[float]:
    """Seconds of a batch of the model, two of the reference, one of the model, and so on."""
    return itertools.cycle([model_s, reference_s, reference_s, model_s])


def test_drift_of_the_machine_cancels_in_the_corrected_figure(build: Callable[..., Any]) -> None:
    conditions = Conditions(batch=1, tokens=4, threads=None, warmup=0, repeats=6)
    model, dense = build(), build()
    for slow in (1.0, 1.5, 3.0):
        clock = Clock(alternating(0.25 * slow, 0.5 * slow))
        corrected = Latency(conditions, clock, reference=dense, reference_ms=400.0, corrected=True)
        measurement = corrected.measure(Subject(model))
        assert (measurement.value, measurement.low, measurement.high) == (200.0, 200.0, 200.0)
        assert measurement.interval is None  # two pairs are too few
        expected = {"absolute": 250 * slow, "ratio": 0.5, "reference": 500 * slow, "corrected": 200.0}
        assert expected.items() <= measurement.details.items()
        assert (measurement.details["p95"], measurement.details["throughput_per_s"]) == (200.0, 5.0)
        clock = Clock(alternating(0.25 * slow, 0.5 * slow))
        absolute = Latency(conditions, clock, reference=dense, reference_ms=400.0).measure(Subject(model))
        assert absolute.value == 250 * slow
        assert (absolute.details["p95"], absolute.details["throughput_per_s"]) == (250 * slow, 4.0 / slow)
        own = ("p95", "throughput_per_s")
        assert all(measurement.details[name] == value for name, value in absolute.details.items() if name not in own)


@pytest.mark.parametrize("slower", [0.25, 1.5, 3.0])
def test_a_machine_that_changes_its_speed_half_way_cancels_too(slower: float, build: Callable[..., Any]) -> None:
    """Whenever it happens: the pair that it falls into is off, and the others are not."""
    conditions = Conditions(batch=1, tokens=4, threads=None, warmup=0, repeats=10)
    model, dense, misled = build(), build(), 0
    for change in range(11):
        seconds = list(islice(alternating(0.25, 0.5), 10))
        clock = Clock([*seconds[:change], *(slower * second for second in seconds[change:])])
        latency = Latency(conditions, clock, reference=dense, reference_ms=400.0, corrected=True)
        measurement = latency.measure(Subject(model))
        details = measurement.details
        assert (measurement.value, measurement.samples) == (200.0, 5)
        assert (details["ratio"], details["corrected"], details["pairs"]) == (0.5, 200.0, 5.0)
        assert measurement.low is not None
        assert measurement.high is not None
        assert measurement.low <= 200.0 <= measurement.high
        misled += details["absolute"] / details["reference"] != 0.5
    assert misled  # by the medians of all passes, which may come from the two states


def test_the_corrected_figure_has_the_spread_of_its_pairs(build: Callable[..., Any]) -> None:
    conditions = Conditions(batch=1, tokens=4, threads=None, warmup=0, repeats=12)
    ratios = [0.5, 0.25, 0.75, 0.5, 1.0, 0.5]
    clock = Clock([second for number, ratio in enumerate(ratios) for second in ((ratio, 1), (1, ratio))[number % 2]])
    latency = Latency(conditions, clock, reference=build(), reference_ms=100.0, corrected=True)
    measurement = latency.measure(Subject(build()))
    assert (measurement.low, measurement.value, measurement.high) == (50.0, 50.0, 68.75)
    assert measurement.warning is not None
    assert "range is 38% of the median" in measurement.warning
    assert (measurement.interval, measurement.samples) == ((25.0, 100.0), 6)


def test_the_reference_runs_between_the_models_batches_and_is_prepared_once(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, model, prepared = build(), build(), list[object]()
    monkeypatch.setattr("objectives.latency.prepare", lambda m, c: prepared.append(m) or prepare(m, c))
    order: list[str] = []
    dense.register_forward_hook(lambda *_: order.append("d"))
    model.register_forward_hook(lambda *_: order.append("m"))
    conditions = Conditions(batch=1, tokens=4, threads=None, warmup=2, repeats=7)
    latency = Latency(conditions, Clock(alternating(0.25, 0.25)), reference=dense)
    first = latency.measure(Subject(model))
    assert "".join(order) == "d" + "mm" + "md" + "dm" + "md" + "dm"
    assert {"absolute", "ratio", "reference"} < set(first.details)
    assert "corrected" not in first.details
    latency.measure(Subject(model))
    assert prepared == [dense]


def test_short_batches_run_several_times_in_a_turn() -> None:
    """A turn lasts 50 ms; its median leaves out a first pass that is slower."""
    order: list[str] = []
    settings = replace(ADAPTIVE, repeats=4, interval=None)
    turn = [0.028, 0.01, 0.01, 0.01]
    clock = Clock([*turn, 0.06, 0.06, *turn])
    observed = observe([lambda: order.append("m")], [lambda: order.append("r")], settings, clock)
    assert "".join(order) == "mmmm" + "r" + "r" + "mmmm"
    assert observed.pairs == pytest.approx([1 / 6, 1 / 6])
    assert observed.reference == pytest.approx([60.0, 60.0])
    assert observed.means == pytest.approx([1000 * second for second in turn * 2])


def test_a_corrected_figure_needs_its_references(build: Callable[..., Any], conditions: Conditions) -> None:
    for given in ({}, {"reference": build()}, {"reference_ms": 1.0}):
        with pytest.raises(ValueError, match="give reference and reference_ms"):
            Latency(conditions, corrected=True, **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reference_ms is 0"):
        Latency(conditions, reference_ms=0.0)


def test_the_clock_of_a_device_is_read_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("objectives.clocks.psutil.cpu_freq", lambda: SimpleNamespace(current=2399.6))
    assert clock_mhz(torch.device("cpu")) == 2400
    monkeypatch.setattr("objectives.clocks.psutil.cpu_freq", lambda: None)
    assert clock_mhz(torch.device("cpu")) is None
    assert clock_mhz(torch.device("mps")) is None
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="of-board"))
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetClockInfo", lambda handle, _: 1980 if handle == "GPU-of-board" else 0)
    assert clock_mhz(torch.device("cuda:0")) == 1980.0

    def lost(*_: object) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetClockInfo", lost)
    assert clock_mhz(torch.device("cuda:0")) is None
