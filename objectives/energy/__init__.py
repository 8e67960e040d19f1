"""What energy one inference takes: read from a counter where there is one, else computed and labelled as such."""

from objectives.energy.choose import resolve, sources
from objectives.energy.counted import Energy
from objectives.energy.meter import Meter
from objectives.energy.operations import ModelledEnergy

__all__ = ["Energy", "Meter", "ModelledEnergy", "resolve", "sources"]
