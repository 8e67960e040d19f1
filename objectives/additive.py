"""What does a model cost by a table: a base, and for each block an entry by how much of it is kept.

    cost = base + Σ over layers ( entry(heads kept) + entry(neurons kept) )

The base is what no head or neuron can save: embeddings, LayerNorms, pooler, classification layer. A block of which
nothing is kept has vanished: its entry is 0. Entries are fitted to the costs of whole models, not timed as single
blocks: a block alone would find its weights in the cache, and that of a whole model does not. A cost that falls where
more is kept is noise, so entries never fall; between two counts that were measured they lie on a straight line.

Reference: Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers", appendix on latency tables.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import kendalltau

Entries = tuple[tuple[int, float], ...]
"""Costs of one block by how many heads or neurons are kept of it, ascending; none kept costs 0 and is left out."""


@dataclass(frozen=True)
class Kept:
    """What a model has, layer by layer.

    Attributes:
        heads: Heads of each layer.
        neurons: Neurons of each layer.
    """

    heads: tuple[int, ...]
    neurons: tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """Costs of blocks, all in one unit.

    Attributes:
        base: What every model costs.
        heads: Entries of an attention block.
        neurons: Entries of a feed-forward block.
    """

    base: float
    heads: Entries
    neurons: Entries

    def cost(self, kept: Kept) -> float:
        """The cost of a model.

        Raises:
            ValueError: If a layer has more heads or neurons than the table's largest entry.

        Example:
            >>> Table(1.0, ((1, 2.0), (3, 6.0)), ((64, 5.0),)).cost(Kept(heads=(2, 0), neurons=(64, 32)))
            12.5
        """
        parts = (("heads", self.heads, kept.heads), ("neurons", self.neurons, kept.neurons))
        return self.base + sum(_entry(name, entries, count) for name, entries, counts in parts for count in counts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"base": self.base, "heads": [list(e) for e in self.heads], "neurons": [list(e) for e in self.neurons]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The table that `to_dict` wrote."""
        heads, neurons = (tuple((int(count), float(cost)) for count, cost in values[k]) for k in ("heads", "neurons"))
        return cls(float(values["base"]), heads, neurons)


@dataclass(frozen=True)
class Agreement:
    """How well a table agrees with direct measurements.

    Attributes:
        models: Models that were compared.
        median: Median of the absolute errors, each as a share of what was measured.
        most: What 95 % of these errors do not exceed.
        tau: Kendall's rank correlation, 1 where the table orders the models as the measurements do; None where all cost
            the same by one of the two.
    """

    models: int
    median: float
    most: float
    tau: float | None

    def __str__(self) -> str:
        order = "" if self.tau is None else f", Kendall's tau {self.tau:.2f}"
        return f"median error {self.median:.1%}, 95 % within {self.most:.1%}{order} on {self.models} random plans"


def fit(models: Sequence[Kept], costs: Sequence[float], *, heads: Sequence[int], neurons: Sequence[int]) -> Table:
    """Find the table that explains the costs of some models best, by least squares of the relative errors.

    Args:
        models: Models, of any number of layers.
        costs: What each of them costs, above 0.
        heads: Numbers of heads that get an entry, ascending, above 0; the last is the largest there is.
        neurons: Numbers of neurons that get an entry, likewise.

    Returns:
        The table. An entry that no model tells apart from the one before is equal to it.

    Raises:
        ValueError: If there is no model, the lengths differ or a cost is not above 0.

    Reference:
        Lawson, Hanson 1974, "Solving Least Squares Problems", chapter 23 (NNLS), as implemented by scipy.
    """
    if not models or len(models) != len(costs) or not min(costs) > 0:
        raise ValueError(f"{len(models)} models with the costs {list(costs)}: as many of both are needed, all above 0")
    rows = np.array([[1.0, *_steps(model.heads, heads), *_steps(model.neurons, neurons)] for model in models])
    weights = 1 / np.asarray(costs, dtype=np.float64)
    rises, _ = nnls(rows * weights[:, None], np.ones(len(costs)))
    first, second = np.cumsum(rises[1 : 1 + len(heads)]), np.cumsum(rises[1 + len(heads) :])
    return Table(float(rises[0]), _entries(heads, first), _entries(neurons, second))


def agreement(by_table: Sequence[float], measured: Sequence[float]) -> Agreement:
    """Compare what a table says of some models with what was measured on them.

    Raises:
        ValueError: If there are fewer than 2 models, or the lengths differ.

    Example:
        >>> agreement([1.0, 2.0, 3.3], [1.0, 2.0, 3.0]).tau
        1.0
    """
    if len(measured) < 2 or len(by_table) != len(measured):
        raise ValueError(f"{len(by_table)} and {len(measured)} figures: at least 2 of each are compared")
    errors = np.abs(np.asarray(by_table) / np.asarray(measured) - 1)
    tau = float(kendalltau(by_table, measured).statistic)
    most = float(np.quantile(errors, 0.95))
    return Agreement(len(measured), float(np.median(errors)), most, tau if math.isfinite(tau) else None)


def _steps(counts: Sequence[int], knots: Sequence[int]) -> NDArray[np.float64]:
    """How many whole rises, from each knot to the next, the blocks of a model have gone up."""
    begin, end = np.array([0, *knots[:-1]]), np.array(knots)
    shares = (np.array(counts)[:, None] - begin) / (end - begin)
    steps: NDArray[np.float64] = np.clip(shares, 0.0, 1.0).sum(axis=0)
    return steps


def _entries(knots: Sequence[int], costs: NDArray[np.float64]) -> Entries:
    return tuple((int(count), float(cost)) for count, cost in zip(knots, costs, strict=True))


def _entry(name: str, entries: Entries, count: int) -> float:
    counts, costs = zip(*((0, 0.0), *entries), strict=True)
    if count > counts[-1]:
        raise ValueError(f"a layer with {count} {name}, and the table's largest entry has {counts[-1]}: make it anew")
    return float(np.interp(count, counts, costs))
