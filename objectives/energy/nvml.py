"""How is the energy counter of an NVIDIA board read.

The board is found by its UUID, so `CUDA_VISIBLE_DEVICES` and the order of CUDA's device numbers do not matter.
"""

from collections.abc import Iterator
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
    pynvml.NVML_ERROR_NOT_SUPPORTED: "use a whole board of the Volta generation or later; MIG slices have no counter",
    pynvml.NVML_ERROR_NOT_FOUND: "use a whole board; MIG slices have no counter",
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


def open_nvml(device: torch.device) -> NvmlMeter:
    """Open the counter of the board behind a CUDA device, and read it once.

    NVML stays initialised until the process ends.

    Args:
        device: The device that the models run on.

    Returns:
        A counter that can be read.

    Raises:
        MeasurementUnavailable: If the device is no NVIDIA board, or its counter cannot be read.
    """
    if device.type != "cuda":
        raise MeasurementUnavailable(f"nvml counts NVIDIA boards, and the models run on {device}: run them on cuda")
    if not torch.cuda.is_available():
        raise MeasurementUnavailable("nvml: torch sees no CUDA device; install a CUDA build of torch and the driver")
    with _translated_errors():
        pynvml.nvmlInit()
        meter = NvmlMeter(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}"))
    meter.read_mj()
    return meter


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except pynvml.NVMLError as error:
        advice = _WHAT_TO_DO.get(error.value, "see what nvidia-smi says")
        raise MeasurementUnavailable(
            f"nvml cannot read the board's energy counter ({error}): {advice}; or take the energy source 'model'"
        ) from error
