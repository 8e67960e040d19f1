"""Several latencies of one study: in its definition, on its command line, in its trials."""

import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_cases import SilentListener

from search import preparation
from search.arguments import parse
from search.artifacts import Artifacts
from search.definition import (
    Bound,
    Definition,
    ImportanceSettings,
    LatencySettings,
    RecoverySettings,
    Task,
    TeacherSettings,
    build,
    differences,
    from_json,
)
from search.devices import processor
from search.errors import UserError
from search.pipeline import evaluate
from search.plan import Plan
from search.preparation import Prepared, machine_of, prepare
from search.process import take_threads
from search.run import check_objectives

CPU = torch.device("cpu")
TWO = Definition(
    name="two",
    data="d",
    latencies={"single": LatencySettings(batch=1, tokens="selection"), "bulk-64": LatencySettings(batch=64)},
    objectives=("metric", "latency_ms.single"),
    constraints={"latency_ms.bulk-64": Bound(at_most=9.0)},
)


def test_a_json_round_trip_is_exact_and_an_older_study_still_loads() -> None:
    assert from_json(TWO.to_json(), source="here") == TWO
    older = json.loads(Definition(name="x", data="d").to_json())
    for field in ("interval", "seconds", "dtype", "backend"):
        del older["latency"][field]
    del older["latencies"]
    loaded = from_json(json.dumps(older), source="an older study")
    assert loaded == Definition(name="x", data="d")
    assert differences(loaded, Definition(name="x", data="d")) == []


def test_names_become_quantities_and_are_known() -> None:
    assert list(TWO.named_latencies) == ["latency_ms.single", "latency_ms.bulk-64"]
    check_objectives(TWO, [])
    unknown = TWO.model_copy(update={"objectives": ("metric", "latency_ms.singel")})
    with pytest.raises(UserError, match=r"latency_ms\.singel.*latency_ms\.single"):
        check_objectives(unknown, [])
    with pytest.raises(UserError, match=r"'latency_ms\.single' has the name of a built-in one"):
        check_objectives(TWO, ["latency_ms.single"])


@pytest.mark.parametrize("name", ["", "a b", "a.b", "-a", "ä"])
def test_a_name_that_no_command_could_take_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="a latency is named"):
        build({"name": "x", "data": "d", "latencies": {name: {}}}, source="here")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"batsh": 1}, "nearest: latencies.single.batch"),
        ({"tokens": "all"}, "latencies.single.tokens"),
        ({"backend": "tensorrt"}, "latencies.single.backend"),
        ({"interval": 0}, "latencies.single.interval"),
    ],
)
def test_what_is_wrong_in_one_of_them_is_named(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError) as caught:
        build({"name": "x", "data": "d", "latencies": {"single": settings}}, source="here")
    assert part.replace("nearest: ", "") in str(caught.value)


def test_the_command_line_takes_them_as_json_and_the_mix_by_name() -> None:
    plain = Definition(name="x", data="d")
    given = ["--latencies", '{"single": {"batch": 1}}', "--latency.tokens", "selection", "--latency.backend", "compile"]
    changed, _ = parse(plain, given, program="script.py")
    assert changed.latencies == {"single": LatencySettings(batch=1)}
    assert (changed.latency.tokens, changed.latency.backend) == ("selection", "compile")
    assert parse(TWO, ["--latency.tokens", "64"], program="script.py")[0].latency.tokens == 64
    assert parse(TWO, [], program="script.py")[0] == TWO


@pytest.fixture(scope="module")
def definition(minilm: Path, movie_reviews: Path) -> Definition:
    return Definition(
        name="latencies",
        model=str(minilm),
        data=str(movie_reviews),
        task=Task(
            where={"source": "rotten_tomatoes"}, train_rows=16, selection_rows=16, held_out_rows=16, max_tokens=32
        ),
        teacher=TeacherSettings(epochs=1, batch_size=16),
        importance=ImportanceSettings(method="magnitude"),
        recovery=RecoverySettings(steps=0),
        latency=LatencySettings(batch=2, tokens=16, warmup=1, repeats=3, seconds=0),
        latencies={"single": LatencySettings(batch=1, tokens="selection", warmup=0, repeats=3, seconds=0)},
        objectives=("metric", "latency_ms.single"),
        constraints={"latency_ms.single": Bound(at_most=60_000)},
    )


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    return Artifacts(tmp_path_factory.mktemp("artifacts"))


def make(definition: Definition, artifacts: Artifacts) -> Prepared:
    return prepare(definition, artifacts, device=CPU, own_objectives={}, on_stage=lambda _name, _done, _total: None)


