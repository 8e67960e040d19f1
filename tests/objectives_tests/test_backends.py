"""Whatever runs a model computes the same logits, whole models and cut ones with empty blocks alike."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from objectives import Conditions, MeasurementUnavailable, Subject, built_in
from objectives.backends import BACKENDS, Batch, open_backend
from objectives.inference import random_batches
from objectives.latency import Latency
from objectives.onnx_graph import runner, to_onnx
from search.plan import Plan, Shape

CPU = torch.device("cpu")
CUT = Plan(heads=(2, 0), neurons=(0, 7))
ONE_LAYER = Shape(1, 3, 4, 12, 20, 50, 16, 2, 2)
EMPTY = Plan(heads=(0, 0), neurons=(0, 0))
MIX = Conditions(batch=2, tokens=5, threads=1, warmup=1, repeats=3, lengths=(3, 4, 9, 16))


def worst(name: str, model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    """Largest difference of a logit to eager torch's, over all batches."""
    weights = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        forward = open_backend(name, CPU).prepare(model, batches, threads=1)
        expected = [model(**batch).logits for batch in batches]
        found = [forward(batch).clone() for batch in batches]
    assert all(torch.equal(weights[key], tensor) for key, tensor in model.state_dict().items())
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("plan", [None, CUT, EMPTY], ids=["dense", "cut", "empty"])
def test_onnxruntime_computes_the_same_for_every_length(plan: Plan | None, build: Callable[..., Any]) -> None:
    model = build(plan)
    assert worst("onnxruntime", model, random_batches(model, MIX)) < 1e-4


@pytest.mark.parametrize("plan", [None, CUT, EMPTY], ids=["dense", "cut", "empty"])
def test_dynamic_int8_computes_about_the_same_for_every_length(plan: Plan | None, build: Callable[..., Any]) -> None:
    model = build(plan)
    assert 0 < worst("onnxruntime_int8", model, random_batches(model, MIX)) < 0.05


def test_int8_runs_on_the_cpu_alone() -> None:
    with pytest.raises(MeasurementUnavailable, match="'onnxruntime_int8' runs on the CPU, and the models run on mps"):
        open_backend("onnxruntime_int8", torch.device("mps"))


def test_one_sequence_of_one_length_can_be_exported(build: Callable[..., Any]) -> None:
    model = build(CUT)
    single = replace(MIX, batch=1, tokens=1, lengths=())
    assert worst("onnxruntime", model, random_batches(model, single)) < 1e-4


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own compiler, of itself
def test_compiled_models_compute_the_same(build: Callable[..., Any]) -> None:
    model = build(Plan((1,), (0,)), ONE_LAYER)  # the compiler takes seconds for each kernel
    assert worst("compile", model, random_batches(model, replace(MIX, lengths=()))) < 1e-4


def test_more_models_than_torch_recompiles_stay_compiled(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After eight models behind one function torch runs the ninth in eager mode, and says so in a log at most."""
    compiled: list[object] = []
    compile_ = torch.compile

    def quick(function: Any, **options: Any) -> Any:
        def count(graph: Any, _: Any) -> Any:
            compiled.append(graph)
            return graph.forward

        return compile_(function, backend=count, **options)

    monkeypatch.setattr(torch, "compile", quick)
    for number in range(10):
        model = build(Plan((1 + number % 3,), (number,)), ONE_LAYER)
        assert worst("compile", model, random_batches(model, replace(MIX, lengths=()))) < 1e-4
        assert len(compiled) == number + 1


def test_cuda_graphs_need_cuda(conditions: Conditions) -> None:
    with pytest.raises(MeasurementUnavailable, match="'cuda_graphs' needs a CUDA device, and the models run on cpu"):
        open_backend("cuda_graphs", CPU)
    with pytest.raises(MeasurementUnavailable, match="'cuda_graphs' needs a CUDA device"):
        built_in(
            dense_encoder_parameters=1,
            conditions=conditions,
            device=CPU,
            energy_source="model",
            energy_window_s=1.0,
            picojoules_per_mac=1.0,
            picojoules_per_byte=1.0,
            latencies={"latency_ms.graphs": replace(conditions, backend="cuda_graphs")},
        )


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("objectives.onnx_graph.find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(MeasurementUnavailable, match=r"needs the package onnxruntime.*paretobert\[onnx\]"):
        open_backend("onnxruntime", CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_onnxruntime_without_cuda_says_so() -> None:
    with pytest.raises(MeasurementUnavailable, match="no execution provider for mps here"):
        open_backend("onnxruntime", torch.device("mps"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_onnxruntime_never_measures_the_cpu_in_place_of_a_gpu(build: Callable[..., Any]) -> None:
    """By itself it runs on the CPU what the GPU's libraries are missing for."""
    graph = to_onnx(build(Plan((1,), (1,)), ONE_LAYER))
    with pytest.raises(MeasurementUnavailable, match="cannot use cuda:1: it did not load the CUDAExecutionProvider"):
        runner(graph, device=torch.device("cuda:1"), threads=1)


def test_onnxruntime_runs_on_the_gpu_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Session:
        def __init__(self, _graph: bytes, _options: Any, *, providers: list[Any]) -> None:
            asked.extend(providers)

        def get_providers(self) -> list[str]:
            return [asked[-1][0], "CPUExecutionProvider"]

        def get_inputs(self) -> list[Any]:
            return []

    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    for name in ("cuda:1", "cuda", "cpu"):
        runner(b"", device=torch.device(name), threads=1)
    cuda = "CUDAExecutionProvider"
    assert asked == [(cuda, {"device_id": 1}), (cuda, {"device_id": 0}), ("CPUExecutionProvider", {})]


def test_an_unknown_backend_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown backend 'tensorrt'; choose one of eager, compile, cuda_graphs, onnx"):
        open_backend("tensorrt", CPU)


def test_what_a_backend_cannot_run_is_no_measurement(
    build: Callable[..., Any], conditions: Conditions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object, **__: object) -> Any:
        raise TypeError("no kernel for this\nand a long story")

    monkeypatch.setattr("objectives.backends.to_onnx", breaks)
    with pytest.raises(MeasurementUnavailable, match=r"'onnxruntime' cannot run this model \(TypeError: no kernel"):
        Latency(replace(conditions, backend="onnxruntime")).measure(Subject(build()))


@pytest.mark.parametrize("backend", ["eager", "onnxruntime"])
def test_the_source_and_the_conditions_name_the_backend(backend: str, build: Callable[..., Any]) -> None:
    measured = Latency(replace(MIX, backend=backend)).measure(Subject(build(CUT)))
    assert measured.source.startswith(BACKENDS[backend].title + ", float32, cpu, 1 threads")
    assert measured.conditions["backend"] == backend


def test_a_number_type_is_that_of_a_copy(build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    eager = BACKENDS["eager"]

    def watched(model: torch.nn.Module, batches: list[Batch], *, threads: int) -> Any:
        seen.append(next(model.parameters()).dtype)
        return eager.prepare(model, batches, threads=threads)

    monkeypatch.setattr("objectives.backends.BACKENDS", {"eager": replace(eager, prepare=watched)})
    model = build(CUT)
    measured = Latency(replace(MIX, dtype="bfloat16")).measure(Subject(model))
    assert seen == [torch.bfloat16]
    assert next(model.parameters()).dtype == torch.float32
    assert measured.conditions["dtype"] == "bfloat16"
