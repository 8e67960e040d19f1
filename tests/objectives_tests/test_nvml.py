"""NVML without a GPU: the functions of pynvml that are used, replaced by ones that answer or refuse."""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

from objectives import Conditions, MeasurementUnavailable, Subject
from objectives.energy import Energy, resolve, sources
from objectives.energy.nvml import PowerMeter, open_nvml

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
        (pynvml.NVML_ERROR_GPU_IS_LOST, "GPU is lost.*fell off the bus.*nvidia-smi"),
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
    assert sources(GPU)[0].reason.startswith("nvml cannot read the board's energy (")


class Power:
    """A board whose power is told, in milliwatts, and the clock beside it."""

    def __init__(self) -> None:
        self.power_mw, self.now_s = 100_000.0, 50.0
        self.refusal: int | None = None

    def usage(self, handle: str) -> float:
        assert handle == "handle of board 1"
        if self.refusal is not None:
            raise pynvml.NVMLError(self.refusal)
        return self.power_mw

    def clock(self) -> float:
        return self.now_s


@pytest.fixture
def power(monkeypatch: pytest.MonkeyPatch) -> Power:
    power = Power()
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", power.usage)
    return power


def test_a_board_without_a_counter_falls_back_to_its_power_and_says_so(board: Board, power: Power) -> None:
    board.refusal = pynvml.NVML_ERROR_NOT_SUPPORTED
    meter = open_nvml(GPU)
    assert meter.source == "nvml, power samples of the whole board"
    assert resolve("nvml", GPU) == "nvml"
    power.refusal = pynvml.NVML_ERROR_NOT_SUPPORTED
    with pytest.raises(MeasurementUnavailable, match=r"Not Supported.*Volta generation or later.*source 'model'"):
        open_nvml(GPU)
    assert resolve("auto", GPU) == "model"


def test_a_mig_slice_is_counted_with_its_whole_board(power: Power, monkeypatch: pytest.MonkeyPatch) -> None:
    def handle(uuid: str) -> str:
        if uuid != "MIG-of-a-slice":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "slice"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="of-a-slice"))
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", handle)
    boards = {"slice": "handle of board 1"}
    monkeypatch.setattr(pynvml, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", boards.__getitem__)
    assert power.power_mw > 0
    assert open_nvml(GPU).source == "nvml, power samples of the whole board"
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="unknown"))
    with pytest.raises(MeasurementUnavailable, match="driver does not know the board that torch sees"):
        open_nvml(GPU)


def test_power_is_added_up_between_samples(power: Power) -> None:
    meter = PowerMeter("handle of board 1", clock=power.clock, period_s=0)
    assert meter.read_mj() == 0.0
    power.now_s, power.power_mw = 52.0, 300_000.0  # 2 s from 100 W to 300 W
    assert meter.sample()
    power.now_s = 53.0  # 1 s at 300 W
    assert meter.read_mj() == 400_000.0 + 300_000.0


def test_samples_are_taken_while_the_meter_is_in_use(power: Power) -> None:
    before = {thread for thread in threading.enumerate() if thread.name == "power samples"}
    meter = PowerMeter("handle of board 1", period_s=0.001)
    (thread,) = {t for t in threading.enumerate() if t.name == "power samples"} - before
    time.sleep(0.05)
    power.power_mw = 0.0  # 100 W until now: without samples in between, half of that would be lost
    spent_mj = meter.read_mj()
    assert spent_mj >= 0.9 * 100_000 * 0.05
    del meter
    thread.join(timeout=5)
    assert not thread.is_alive()


def test_a_board_lost_between_two_samples_spoils_the_window(power: Power) -> None:
    meter = PowerMeter("handle of board 1", clock=power.clock, period_s=0)
    power.refusal = pynvml.NVML_ERROR_GPU_IS_LOST
    assert not meter.sample()
    power.refusal = None
    with pytest.raises(MeasurementUnavailable, match="GPU is lost"):
        meter.read_mj()


def test_a_refusal_that_passes_is_told_once_and_the_sum_goes_on_behind_it(power: Power) -> None:
    meter = PowerMeter("handle of board 1", clock=power.clock, period_s=0)
    power.refusal = pynvml.NVML_ERROR_UNKNOWN
    assert not meter.sample()
    power.refusal, power.now_s = None, 60.0  # 10 s of which nothing is known
    assert meter.sample()
    power.now_s = 61.0
    with pytest.raises(MeasurementUnavailable, match="Unknown Error"):
        meter.read_mj()
    power.now_s = 63.0
    assert meter.read_mj() == 3 * 100_000.0
    power.refusal = pynvml.NVML_ERROR_UNKNOWN
    with pytest.raises(MeasurementUnavailable, match="Unknown Error"):
        meter.read_mj()
    power.refusal, power.now_s = None, 70.0
    assert meter.read_mj() == 3 * 100_000.0
    power.now_s = 71.0
    assert meter.read_mj() == 4 * 100_000.0


def test_samples_go_on_after_a_refusal(power: Power) -> None:
    meter = PowerMeter("handle of board 1", period_s=0.001)
    power.refusal = pynvml.NVML_ERROR_UNKNOWN
    time.sleep(0.05)
    power.refusal = None
    with pytest.raises(MeasurementUnavailable, match="Unknown Error"):
        meter.read_mj()
    before_mj = meter.read_mj()
    time.sleep(0.05)
    power.power_mw = 0.0
    assert meter.read_mj() - before_mj >= 0.9 * 100_000 * 0.05


def test_a_board_lost_in_mid_window_is_no_measurement(
    board: Board, build: Callable[..., Any], conditions: Conditions
) -> None:
    model, batches = build(), list[int]()

    def lose(*_: object) -> None:
        batches.append(1)
        board.energy_mj += 50
        if len(batches) == conditions.warmup + 2:
            board.refusal = pynvml.NVML_ERROR_GPU_IS_LOST

    model.register_forward_hook(lose)
    energy = Energy(conditions, open_nvml(GPU), window_s=0.05)
    with pytest.raises(MeasurementUnavailable, match=r"GPU is lost.*restart the machine"):
        energy.measure(Subject(model))
    assert not model.training
    assert not torch.is_inference_mode_enabled()


def test_a_counter_that_wrapped_or_was_reset_is_no_measurement(
    board: Board, build: Callable[..., Any], conditions: Conditions
) -> None:
    model = build()
    model.register_forward_hook(lambda *_: setattr(board, "energy_mj", board.energy_mj - 1000))
    with pytest.raises(MeasurementUnavailable, match=r"'nvml' went backwards \(it was reset\)"):
        Energy(conditions, open_nvml(GPU), window_s=0.001).measure(Subject(model))


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