def test_every_trial_measures_all_of_them(definition: Definition, artifacts: Artifacts) -> None:
    prepared = make(definition, artifacts)
    plan = Plan((6,) * 6, (512,) * 6)
    found = evaluate(prepared, plan, seed=1, on_stage=lambda _name, _done, _total: None)
    single, usual = found.quantities["latency_ms.single"], found.quantities["latency_ms"]
    lengths = prepared.selection.lengths.tolist()
    assert single["conditions"]["tokens"] == "mix"
    assert single["conditions"]["mean_tokens"] == pytest.approx(sum(lengths) / len(lengths))
    assert (single["conditions"]["batch"], usual["conditions"]["batch"]) == (1, 2)
    assert usual["conditions"]["tokens"] == 16
    assert single["details"]["throughput_per_s"] == pytest.approx(1000 / single["value"], rel=0.2)
    assert found.violations["latency_ms.single"] < 0


@pytest.mark.parametrize(
    ("latencies", "part"),
    [
        ({"long": LatencySettings(tokens=512), "graphs": LatencySettings(backend="cuda_graphs")}, "latencies.graphs"),
        (
            {"onnx": LatencySettings(backend="onnxruntime")},
            r"latencies.onnx.backend: .*paretobert\[onnx\]",
        ),
    ],
)
def test_a_backend_that_is_not_here_is_told_before_anything_is_made(
    latencies: dict[str, LatencySettings],
    part: str,
    definition: Definition,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("objectives.onnx_graph.find_spec", lambda _name: None)
    with pytest.raises(UserError, match=part):
        make(definition.model_copy(update={"latencies": latencies}), Artifacts(tmp_path / "artifacts"))
    assert not (tmp_path / "artifacts").exists()


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_a_cpu_is_its_model_and_every_number_of_threads_that_a_latency_has(
    threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "processor", lambda: "AMD EPYC 7B13")
    own = Definition(name="x", data="d")
    given = own.model_copy(update={"latency": LatencySettings(threads=2)})
    both = given.model_copy(update={"latencies": {"single": LatencySettings(batch=1)}})
    fixed = given.model_copy(update={"latencies": {"single": LatencySettings(batch=1, threads=1)}})
    said = {}
    for count in (1, 3):
        threads(count)
        said[count] = [machine_of(each, CPU) for each in (own, given, both, fixed)]
        for each in (own, given, both, fixed):  # as it was written before
            assert machine_of(each, CPU, "cpu with 9 threads") == f"cpu with {each.latency.threads or count} threads"
            assert machine_of(each, CPU, machine_of(each, CPU)) == machine_of(each, CPU)
    assert said[1] == [
        "cpu with 1 threads, AMD EPYC 7B13",
        "cpu with 2 threads, AMD EPYC 7B13",
        "cpu with 2 threads, 1 to compute, AMD EPYC 7B13",
        "cpu with 2 threads, AMD EPYC 7B13",
    ]
    assert [one == three for one, three in zip(said[1], said[3], strict=True)] == [False, True, False, True]


@pytest.mark.parametrize(
    ("machine", "given", "taken"),
    [
        ("cpu with 2 threads, AMD EPYC", None, 2),
        ("cpu with 2 threads, 3 to compute, AMD EPYC", 2, 3),
        ("cpu with 2 threads, AMD EPYC", 2, 1),  # all latencies have threads of their own
        ("cpu with 2 threads", None, 2),
        ("cpu with 2 threads", 2, 1),  # of the latency, whatever the others compute with
        ("cpu with 9 threads, AMD EPYC", None, 1),  # more than there are cores
        ("NVIDIA H100", None, 1),
    ],
)
def test_who_joins_computes_with_the_threads_of_the_others(
    machine: str, given: int | None, taken: int, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.devices.available_cores", lambda: (0, 1, 2, 3))
    threads(1)
    definition = Definition(name="x", data="d", latency=LatencySettings(threads=given))
    take_threads(SimpleNamespace(machine=machine, definition=definition), CPU, SilentListener())  # type: ignore[arg-type]
    assert torch.get_num_threads() == taken


def test_the_model_of_a_cpu(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("model\t\t: 1\nmodel name\t: AMD EPYC 7B13 \n\nmodel name\t: other\n")
    assert processor(tmp_path / "cpuinfo") == "AMD EPYC 7B13"
    (tmp_path / "arm").write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert processor(tmp_path / "arm") == processor(tmp_path / "none") == (platform.processor() or platform.machine())
