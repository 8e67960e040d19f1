"""At which clock does a device run now: part of the conditions of a latency, where it can be read."""

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
