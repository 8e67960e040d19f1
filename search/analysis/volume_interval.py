"""How far could the hypervolume be off because its trials were measured with noise?"""

import moocore
import numpy as np
from numpy.typing import NDArray

from search.analysis.front import is_candidate
from search.analysis.indicators import gains, has_reference, volume
from search.analysis.remembered import remembered
from search.analysis.resampling import Resampling
from search.records import StudyRecord


def hypervolume_interval(
    study: StudyRecord, *, moments: int = 40, draws: int = 200, seed: int = 0
) -> list[tuple[int, float, float]]:
    """The interval of the hypervolume, after some of the trials.

    The basic bootstrap: all trials' values are drawn again around the measured ones (`resampling.Resampling`: the same
    sentences for all, because what is hard for all moves the whole front), the hypervolume is computed anew, and its
    deviations are turned around. A search keeps what happened to be measured well, so the interval lies mostly below
    the curve. The measured values are spread by noise already, so drawing again around them shows less of that luck
    than there was: the low end allows for twice as much. What another seed of the search would have found is not in it.

    It claims 95 %; `studies/benchmarks/front_noise.py` measures how often it holds the hypervolume of the true values.

    Args:
        study: The study. It is not changed.
        moments: At how many trials the interval is computed at most; the last candidate is always one of them.
        draws: How often the values are drawn again.
        seed: Seed of the draws.

    Returns:
        Position in `study.records`, low and high end (95 %); empty where no value has an error, or there is nothing to
        compare with (`indicators.hypervolume`).

    Reference:
        Davison, Hinkley 1997, "Bootstrap Methods and their Application", equation 5.6 (the basic bootstrap).
    """
    positions = [at for at, record in enumerate(study.records) if is_candidate(study, record)]
    if not has_reference(study) or not positions:
        return []
    again = Resampling(study, [study.records[at] for at in positions], draws=draws, seed=seed)
    if not again.is_noisy:
        return []
    last = np.unique(np.linspace(len(positions) - 1, 0, moments).round().astype(int))
    measured = _growth(gains(study, again.values), last)
    drawn = [_growth(gains(study, values), last) for values in again]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    luck = np.maximum(np.mean(drawn, axis=0) - measured, 0.0)
    # The deviations, turned around; near 0, where that leaves the scale, the drawn values' high end stays the high end.
    turned = 2 * measured - low
    ends = np.clip([2 * measured - high - luck, np.where(turned > 0, turned, high)], 0.0, 1.0)
    return [(positions[at], float(below), float(above)) for at, below, above in zip(last, *ends, strict=True)]


@remembered
def final_interval(study: StudyRecord) -> tuple[float, float] | None:
    """The interval of the hypervolume of the whole study; None where `hypervolume_interval` is empty."""
    found = hypervolume_interval(study, moments=1)
    return None if not found else found[-1][1:]


def _growth(points: NDArray[np.float64], last: NDArray[np.int_]) -> NDArray[np.float64]:
    """The hypervolume of the points up to and including each of some positions, in rising order."""
    kept, begin, volumes = points[:0], 0, []
    for at in last:
        kept = np.concatenate([kept, points[begin : at + 1]])
        kept = kept[moocore.is_nondominated(kept, maximise=True)]
        begin = at + 1
        volumes.append(volume(kept))
    return np.array(volumes)
