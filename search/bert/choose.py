"""Which heads and neurons stay: of each layer the best-scored ones, as many as the plan says."""

import torch
from torch import Tensor

from search.bert.importance import Scores
from search.bert.surgery import Kept
from search.plan import Plan


def choose(plan: Plan, scores: Scores) -> Kept:
    """Take the highest-scored heads and neurons of each layer.

    Equal scores go to the lower index. So the choice is nested: a plan that keeps fewer everywhere keeps a subset.

    Args:
        plan: Heads and neurons to keep, layer by layer.
        scores: Scores of all heads and neurons of the dense model.

    Returns:
        The indices that stay, ascending, and the plan's rank.

    Raises:
        ValueError: If the plan has another number of layers, or keeps more than there is.
    """
    return Kept(
        heads=_best("heads", plan.heads, scores.heads),
        neurons=_best("neurons", plan.neurons, scores.neurons),
        rank=plan.rank,
    )


def ranking(scores: Tensor) -> Tensor:
    """Indices of each layer's units from the highest score to the lowest, equal scores by index.

    Args:
        scores: Scores (layers, units).

    Returns:
        Indices (layers, units), int64: the first n of a row are the n units that `choose` keeps of that layer.

    Example:
        >>> ranking(torch.tensor([[0.5, 2.0, 0.5]])).tolist()
        [[1, 0, 2]]
    """
    return torch.sort(scores, dim=1, descending=True, stable=True).indices


def _best(kind: str, counts: tuple[int, ...], scores: Tensor) -> tuple[tuple[int, ...], ...]:
    """Indices of the `counts[i]` highest values of row i of `scores` (layers, units), ascending."""
    layers, units = scores.shape
    if len(counts) != layers or max(counts) > units:
        raise ValueError(f"the plan keeps {counts} {kind}: the scores are of {layers} layers with {units} each")
    return tuple(tuple(sorted(row[:count])) for row, count in zip(ranking(scores).tolist(), counts, strict=True))
