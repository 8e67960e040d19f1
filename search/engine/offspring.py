"""New plans near known ones: the size first, the deviations between layers second.

    parents, by size      a ····· b ··········· c          (the front, the ladder among them)
    1. a size             a ··x·· b                        between two neighbours, or beyond the ends
    2. the layers         mixture of a and b, scaled to that size; or each layer from one of the two
    3. a few moves        some units of one layer are given to another, the size about kept

Independent random ratios crowd around half the model, by the central limit, and a crossover of two plans of different
sizes lands between them in every layer: neither adds to a ladder of sizes. A plan near the ladder does.

Every other plan is a rung itself: of the size that was drawn, divided between heads and neurons, and each spread over
the layers as the importance says, by a tilt between none and whole. So the ladder gets finer as long as the search goes
on, and where nothing beats a rung the search is a fine ladder, which is hard to beat.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.space import Space

Plans = NDArray[np.int64]
"""Units kept, (plans, dimensions), in the order of the space's dimensions."""

HEADS, NEURONS, OTHER = range(3)
"""Kinds of dimensions: shares of heads, shares of neuron blocks, and what is no matter of a layer's size."""

RUNGS = 0.5
"""Share of the offspring that are rungs of the ladder."""
BALANCE = 0.4
"""Standard deviation of the logarithm by which a rung's share of heads differs from its size."""
EXTRA_MOVES = 1.5
"""Moves beyond the first, on average."""
REACH = 0.12
"""Typical length of a move, as a share of the dimension's units; it is at least one unit."""


@dataclass(frozen=True)
class Grid:
    """A space as arrays, one entry per dimension.

    Attributes:
        names: Names of the dimensions.
        units: Units that a ratio of 1 keeps.
        fewest: Fewest units allowed.
        most: Most units allowed.
        weights: Parameters of one unit as a share of those of all units; 0 where a dimension is no matter of size.
        kinds: `HEADS`, `NEURONS` or `OTHER`.
    """

    names: tuple[str, ...]
    units: NDArray[np.int64]
    fewest: NDArray[np.int64]
    most: NDArray[np.int64]
    weights: NDArray[np.float64]
    kinds: NDArray[np.int64]

    @classmethod
    def of(cls, space: Space) -> "Grid":
        """Lay a space out."""
        shape = space.shape
        parameters = {
            "heads": 3 * (shape.hidden + 1) * shape.head_size + shape.head_size * shape.hidden,
            "neurons": space.neuron_block * (2 * shape.hidden + 1),
        }
        kinds = [dimension.name.rpartition(".")[2] for dimension in space.dimensions]
        units = np.array([dimension.units for dimension in space.dimensions])
        each = np.array([parameters.get(kind, 0) for kind in kinds], dtype=np.float64)
        return cls(
            names=tuple(dimension.name for dimension in space.dimensions),
            units=units,
            fewest=np.array([dimension.fewest for dimension in space.dimensions]),
            most=np.array([dimension.most for dimension in space.dimensions]),
            weights=each / (each @ units),
            kinds=np.array([list(parameters).index(kind) if kind in parameters else OTHER for kind in kinds]),
        )

    def plans(self, params: Sequence[Mapping[str, float]]) -> Plans:
        """Ratios by name as units (plans, dimensions)."""
        ratios = [[one[name] for name in self.names] for one in params]
        return np.rint(np.array(ratios, dtype=np.float64).reshape(len(params), -1) * self.units).astype(np.int64)

    def params(self, plan: NDArray[np.int64]) -> dict[str, float]:
        """Units as ratios by name."""
        return {name: int(kept) / int(all_) for name, kept, all_ in zip(self.names, plan, self.units, strict=True)}

    def sizes(self, plans: Plans) -> NDArray[np.float64]:
        """Share of all units' parameters that each plan keeps (plans,)."""
        return np.asarray(plans @ self.weights)


def offspring(
    grid: Grid,
    parents: Plans,
    rng: np.random.Generator,
    *,
    mass: Sequence[NDArray[np.float64]],
    rungs: float = RUNGS,
) -> NDArray[np.int64]:
    """Draw one new plan near some known ones.

    Args:
        grid: The space.
        parents: Known plans, at least one (plans, dimensions).
        rng: Where the draw comes from.
        mass: Importance that each dimension keeps with 0, 1, ... units, one array (units + 1,) per dimension
            (`search.engine.response.curves`), for rungs.
        rungs: Probability that the plan is a rung.

    Returns:
        Units kept (dimensions,), within the bounds. It may be a known plan.
    """
    size, below, above = _between(grid, parents, rng)
    if rng.random() < rungs:
        return _rung(grid, mass, size, below if rng.random() < 0.5 else above, rng)
    child = _bred(grid, size, below, above, rng)
    for _ in range(1 + rng.poisson(EXTRA_MOVES)):
        _move(grid, child, rng)
    return child


