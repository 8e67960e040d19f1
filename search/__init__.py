"""Decides which pruned BERTs to try, makes them, records them and reads them back.

A study script writes a `Definition` and calls `run`; everything else is behind the `paretobert` command. Importing this
package is fast: torch and Optuna are imported when a search starts.
"""

from search.definition import (
    Bound,
    Definition,
    EnergySettings,
    EngineSettings,
    ImportanceSettings,
    LatencySettings,
    LayerRanges,
    Range,
    RecoverySettings,
    SpaceSettings,
    Task,
    TeacherSettings,
)
from search.run import run

__all__ = [
    "Bound",
    "Definition",
    "EnergySettings",
    "EngineSettings",
    "ImportanceSettings",
    "LatencySettings",
    "LayerRanges",
    "Range",
    "RecoverySettings",
    "SpaceSettings",
    "Task",
    "TeacherSettings",
    "run",
]
