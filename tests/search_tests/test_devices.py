"""Which devices a text names, and that workers do not share cores."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from search import devices
from search.devices import Device, available_cores, environment, resolve, take_cores, together
from search.errors import UserError

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs a system with core affinity")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Makes a machine of so many GPUs and cores."""

    def make(*, gpus: int = 0, cores: int = 8, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(devices, "available_cores", lambda: tuple(range(cores)))
        monkeypatch.setattr(devices, "together", lambda numbers: tuple(numbers))

    return make


def test_auto_is_every_gpu_then_mps_then_one_cpu_with_all_cores(machine) -> None:
    machine(gpus=3)
    assert resolve("auto") == (Device("cuda:0"), Device("cuda:1"), Device("cuda:2"))
    machine(mps=True)
    assert resolve("auto") == (Device("mps"),)
    machine(cores=3)
    assert resolve("auto") == resolve("cpu") == resolve("cpu:1") == (Device("cpu", (0, 1, 2)),)


def test_named_devices(machine) -> None:
    machine(gpus=3)
    assert resolve("cuda") == (Device("cuda:0"),)
    assert resolve("cuda:2, cuda:0") == (Device("cuda:2"), Device("cuda:0"))


@pytest.mark.parametrize(("cores", "workers"), [(8, 2), (8, 3), (5, 5), (7, 2)])
def test_cpu_workers_have_disjoint_and_equally_many_cores(machine, cores: int, workers: int) -> None:
    machine(cores=cores)
    found = resolve(f"cpu:{workers}")
    sets = [device.cores or () for device in found]
    assert [len(numbers) for numbers in sets] == [cores // workers] * workers
    used = [number for numbers in sets for number in numbers]
    assert len(set(used)) == len(used)
    assert set(used) <= set(range(cores))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cuda:2", r"there is no device 'cuda:2' here; name some of: auto, cuda:0, cuda:1, cpu, cpu:N .*at most 4"),
        ("gpu", "there is no device 'gpu' here"),
        ("", "there is no device '' here"),
        ("auto,cuda:0", "there is no device 'auto' here"),
        ("cuda:0,cuda:0", "names cuda:0 twice; one worker has one device: name it once"),
        ("cuda,cuda:0", "names cuda:0 twice"),
        ("cpu,cpu", "write cpu:2"),
        ("cuda:0,cpu", "mixes kinds of devices"),
        ("cuda:0,cpu:2", "cpu:2 means several CPU workers and stands alone"),
        ("cpu:5", "may use 4 cores and each CPU worker needs at least one: name cpu:1 to cpu:4"),
        ("cpu:0", "each CPU worker needs at least one"),
    ],
)
def test_what_cannot_be_used_is_refused(machine, text: str, message: str) -> None:
    machine(gpus=2, cores=4)
    with pytest.raises(UserError, match=message):
        resolve(text)


def test_the_environment_of_a_worker(machine) -> None:
    machine(gpus=3, cores=8)
    assert environment(Device("cuda:1"), 3) == {"OMP_NUM_THREADS": "2"}
    assert environment(Device("cuda:1"), 9) == {"OMP_NUM_THREADS": "1"}
    assert environment(Device("cpu", (1, 5, 6)), 2) == {"OMP_NUM_THREADS": "3", "PARETOBERT_CORES": "1,5,6"}


def test_cores_that_share_a_physical_one_stay_together(tmp_path: Path) -> None:
    for core in range(8):  # 4 physical cores with 2 threads each, of 2 processors
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{core % 4 % 2}\n")
        (folder / "thread_siblings_list").write_text(f"{core % 4},{core % 4 + 4}\n")
    assert together(range(8), tmp_path) == (0, 4, 2, 6, 1, 5, 3, 7)
    assert together([3, 1, 2], tmp_path / "none") == (1, 2, 3)


@needs_affinity
def test_a_process_takes_its_cores_in_all_its_threads() -> None:
    code = (
        "import os, threading; stop = threading.Event(); thread = threading.Thread(target=stop.wait); thread.start();"
        "from search.devices import take_cores; take_cores();"
        "print(os.sched_getaffinity(0), os.sched_getaffinity(thread.native_id)); stop.set()"
    )
    core = available_cores()[-1]
    told = {**os.environ, **environment(Device("cpu", (core,)), 1)}
    done = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{{{core}}} {{{core}}}"


@needs_affinity
@pytest.mark.parametrize("text", ["one", "", "100000"])
def test_cores_that_are_not_there_are_an_error_of_the_input(text: str) -> None:
    with pytest.raises(UserError, match=f"PARETOBERT_CORES is '{text}', which cannot be used here"):
        take_cores({"PARETOBERT_CORES": text})


def test_a_process_that_was_given_no_cores_keeps_its_own() -> None:
    before = available_cores()
    take_cores({})
    assert available_cores() == before
