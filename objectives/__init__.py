"""What can be measured on a model, in which unit."""

from objectives.catalogue import built_in
from objectives.energy import resolve, sources
from objectives.inference import Conditions
from objectives.measurement import Measurement, MeasurementUnavailable
from objectives.objective import Direction, Objective, Subject
from objectives.quality import all_metrics

__all__ = [
    "Conditions",
    "Direction",
    "Measurement",
    "MeasurementUnavailable",
    "Objective",
    "Subject",
    "all_metrics",
    "built_in",
    "resolve",
    "sources",
]
