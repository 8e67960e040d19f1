"""Latency under a clock that is told what to say, and the batch it is measured on."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from objectives import Conditions, Subject
from objectives.inference import random_batch, ready
from objectives.latency import Latency


class Clock:
    """Says after each batch that as many seconds have passed as it was told."""

    def __init__(self, durations_s: list[float]) -> None:
        self.readings = self._read(durations_s)

    def _read(self, durations_s: list[float]) -> Iterator[float]:
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
    conditions = Conditions(batch=1, tokens=4, threads=None, warmup=2, repeats=5)
    clock = Clock([0.5, 0.125, 2.0, 0.25, 1.0])
    measurement = Latency(conditions, clock=clock).measure(Subject(build()))
    assert (measurement.low, measurement.value, measurement.high) == (250.0, 500.0, 1000.0)
    assert (measurement.unit, measurement.samples) == ("ms", 5)


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
    first = random_batch(model, replace(conditions, batch=8, tokens=16))
    torch.manual_seed(99)
    second = random_batch(model, replace(conditions, batch=8, tokens=16))
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
