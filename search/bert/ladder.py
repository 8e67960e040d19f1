"""The plans that every search starts from: a ladder of sizes, uniform over the layers and tilted by importance.

    tilt 0   the same ratio in every layer
    tilt 1   the units that one threshold of importance over all layers keeps, as many in all as at tilt 0
    between  their mixture, layer by layer

Importance says that some layers matter more than others; a uniform plan cannot use that, and random ratios crowd around
half of the model. So size and tilt come first, and the search starts from there.

Where the rank of the word embeddings is a dimension, it goes with the size: then the whole model shrinks along the
ladder, total parameters included, and small ones lie within reach of the search. Importance says nothing about it, so
it is never tilted.
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
        share = size
        if dimension.name.startswith("layer."):
            _, layer, kind = dimension.name.split(".")
            threshold = counts[kind][int(layer)] / dimension.units
            share = (1 - tilt) * size + tilt * threshold
        ratios[dimension.name] = dimension.snap(share) if dimension.usual is None else dimension.usual
    return ratios


def _over_threshold(scores: Tensor, size: float) -> list[int]:
    """How many units each layer keeps (layers,) if the best-scored of all layers (layers, units) stay."""
    layers, units = scores.shape
    best = torch.sort(scores.flatten(), descending=True, stable=True).indices[: round(size * layers * units)]
    return torch.bincount(best // units, minlength=layers).tolist()


def _blocks(scores: Tensor, block: int) -> Tensor:
    """Mean scores of neuron blocks (layers, blocks): a layer's neurons go in the order of their scores."""
    ordered = torch.sort(scores, dim=1, descending=True, stable=True).values
    return torch.stack([part.mean(dim=1) for part in torch.split(ordered, block, dim=1)], dim=1)
