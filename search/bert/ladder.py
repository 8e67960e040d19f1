"""The plans that every search starts from: a ladder of sizes, uniform over the layers and tilted by importance.

    tilt 0   the same ratio in every layer
    tilt 1   the units that one threshold of importance over all layers keeps, as many in all as at tilt 0
    between  their mixture, layer by layer
    dropped  the least important blocks gone, the same ratio in all others, as many units in all as at tilt 0

Importance says that some layers matter more than others; a uniform plan cannot use that, and random ratios crowd around
half of the model. So size and tilt come first, and the search starts from there.

The classification head reads the first token only, and the last attention block is that token's last look at the
others. In the dense model its heads matter least, because earlier ones have told the token enough; a small model that
has none of them learns nothing in a brief recovery and gives every sentence the same answer, where another of the same
size is far above chance. So plans that follow a size keep a head there, whatever the size, where the space lets them.

Where the rank of the word embeddings is a dimension, it goes with the size: then the whole model shrinks along the
ladder, total parameters included, and small ones lie within reach of the search. Importance says nothing about it, so
it is never tilted.
"""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from search.bert.importance import Scores
from search.errors import UserError
from search.space import Space

BLOCKS = ("heads", "neurons")
"""The last part of a dimension's name, in the order of the scores of a layer's blocks."""


def ladder(
    space: Space,
    scores: Scores,
    *,
    sizes: Sequence[float],
    tilts: Sequence[float],
    drop_blocks: Sequence[int] = (),
) -> list[dict[str, float]]:
    """The plans of a ladder, as ratios on the grid of the space and within its ranges.

    Args:
        space: The study's dimensions.
        scores: Importance of all heads and neurons.
        sizes: Share of heads, and of neuron blocks, that a plan keeps.
        tilts: Tilts from 0 to 1; each size is tried with each of them.
        drop_blocks: Numbers of blocks to drop; each size is tried with each of them.

    Returns:
        One dict of ratios per plan: all sizes at the first tilt, then all at the next; then all with the first number
        of blocks dropped, and so on; none twice.

    Raises:
        UserError: If so many blocks cannot be dropped.
        ValueError: If blocks shall be dropped, and have no scores.
    """
    plans = [tilted(space, scores, size=size, tilt=tilt) for tilt, size in product(tilts, sizes)]
    plans += [dropped(space, scores, size=size, blocks=blocks) for blocks, size in product(drop_blocks, sizes)]
    return [ratios for number, ratios in enumerate(plans) if ratios not in plans[:number]]


def in_order(sizes: Sequence[float], *, from_largest: bool) -> list[float]:
    """The order in which sizes are tried.

    A front is wide early if the smallest size comes first and every further one halves the widest gap: whenever the
    search is stopped, there is something at either end. Where plans are cut from finished trials, each size needs the
    next larger one before it.

    Args:
        sizes: Shares of heads and of neuron blocks, without the dense model's 1, which is there before them.
        from_largest: Whether to go down step by step instead.

    Returns:
        The same sizes, none twice.
    """
    left = sorted(set(sizes), reverse=True)
    if from_largest or not left:
        return left
    tried = [1.0, left.pop()]
    while left:
        farthest = max(reversed(left), key=lambda size: round(min(abs(size - one) for one in tried), 9))
        left.remove(farthest)
        tried.append(farthest)
    return tried[1:]


def tilted(space: Space, scores: Scores, *, size: float, tilt: float) -> dict[str, float]:
    """One plan of the ladder.

    Heads compete with heads and neuron blocks with neuron blocks: scores of the two are not on one scale.

    Args:
        space: The study's dimensions.
        scores: Importance of all heads and neurons.
        size: Share of heads, and of neuron blocks, that the plan keeps.
        tilt: From 0, the same everywhere, to 1, what the threshold keeps.

    Returns:
        A ratio for each dimension; that of the last layer's heads keeps at least one.
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
        if dimension.name == last_heads(space):
            share = max(share, 1 / dimension.units)
        ratios[dimension.name] = dimension.snap(share) if dimension.usual is None else dimension.usual
    return ratios


def dropped(space: Space, scores: Scores, *, size: float, blocks: int) -> dict[str, float]:
    """One plan of the ladder without its least important blocks.

    The blocks that are left keep the share of heads (of neuron blocks) that makes up for those that went, at most all.
    A block is scored with all others in place, so that the score of dropping several is an approximation. The last
    layer's heads stay, as in all plans of the ladder that follow a size.

    Args:
        space: The study's dimensions.
        scores: Importance, of whole blocks too.
        size: Share of heads, and of neuron blocks, that the plan keeps.
        blocks: How many blocks are dropped.

    Returns:
        A ratio for each dimension.

    Raises:
        UserError: If the space lets fewer blocks vanish.
        ValueError: If the blocks have no scores.
    """
    if scores.blocks is None:
        raise ValueError("blocks cannot be dropped by importance: these scores hold none of blocks")
    check_droppable(space, blocks)
    may_go = set(droppable(space))
    ranked = torch.sort(scores.blocks.flatten(), stable=True).indices.tolist()
    names = [f"layer.{place // 2}.{BLOCKS[place % 2]}" for place in ranked]
    gone = [name for name in names if name in may_go][:blocks]
    ratios = space.uniform(size)
    for dimension in space.dimensions:
        kind = dimension.name.rpartition(".")[2]
        left = scores.blocks.shape[0] - sum(name.endswith(kind) for name in gone)
        if dimension.name in gone:
            ratios[dimension.name] = 0.0
        elif kind in BLOCKS:
            share = size * scores.blocks.shape[0] / left
            if dimension.name == last_heads(space):
                share = max(share, 1 / dimension.units)
            ratios[dimension.name] = dimension.snap(share)
    return ratios


def last_heads(space: Space) -> str:
    """Name of the dimension of the last layer's heads."""
    return f"layer.{space.shape.layers - 1}.heads"


def droppable(space: Space) -> list[str]:
    """Names of the dimensions whose block the ladder may drop: which may vanish, and are not the last layer's heads."""
    names = [d.name for d in space.dimensions if d.name.endswith(BLOCKS) and d.fewest == 0]
    return [name for name in names if name != last_heads(space)]


def check_droppable(space: Space, blocks: int) -> None:
    """Refuse to drop more blocks than may vanish.

    Raises:
        UserError: If it is so.
    """
    most = len(droppable(space))
    if blocks > most:
        raise UserError(
            f"engine.drop_blocks is {blocks}; {most} blocks may vanish in this space (those whose ratio may be 0, but "
            "for the last layer's heads); use fewer, or widen space.heads and space.neurons"
        )


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
