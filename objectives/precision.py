"""How is a quantity measured on a model that is deployed in another precision than it was trained in?

                 latency, measured energy      modelled energy          stored bytes            peak memory
    fp32         as the conditions say         4 bytes, fp32            model.safetensors       as the conditions say
    bf16         the same in bfloat16          2 bytes, 16-bit MACs     its bfloat16 twin       the same in bfloat16
    int8         ONNX Runtime, dynamic int8    8-bit MACs with weights  the quantised graph     not known

What depends on the shape alone, parameters and MACs, is the same in all of them. A reference that is measured beside a
model stays what it is: the dense model under the study's own conditions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from objectives.backends import open_backend
from objectives.energy.counted import Energy
from objectives.energy.operations import ModelledEnergy
from objectives.inference import Conditions
from objectives.latency import Latency
from objectives.measurement import Measurement, MeasurementUnavailable
from objectives.memory import PeakMemory, StoredBytes, safetensors_bytes
from objectives.objective import Direction, Objective, Subject
from objectives.onnx_graph import inputs_of, quantised, to_onnx

FP32, BF16, INT8 = "fp32", "bf16", "int8"

UNKNOWN: Mapping[str, tuple[str, ...]] = {INT8: ("peak_memory_bytes",)}
"""Names of quantities that cannot be measured in a precision."""


@dataclass(frozen=True)
class StoredIn:
    """Bytes of the file that a model is deployed as, in bfloat16 or int8.

    Attributes:
        precision: `bf16` or `int8`.
    """

    precision: str
    name: ClassVar[str] = "stored_bytes"
    unit: ClassVar[str] = "bytes"
    direction: ClassVar[Direction] = "minimize"
    needs_scores: ClassVar[bool] = False

    def measure(self, subject: Subject) -> Measurement:
        """The size of the file; nothing is written.

        Raises:
            TypeError: If a tensor is of a type that safetensors files do not have.
        """
        if self.precision == INT8:
            size = len(quantised(to_onnx(subject.model, inputs=inputs_of(subject.model))))
            return Measurement(float(size), self.unit, "ONNX file, dynamic int8")
        halves = {name: _half(tensor) for name, tensor in subject.model.state_dict().items()}
        return Measurement(float(safetensors_bytes(halves)), self.unit, "closed form, bfloat16")


def in_precision(objective: Objective, precision: str) -> Objective:
    """An objective as it is measured on a model that is deployed in a precision.

    Args:
        objective: The objective on a model in float32. One that this package does not know is left as it is.
        precision: `fp32`, `bf16` or `int8`.

    Raises:
        KeyError: If there is no such precision.
    """
    if not _CHANGES[precision]:
        return objective
    if isinstance(objective, Latency):
        own = objective.reference_conditions or objective.conditions
        return replace(objective, conditions=change_of(objective.conditions, precision), reference_conditions=own)
    if isinstance(objective, Energy | PeakMemory):
        return replace(objective, conditions=change_of(objective.conditions, precision))
    if isinstance(objective, ModelledEnergy):
        return replace(objective, precision=precision)
    return StoredIn(precision) if isinstance(objective, StoredBytes) else objective


def change_of(conditions: Conditions, precision: str) -> Conditions:
    """The conditions under which a model is run in a precision."""
    change: dict[str, Any] = {**_CHANGES[precision]}
    return replace(conditions, **change)


def check_available(precision: str, device: torch.device) -> None:
    """Make sure that models can be run in a precision.

    Raises:
        MeasurementUnavailable: If a package is missing, or the device cannot.
        KeyError: If there is no such precision.
    """
    change = _CHANGES[precision]
    if "backend" in change:
        try:
            open_backend(change["backend"], device)
        except MeasurementUnavailable as error:
            raise MeasurementUnavailable(f"the precision {precision!r}: {error}") from None


_CHANGES: Mapping[str, dict[str, str]] = {
    FP32: {},
    BF16: {"dtype": "bfloat16"},
    INT8: {"dtype": "float32", "backend": "onnxruntime_int8"},
}
"""What of the conditions is another one, by precision."""


def _half(tensor: torch.Tensor) -> torch.Tensor:
    """What a tensor becomes in the bfloat16 twin; nothing is computed."""
    return torch.empty_like(tensor, dtype=torch.bfloat16, device="meta") if tensor.is_floating_point() else tensor
