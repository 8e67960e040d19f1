"""RAPL in a folder that looks like /sys/class/powercap."""

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from objectives import Conditions, MeasurementUnavailable, Subject
from objectives.energy import Energy
from objectives.energy.rapl import Domain, RaplMeter, open_rapl

CPU = torch.device("cpu")
RANGE_UJ = 262_143_328_850


def domain(root: Path, number: str, name: str, energy_uj: int) -> Path:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir()
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    spent(folder, energy_uj)
    return folder


def spent(folder: Path, energy_uj: int) -> None:
    (folder / "energy_uj").write_text(f"{energy_uj}\n")


def test_packages_are_added_and_nothing_is_counted_twice(tmp_path: Path) -> None:
    first = domain(tmp_path, "0", "package-0", 5_000)
    second = domain(tmp_path, "2", "package-1-die-0", 70_000)
    others = [
        domain(tmp_path, "0:0", "core", 1),
        domain(tmp_path, "0:1", "package-0", 1),
        domain(tmp_path, "1", "psys", 1),
    ]
    meter = open_rapl(CPU, root=tmp_path)
    assert meter.read_mj() == 0.0
    for folder in others:
        spent(folder, 9_999_999)
    spent(first, 5_000 + 3_000_000)
    spent(second, 70_000 + 500_000)
    assert (meter.source, meter.read_mj()) == ("rapl", 3500.0)
    spent(first, 5_000 + 4_000_000)
    assert meter.read_mj() == 4500.0


def test_two_threads_that_read_at_once_count_nothing_twice() -> None:
    """Each waits, after its look at the counter, for the other to look too, as long as that may take."""
    both = threading.Barrier(2)

    class Package(Domain):
        def read_uj(self) -> int:
            with suppress(threading.BrokenBarrierError):
                both.wait(timeout=0.2)
            return 5_000

    counted: list[float] = []
    package = Package(Path("package-0"), RANGE_UJ)
    meter = RaplMeter([package])
    both.reset()
    meter._last_uj[package] = 0
    threads = [threading.Thread(target=lambda: counted.append(meter.read_mj())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted == [5.0, 5.0]


def test_a_counter_that_wraps_around_goes_on(tmp_path: Path) -> None:
    folder = domain(tmp_path, "0", "package-0", RANGE_UJ - 1_000_000)
    meter = open_rapl(CPU, root=tmp_path)
    spent(folder, 500_000)
    assert meter.read_mj() == 1500.0
    spent(folder, 700_000)
    assert meter.read_mj() == 1700.0
    spent(folder, 100_000)  # once more around
    assert meter.read_mj() == 1700.0 + (RANGE_UJ - 600_000) / 1000


def test_energy_per_inference_over_a_wrap(tmp_path: Path, build: Callable[..., Any], conditions: Conditions) -> None:
    folder = domain(tmp_path, "0", "package-0", 0)
    counts = iter([RANGE_UJ - 300_000] * conditions.warmup + [700_000])  # 1 J in the one measured batch of 2 sequences
    model = build()
    model.register_forward_hook(lambda *_: spent(folder, next(counts)))
    seconds = iter([0.0, 1.0])
    energy = Energy(conditions, open_rapl(CPU, root=tmp_path), window_s=0.5, clock=lambda: next(seconds))
    measurement = energy.measure(Subject(model))
    assert (measurement.value, measurement.source, measurement.samples) == (500.0, "rapl", 2)


def test_a_counter_that_may_not_be_read_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = domain(tmp_path, "0", "package-0", 0) / "energy_uj"
    read_text = Path.read_text

    def guarded(path: Path, **options: Any) -> str:
        if path == file:
            raise PermissionError(13, "Permission denied")
        return read_text(path, **options)

    monkeypatch.setattr(Path, "read_text", guarded)  # the tests may run as root, whom file modes do not stop
    with pytest.raises(MeasurementUnavailable) as caught:
        open_rapl(CPU, root=tmp_path)
    assert str(caught.value).startswith(f"rapl cannot read {file} (Permission denied): run as root")
    assert f"sudo chmod a+r {file}" in str(caught.value)


def test_a_counter_that_vanishes_names_its_file(tmp_path: Path) -> None:
    folder = domain(tmp_path, "0", "package-0", 0)
    meter = open_rapl(CPU, root=tmp_path)
    (folder / "energy_uj").unlink()
    with pytest.raises(MeasurementUnavailable, match=r"energy_uj \(No such file or directory\)"):
        meter.read_mj()


def test_a_counter_that_is_no_number_is_refused(tmp_path: Path) -> None:
    folder = domain(tmp_path, "0", "package-0", 0)
    (folder / "energy_uj").write_text("-\n")
    with pytest.raises(MeasurementUnavailable, match="holds '-', not a number"):
        open_rapl(CPU, root=tmp_path)


@pytest.mark.parametrize("names", [[], ["psys"]])
def test_a_machine_without_packages_says_what_to_do(names: list[str], tmp_path: Path) -> None:
    for number, name in enumerate(names):
        domain(tmp_path, str(number), name, 0)
    with pytest.raises(MeasurementUnavailable, match=r"no CPU package under .*energy source 'model'"):
        open_rapl(CPU, root=tmp_path)
    with pytest.raises(MeasurementUnavailable, match="no CPU package under"):
        open_rapl(CPU, root=tmp_path / "missing")
