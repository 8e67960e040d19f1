"""NVML without a GPU: the functions of pynvml that are used, replaced by ones that answer or refuse."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

from objectives import Conditions, MeasurementUnavailable, Subject
from objectives.energy import Energy, resolve, sources
from objectives.energy.nvml import open_nvml

GPU = torch.device("cuda:0")
UUID = "8c1f0b52-0000-1111-2222-333344445555"


class Board:
    """One board, second in NVML's order, first and only one that CUDA shows."""

    def __init__(self) -> None:
        self.energy_mj = 4_000_000
        self.refusal: int | None = None

    def handle(self, uuid: str) -> str:
        if uuid != f"GPU-{UUID}":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "handle of board 1"

    def energy(self, handle: str) -> int:
        assert handle == "handle of board 1"
        if self.refusal is not None:
            raise pynvml.NVMLError(self.refusal)
        return self.energy_mj


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    board = Board()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=UUID))
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", board.handle)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", board.energy)
    return board


def test_the_counter_of_cudas_board_is_read_in_millijoules(board: Board) -> None:
    meter = open_nvml(GPU)
    board.energy_mj += 1234
    assert (meter.source, meter.read_mj()) == ("nvml", 4_001_234.0)
    assert resolve("auto", GPU) == "nvml"
    assert sources(GPU)[0].readable


@pytest.mark.parametrize(
    ("refusal", "advice"),
    [
        (pynvml.NVML_ERROR_NO_PERMISSION, "Insufficient Permissions.*administrator"),
        (pynvml.NVML_ERROR_NOT_SUPPORTED, "Not Supported.*Volta generation or later"),
        (pynvml.NVML_ERROR_GPU_IS_LOST, "GPU is lost.*nvidia-smi"),
    ],
)
def test_a_refusal_says_what_to_do(refusal: int, advice: str, board: Board) -> None:
    meter = open_nvml(GPU)
    board.refusal = refusal
    for read in (meter.read_mj, lambda: open_nvml(GPU), lambda: resolve("nvml", GPU)):
        with pytest.raises(MeasurementUnavailable, match=f"nvml cannot read.*{advice}.*energy source 'model'"):
            read()
    assert resolve("auto", GPU) == "model"


@pytest.mark.usefixtures("board")
def test_a_missing_library_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    with pytest.raises(MeasurementUnavailable, match=r"install the NVIDIA driver.*--gpus all"):
        open_nvml(GPU)
    assert sources(GPU)[0].reason.startswith("nvml cannot read the board's energy counter (")


@pytest.mark.usefixtures("board")
def test_a_mig_slice_has_no_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="of-a-slice"))
    with pytest.raises(MeasurementUnavailable, match="use a whole board; MIG slices have no counter"):
        open_nvml(GPU)


def test_a_torch_without_cuda_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MeasurementUnavailable, match="torch sees no CUDA device; install"):
        open_nvml(GPU)


@pytest.mark.usefixtures("board")
def test_a_stuck_counter_is_no_measurement(build: Callable[..., Any], conditions: Conditions) -> None:
    energy = Energy(conditions, open_nvml(GPU), window_s=0.001)
    with pytest.raises(MeasurementUnavailable, match="'nvml' did not move"):
        energy.measure(Subject(build()))


def test_a_counter_that_moves_gives_its_share_per_inference(
    board: Board, build: Callable[..., Any], conditions: Conditions
) -> None:
    model = build()

    def spend(*_: object) -> None:
        board.energy_mj += 50

    model.register_forward_hook(spend)
    measurement = Energy(conditions, open_nvml(GPU), window_s=0.001).measure(Subject(model))
    assert (measurement.value, measurement.source) == (25.0, "nvml")
