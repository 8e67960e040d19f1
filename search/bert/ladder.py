"""The plans that every search starts from: a ladder of sizes, uniform over the layers and tilted by importance.

    tilt 0   the same ratio in every layer
    tilt 1   the units that one threshold of importance over all layers keeps, as many in all as at tilt 0
    between  their mixture, layer by layer

Importance says that some layers matter more than others; a uniform plan cannot use that, and random ratios crowd around
half of the model. So size and tilt come first, and the search starts from there.
"""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from search.bert.importance import Scores
from search.space import Space


def ladder(space: Space, scores: Scores, *, sizes: Sequence[float], tilts: Sequence[float]) -> list[dict[str, float]]:
    """The plans of a ladder, as ratios on the grid of the space and within its ranges.

    Args:
        space: The study's dimensions.
        scores: Importance of all heads and neurons.
        sizes: Share of heads, and of neuron blocks, that a plan keeps.
        tilts: Tilts from 0 to 1; each size is tried with each of them.

    Returns:
        One dict of ratios per plan: all sizes at the first tilt, then all at the next; none twice.
    """
    kept: list[dict[str, float]] = []
    for tilt, size in product(tilts, sizes):
        ratios = tilted(space, scores, size=size, tilt=tilt)
        if ratios not in kept:
            kept.append(ratios)
    return kept


def tilted(space: Space, scores: Scores, *, size: float, tilt: float) -> dict[str, float]:
    """One plan of the ladder.

    Heads compete with heads and neuron blocks with neuron blocks: scores of the two are not on one scale.

    Args:
        space: The study's dimensions.
        scores: Importance of all heads and neurons.
        size: Share of heads, and of neuron blocks, that the plan keeps.
        tilt: From 0, the same everywhere, to 1, what the threshold keeps.

    Returns:
        A ratio for each dimension.
    """
    counts = {"heads": _over_threshold(scores.heads, size)}
    counts["neurons"] = _over_threshold(_blocks(scores.neurons, space.neuron_block), size)
    ratios = {}
    for dimension in space.dimensions:
        _, layer, kind = dimension.name.split(".")
        threshold = counts[kind][int(layer)] / dimension.units
        ratios[dimension.name] = dimension.snap((1 - tilt) * size + tilt * threshold)
    return ratios


def kept_mass(space: Space, scores: Scores) -> dict[str, list[float]]:
    """Importance that each dimension keeps with 0, 1, ... units, the most important units first.

    Args:
        space: The study's dimensions.
        scores: Importance of all heads and neurons; what is below 0 counts as 0.

    Returns:
        For each dimension of heads or neurons a list (units + 1,), rising from 0, as a share of all heads' or all
        neurons' importance. Other dimensions, and those of a kind whose units all score 0, are left out.
    """
    by_kind = {"heads": scores.heads, "neurons": _blocks(scores.neurons, space.neuron_block)}
    mass = {}
    for dimension in space.dimensions:
        kind = dimension.name.rpartition(".")[2]
        units = by_kind[kind].clamp(min=0.0) if kind in by_kind else torch.zeros(1)
        if units.sum() > 0:
            layer = int(dimension.name.split(".")[1])
            kept = torch.sort(units[layer], descending=True).values.cumsum(0) / units.sum()
            mass[dimension.name] = [0.0, *(round(share, 6) for share in kept.tolist())]
    return mass


def _over_threshold(scores: Tensor, size: float) -> list[int]:
    """How many units each layer keeps (layers,) if the best-scored of all layers (layers, units) stay."""
    layers, units = scores.shape
    best = torch.sort(scores.flatten(), descending=True, stable=True).indices[: round(size * layers * units)]
    return torch.bincount(best // units, minlength=layers).tolist()


def _blocks(scores: Tensor, block: int) -> Tensor:
    """Mean scores of neuron blocks (layers, blocks): a layer's neurons go in the order of their scores."""
    ordered = torch.sort(scores, dim=1, descending=True, stable=True).values
    return torch.stack([part.mean(dim=1) for part in torch.split(ordered, block, dim=1)], dim=1)
