"""Decides which pruned BERTs to try, makes them, records them and reads them back.

A study script writes a `Definition` and calls `run`; everything else is behind the `paretobert` command. Importing this
package is fast: torch and Optuna are imported when a search starts. The one thing that happens at import: a mistake in
the fields of a study script is said in one sentence, as every other error of the input is.
"""

from search import mistakes
from search.definition import (
    Bound,
    Definition,
    EndingSettings,
    EnergySettings,
    EngineSettings,
    ImportanceSettings,
    LatencySettings,
    LayerRanges,
    MeasuringSettings,
    Range,
    RateRange,
    RecoverySettings,
    ScheduleRanges,
    SpaceSettings,
    StepRange,
    SupernetSettings,
    Task,
    TeacherSettings,
)
from search.loading import load
from search.run import run

mistakes.say_in_one_sentence()

__all__ = [
    "Bound",
    "Definition",
    "EndingSettings",
    "EnergySettings",
    "EngineSettings",
    "ImportanceSettings",
    "LatencySettings",
    "LayerRanges",
    "MeasuringSettings",
    "Range",
    "RateRange",
    "RecoverySettings",
    "ScheduleRanges",
    "SpaceSettings",
    "StepRange",
    "SupernetSettings",
    "Task",
    "TeacherSettings",
    "load",
    "run",
]
