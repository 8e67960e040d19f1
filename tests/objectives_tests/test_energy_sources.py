"""Which source is taken, by counters that answer or do not."""

from collections.abc import Mapping

import pytest
import torch

from objectives import MeasurementUnavailable
from objectives.energy.choose import COUNTERS, Opener, open_meter, resolve, sources
from objectives.energy.meter import Meter

CPU = torch.device("cpu")


class Steady:
    source = "steady"

    def read_mj(self) -> float:
        return 0.0


def answers(_: torch.device) -> Meter:
    return Steady()


def refuses(device: torch.device) -> Meter:
    raise MeasurementUnavailable(f"no counter for {device}: use another")


def counters(nvml: Opener, rapl: Opener) -> Mapping[str, Opener]:
    return {"nvml": nvml, "rapl": rapl}


@pytest.mark.parametrize(
    ("nvml", "rapl", "expected"),
    [
        (answers, answers, "nvml"),
        (answers, refuses, "nvml"),
        (refuses, answers, "rapl"),
        (refuses, refuses, "model"),
    ],
)
def test_auto_takes_the_first_that_can_be_read(nvml: Opener, rapl: Opener, expected: str) -> None:
    assert resolve("auto", CPU, counters=counters(nvml, rapl)) == expected


@pytest.mark.parametrize("name", ["nvml", "rapl"])
def test_a_source_asked_for_by_name_is_never_replaced(name: str) -> None:
    assert resolve(name, CPU, counters=counters(answers, answers)) == name
    with pytest.raises(MeasurementUnavailable, match="no counter for cpu"):
        resolve(name, CPU, counters=counters(refuses, refuses))


def test_the_model_is_taken_when_asked_for_though_there_are_counters() -> None:
    assert resolve("model", CPU, counters=counters(answers, answers)) == "model"


@pytest.mark.parametrize("name", ["nvlm", ""])
def test_an_unknown_source_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown energy source '{name}'; choose one of auto, nvml, rapl, model"):
        resolve(name, CPU)


def test_sources_say_what_can_be_read_and_why_not() -> None:
    assert sources(CPU, counters=counters(refuses, answers)) == [
        ("nvml", False, "no counter for cpu: use another"),
        ("rapl", True, "its counter can be read"),
        ("model", True, "computed from operations, needs no counter"),
    ]


@pytest.mark.parametrize(("name", "device"), [("nvml", "cpu"), ("nvml", "mps"), ("rapl", "cuda:0"), ("rapl", "mps")])
def test_a_counter_of_another_device_is_not_taken(name: str, device: str) -> None:
    with pytest.raises(MeasurementUnavailable, match=f"{name} counts .* the models run on {device}"):
        open_meter(name, torch.device(device), counters=COUNTERS)
    assert resolve("auto", torch.device("mps")) == "model"
