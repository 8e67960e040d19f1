"""Which objectives are built in."""

from collections.abc import Mapping

import torch

from objectives.backends import open_backend
from objectives.clocks import work_clock
from objectives.energy.choose import MODEL, open_meter, resolve
from objectives.energy.counted import Energy
from objectives.energy.operations import ModelledEnergy
from objectives.inference import Conditions
from objectives.latency import Latency
from objectives.macs import Macs
from objectives.memory import PeakMemory, StoredBytes
from objectives.objective import Objective
from objectives.quality import METRICS, Quality
from objectives.size import EncoderParameters, EncoderShare, Parameters


def built_in(
    *,
    dense_encoder_parameters: int,
    conditions: Conditions,
    device: torch.device,
    energy_source: str,
    energy_window_s: float,
    picojoules_per_mac: float,
    picojoules_per_byte: float,
    energy_windows: int = 1,
    energy_idle_s: float = 0.0,
    latencies: Mapping[str, Conditions] | None = None,
) -> dict[str, Objective]:
    """Make every built-in objective for one device.

    Args:
        dense_encoder_parameters: Parameters of the dense model's encoder, which shares are taken of.
        conditions: How a model is run for latency and energy; MACs and modelled energy take batch and tokens from it.
        device: The device that the models are measured on.
        energy_source: `nvml`, `rapl`, `model`, or `auto` for the first of them that can be read.
        energy_window_s: Seconds that an energy counter is read over.
        picojoules_per_mac: Modelled energy of one fp32 multiply-accumulate, in pJ.
        picojoules_per_byte: Modelled energy of one byte moved, in pJ.
        energy_windows: Windows that an energy counter is read over, one after the other.
        energy_idle_s: Seconds that idle power is measured over; 0 measures none.
        latencies: Conditions of further latencies, by the name of the quantity.

    Returns:
        Objectives by name. A study's own are added to this dict.

    Raises:
        MeasurementUnavailable: If an energy source asked for by name cannot be read, or a backend cannot be used.
        ValueError: If a number is out of its range, or there is no energy source of that name.
    """
    further = latencies or {}
    for used in (conditions, *further.values()):
        open_backend(used.backend, device)
    source = resolve(energy_source, device)
    energy: Objective = (
        ModelledEnergy(conditions, picojoules_per_mac, picojoules_per_byte)
        if source == MODEL
        else Energy(
            conditions,
            open_meter(source, device),
            energy_window_s,
            windows=energy_windows,
            idle_s=energy_idle_s,
        )
    )
    objectives: list[Objective] = [
        *(Quality(name) for name in METRICS),
        Parameters(),
        EncoderParameters(),
        EncoderShare(dense_encoder_parameters),
        Macs(conditions.tokens),
        Latency(conditions, work_clock=work_clock(device)),
        energy,
        StoredBytes(),
        PeakMemory(conditions),
        *(Latency(used, name=name, work_clock=work_clock(device)) for name, used in further.items()),
    ]
    return {objective.name: objective for objective in objectives}
