"""At which clock does a device run now, part of the conditions of a latency; and how long has it worked for us."""

import time
from collections.abc import Callable

import psutil
import pynvml
import torch


def clock_mhz(device: torch.device) -> float | None:
    """Clock of a device's processors.

    Args:
        device: The device.

    Returns:
        Megahertz: of an NVIDIA board's multiprocessors, or the mean of all CPU cores; None where it cannot be read.
    """
    try:
        if device.type == "cuda":
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
            return float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))
        if device.type == "cpu":
            frequency = psutil.cpu_freq()
            return round(float(frequency.current)) if frequency is not None and frequency.current else None
    except (pynvml.NVMLError, OSError, RuntimeError, NotImplementedError):
        return None
    return None


def work_clock(device: torch.device) -> Callable[[], float] | None:
    """What counts the seconds that a device works for this process, where others keep it waiting.

    Args:
        device: The device that models run on.

    Returns:
        Of a CPU the seconds that the calling thread has a core: on a machine that is overrun a measurement then rests
        on as many observations as on an idle one. That thread takes part in all that torch or ONNX Runtime compute with
        several threads, and does alone what one thread does, so the number of threads is not in it. None for other
        devices.
    """
    return time.thread_time if device.type == "cpu" else None