def varied(grid: Grid, plan: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw a plan a few units away from one, of about its size.

    Args:
        grid: The space.
        plan: Units kept (dimensions,); it is not changed.
        rng: Where the draw comes from.

    Returns:
        Units kept (dimensions,), within the bounds. It may be the plan itself.
    """
    near = plan.copy()
    for _ in range(1 + rng.poisson(EXTRA_MOVES / 2)):
        _move(grid, near, rng)
    if rng.random() < 0.5:
        dimension = rng.integers(len(near))
        stepped = near[dimension] + rng.choice((-1, 1))
        near[dimension] = min(max(stepped, grid.fewest[dimension]), grid.most[dimension])
    return near


def _between(
    grid: Grid, parents: Plans, rng: np.random.Generator
) -> tuple[float, NDArray[np.int64], NDArray[np.int64]]:
    """A size between two neighbours among the parents, or beyond an end; and these two, the smaller first."""
    parents = parents[np.argsort(grid.sizes(parents), kind="stable")]
    smallest, largest = float(grid.fewest @ grid.weights), float(grid.most @ grid.weights)
    sizes = np.clip(grid.sizes(parents), smallest, largest)  # the sum for many plans may differ in its last bit
    edges = np.concatenate([[smallest], sizes, [largest]])
    gap = int(rng.integers(len(edges) - 1))
    size = rng.uniform(edges[gap], edges[gap + 1])
    return size, parents[max(gap - 1, 0)], parents[min(gap, len(parents) - 1)]


def _bred(
    grid: Grid, size: float, below: NDArray[np.int64], above: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """A plan of a size, of two others; not yet moved."""
    scaled = np.stack([_scaled(grid, plan, size) for plan in (below, above)])
    if rng.random() < 0.5:
        share = rng.random()
        mixed = share * scaled[0] + (1 - share) * scaled[1]
    else:
        mixed = scaled[rng.integers(2, size=len(grid.names)), np.arange(len(grid.names))]
    return _rounded(grid, mixed, rng)


def _rung(
    grid: Grid,
    mass: Sequence[NDArray[np.float64]],
    size: float,
    other: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """A plan of the ladder: per kind the same share in every layer, mixed with what one threshold of importance keeps.

    Dimensions that are no matter of size are another plan's, and each of them is moved every other time.
    """
    plan = other.astype(np.float64)
    moves = rng.choice((-1, 1), len(plan)) * np.maximum(1.0, np.abs(rng.normal(0, REACH, len(plan))) * grid.units)
    plan += np.where((grid.kinds == OTHER) & (rng.random(len(plan)) < 0.5), moves, 0.0)
    kinds = [np.flatnonzero(grid.kinds == kind) for kind in (HEADS, NEURONS)]
    heads, neurons = (float(grid.weights[own] @ grid.units[own]) for own in kinds)
    for own, share in zip(kinds, _divided(size, heads, neurons, rng), strict=True):
        if not len(own):
            continue
        tilt, layer = rng.random(), np.repeat(own, grid.units[own])
        gained = np.concatenate([np.diff(mass[int(dimension)]) for dimension in own])
        best = np.argsort(-gained, kind="stable")[: round(share * len(layer))]
        kept = np.bincount(layer[best], minlength=len(grid.names))[own]
        plan[own] = (1 - tilt) * share * grid.units[own] + tilt * kept
    rung = _rounded(grid, plan, rng)
    last = np.flatnonzero(grid.kinds == HEADS)[-1:]
    rung[last] = np.maximum(rung[last], np.minimum(1, grid.most[last]))
    return rung


def _divided(size: float, heads: float, neurons: float, rng: np.random.Generator) -> tuple[float, float]:
    """Shares of heads and of neurons that come to a size, where all of them are such shares of the whole."""
    if not heads or not neurons:
        return size, size
    wanted = size * np.exp(rng.normal(0, BALANCE))
    share = float(np.clip(wanted, max(0.0, (size - neurons) / heads), min(1.0, size / heads)))
    return share, min(max((size - share * heads) / neurons, 0.0), 1.0)


def _rounded(grid: Grid, plan: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Whole units, within the bounds; which way a fraction goes is chance, so that sizes are kept on average."""
    rounded = np.floor(plan + rng.random(len(grid.names))).astype(np.int64)
    return np.asarray(np.clip(rounded, grid.fewest, grid.most))


def _scaled(grid: Grid, plan: NDArray[np.int64], size: float) -> NDArray[np.float64]:
    """A plan brought to a size: shrunk towards nothing, or grown towards everything; other dimensions as they are."""
    now = float(plan @ grid.weights)
    if size <= now:
        grown = plan * (size / now) if now > 0 else plan * 1.0
    else:
        grown = plan + (grid.units - plan) * ((size - now) / (1 - now))
    return np.where(grid.kinds == OTHER, plan, grown)


def _move(grid: Grid, plan: NDArray[np.int64], rng: np.random.Generator) -> None:
    """Give some units of one dimension to another of about the same cost, in place; or step another dimension."""
    gives, takes = np.flatnonzero(plan > grid.fewest), np.flatnonzero(plan < grid.most)
    if not len(gives) or not len(takes):
        return
    giver, taker = rng.choice(gives), rng.choice(takes)
    amount = max(1.0, abs(rng.normal(0, REACH)) * grid.units[giver])
    sized = grid.weights[giver] > 0 and grid.weights[taker] > 0
    taken = amount * grid.weights[giver] / grid.weights[taker] if sized else amount
    for dimension, step in ((giver, -amount), (taker, taken)):
        if sized or grid.weights[dimension] == 0:
            kept = plan[dimension] + int(np.floor(step + rng.random()))
            plan[dimension] = min(max(kept, grid.fewest[dimension]), grid.most[dimension])
