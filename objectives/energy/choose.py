"""Which source gives the energy figure on a device.

auto ──► nvml (cuda devices) ──► rapl (cpu) ──► model (always)       the first that can be read
nvml, rapl, model                                                    that one, or an error
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from objectives.energy.meter import Meter
from objectives.energy.nvml import open_nvml
from objectives.energy.rapl import open_rapl
from objectives.measurement import MeasurementUnavailable

Opener = Callable[[torch.device], Meter]
"""Opens a counter for a device and reads it once, or raises MeasurementUnavailable."""

COUNTERS: Mapping[str, Opener] = {"nvml": open_nvml, "rapl": open_rapl}
"""The counters by name, in the order in which auto tries them."""

AUTO = "auto"
"""Stands for the first source that can be read."""

MODEL = "model"
"""Name of the source that needs no counter."""


class SourceState(NamedTuple):
    """Whether a source can be used.

    Attributes:
        name: Name of the source.
        readable: Whether it gives a figure on the device.
        reason: Why, or why not and what to do.
    """

    name: str
    readable: bool
    reason: str


def sources(device: torch.device, *, counters: Mapping[str, Opener] = COUNTERS) -> list[SourceState]:
    """Try every source on a device.

    Args:
        device: The device that the models run on.
        counters: The counters by name.

    Returns:
        One entry per source, in the order in which `auto` takes them.
    """
    states = [_try(name, device, counters) for name in counters]
    return [*states, SourceState(MODEL, True, "computed from operations, needs no counter")]


def resolve(source: str, device: torch.device, *, counters: Mapping[str, Opener] = COUNTERS) -> str:
    """Settle which source is used, so that it can be written down before anything is measured.

    Args:
        source: `auto` or the name of a source.
        device: The device that the models run on.
        counters: The counters by name.

    Returns:
        The name of a source that can be read on the device. Only `auto` gives another name than it was given.

    Raises:
        MeasurementUnavailable: If a source asked for by name cannot be read.
        ValueError: If there is no source of that name.
    """
    if source == AUTO:
        return next(state.name for state in sources(device, counters=counters) if state.readable)
    if source != MODEL:
        open_meter(source, device, counters=counters)
    return source


def open_meter(source: str, device: torch.device, *, counters: Mapping[str, Opener] = COUNTERS) -> Meter:
    """Open a counter by name.

    Args:
        source: Name of a counter.
        device: The device that the models run on.
        counters: The counters by name.

    Returns:
        The counter, which has been read once.

    Raises:
        MeasurementUnavailable: If it cannot be read.
        ValueError: If there is no counter of that name.
    """
    if source not in counters:
        raise ValueError(f"unknown energy source {source!r}; choose one of {', '.join([AUTO, *counters, MODEL])}")
    return counters[source](device)


def _try(name: str, device: torch.device, counters: Mapping[str, Opener]) -> SourceState:
    try:
        open_meter(name, device, counters=counters)
    except MeasurementUnavailable as error:
        return SourceState(name, False, str(error))
    return SourceState(name, True, "its counter can be read")
