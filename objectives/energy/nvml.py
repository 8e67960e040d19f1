"""How is the energy of an NVIDIA board read.

    whole board with a counter (Volta and later)     NvmlMeter: the counter, in millijoules
    MIG slice, or a board without a counter          PowerMeter: power of the whole board, sampled and added up

The board is found by its UUID, so `CUDA_VISIBLE_DEVICES` and the order of CUDA's device numbers do not matter.
"""

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pynvml
import torch

from objectives.measurement import MeasurementUnavailable

_NO_DRIVER = "install the NVIDIA driver, or start the container with the GPU (docker: --gpus all)"
_WHAT_TO_DO = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: _NO_DRIVER,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: _NO_DRIVER,
    pynvml.NVML_ERROR_NO_PERMISSION: "have the administrator give this user access to the board's counters",
    pynvml.NVML_ERROR_NOT_SUPPORTED: "use a board of the Volta generation or later",
    pynvml.NVML_ERROR_NOT_FOUND: "the driver does not know the board that torch sees: see what nvidia-smi -L says",
    pynvml.NVML_ERROR_GPU_IS_LOST: "the board fell off the bus: see what nvidia-smi says, and restart the machine",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "update the NVIDIA driver",
}


@dataclass(frozen=True)
class NvmlMeter:
    """Energy that one NVIDIA board has spent since its driver was loaded.

    The counter moves every 20 to 100 ms, and it is the board's: other processes on it are counted too.

    Attributes:
        handle: NVML's handle of the board.
    """

    handle: Any
    source: ClassVar[str] = "nvml"

    def read_mj(self) -> float:
        """Read the counter, in millijoules.

        Raises:
            MeasurementUnavailable: If NVML refuses.
        """
        with _translated_errors():
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle))


class PowerMeter:
    """Energy that one NVIDIA board has spent since the meter was opened, added up from samples of its power.

    Between two samples the power is taken to change evenly. The driver itself averages or samples: on an A100 or H100
    it sees about a quarter of the time, so this is the poorer source. Of a MIG slice it counts the whole board, because
    no slice has a power of its own. A thread takes the samples for as long as the meter is in use.

    Args:
        handle: NVML's handle of the board.
        clock: A monotonic clock in seconds.
        period_s: Seconds between two samples; 0 takes them at readings only.

    Raises:
        MeasurementUnavailable: If NVML refuses.

    Reference:
        Yang et al. 2024, "Part-time Power Measurements: nvidia-smi's Lack of Attention".
    """

    source: ClassVar[str] = "nvml, power samples of the whole board"

    def __init__(self, handle: Any, *, clock: Callable[[], float] = time.perf_counter, period_s: float = 0.02) -> None:
        self._handle, self._clock = handle, clock
        self._lock = threading.Lock()
        self._failure: MeasurementUnavailable | None = None
        self._spent_mj = 0.0
        self._last: tuple[float, float] | None = (clock(), self._power_mw())
        if period_s:
            own = weakref.ref(self)
            threading.Thread(target=_sample, args=(own, period_s), name="power samples", daemon=True).start()

    def read_mj(self) -> float:
        """Add up to now, in millijoules.

        Raises:
            MeasurementUnavailable: If NVML refuses, or refused since the last reading: the sum would have a hole. The
                reading after that begins behind it.
        """
        with self._lock:
            failure, self._failure = self._failure, None
            self._add_up()
            if failure is not None:
                raise failure
            return self._spent_mj

    def sample(self) -> bool:
        """Add up to now; tell whether that was possible. What was not is told by the next reading."""
        with self._lock:
            try:
                self._add_up()
            except MeasurementUnavailable as failure:
                self._failure = failure
                return False
            return True

    def _add_up(self) -> None:
        """Add what was spent since the last power that is known; after a refusal begin anew with this one."""
        last, self._last = self._last, None
        power_mw, now_s = self._power_mw(), self._clock()
        if last is not None:
            self._spent_mj += (power_mw + last[1]) / 2 * (now_s - last[0])
        self._last = now_s, power_mw

    def _power_mw(self) -> float:
        with _translated_errors():
            return float(pynvml.nvmlDeviceGetPowerUsage(self._handle))


def _sample(meter_of: "Callable[[], PowerMeter | None]", period_s: float) -> None:
    """Have a meter take samples until nobody uses it any more; a refusal passes, or the readings tell it."""
    while (meter := meter_of()) is not None:
        meter.sample()
        del meter
        time.sleep(period_s)


def open_nvml(device: torch.device) -> NvmlMeter | PowerMeter:
    """Open what can be read of the board behind a CUDA device, and read it once.

    NVML stays initialised until the process ends.

    Args:
        device: The device that the models run on.

    Returns:
        The board's counter; for a MIG slice, and for a board that has none, its power, added up from samples.

    Raises:
        MeasurementUnavailable: If the device is no NVIDIA board, or neither counter nor power can be read.
    """
    if device.type != "cuda":
        raise MeasurementUnavailable(f"nvml counts NVIDIA boards, and the models run on {device}: run them on cuda")
    if not torch.cuda.is_available():
        raise MeasurementUnavailable("nvml: torch sees no CUDA device; install a CUDA build of torch and the driver")
    uuid = torch.cuda.get_device_properties(device).uuid
    with _translated_errors():
        pynvml.nvmlInit()
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_NOT_SUPPORTED:
                return PowerMeter(handle)
            if error.value != pynvml.NVML_ERROR_NOT_FOUND:
                raise
            piece = pynvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")
            return PowerMeter(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(piece))
    return NvmlMeter(handle)


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except pynvml.NVMLError as error:
        advice = _WHAT_TO_DO.get(error.value, "see what nvidia-smi says")
        raise MeasurementUnavailable(
            f"nvml cannot read the board's energy ({error}): {advice}; or take the energy source 'model'"
        ) from error
