"""What a study's trials tell about plans that have not been tried: a prediction and how sure it is.

A quality (maximised) is modelled by a Gaussian process over the importance mass that a plan keeps:

    y = f(mass of heads, mass of neurons, other dimensions, recoveries) + Σ over dimensions of w_i · mass kept + noise
        └ smooth, Matérn 3/2 kernel ┘                                     └ layers that matter more, or less, than the
                                                                            importance says ┘

Where plans are cut from recovered models, how often weights have been recovered tells nearly as much as their number.

Below some size a model gives every sentence the same answer and scores what that scores, however little is kept. Such a
score says only that the smooth quality lies no higher; how far below, the other trials tell. Taken at its word it would
bend the model to a cliff that it cannot follow, and promise something everywhere along the cliff's foot.

Scores on a thousand sentences differ by a point from chance alone: the model smooths that, and the front of its
predictions is not the front of the luckiest trials. A cost (minimised) is linear in heads, neurons and blocks.

Reference:
    Rasmussen, Williams 2006, "Gaussian Processes for Machine Learning", equations 2.25, 2.26, 2.30, 4.17 and 5.12.
    Tobin 1958, "Estimation of Relationships for Limited Dependent Variables" (values that are known as a bound only).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize
from scipy.special import log_ndtr

from search.engine.offspring import HEADS, NEURONS, OTHER, Grid, Plans

Values = NDArray[np.float64]

FITTED = 120
"""Most trials that the kernel's parameters are fitted on; the prediction uses all."""
SWEEPS = 10
"""How often each value that only bounds the quality is put where the others expect it."""
PRIOR_MEAN = np.array([1.0, 0.5, 2.3, -3.0])
"""Log of: variance and length of the smooth part, variance of the layers' part, variance of the noise; standardised."""
PRIOR_SPREAD = np.array([1.5, 1.0, 1.5, 1.5])


class Response(Protocol):
    """A model of one quantity over plans."""

    def predict(self, plans: Plans) -> tuple[Values, Values]:
        """Mean and standard deviation (plans,) of the quantity itself, without the noise of measuring it."""
        ...


def curves(grid: Grid, mass: Mapping[str, Sequence[float]]) -> list[Values]:
    """Importance mass that each dimension keeps with 0, 1, ... units, as a share of all of its kind.

    Args:
        grid: The space.
        mass: These shares by dimension. A dimension without them, as in a study that stores none, counts like any other
            layer, its first units twice as much as its last.

    Returns:
        One array (units + 1,) per dimension.
    """
    found = []
    for name, units, kind in zip(grid.names, grid.units, grid.kinds, strict=True):
        ratio = np.arange(units + 1) / units
        plain = (4 * ratio - ratio**2) / 3 / max(1, int((grid.kinds == kind).sum()))
        found.append(np.asarray(mass[name], dtype=np.float64) if len(mass.get(name, ())) == units + 1 else plain)
    return found


class Quality:
    """A Gaussian process over kept importance mass.

    Args:
        grid: The space.
        mass: What `curves` returned for it.
        recoveries: How often the weights of plans (plans, dimensions) have been recovered (plans,); None where every
            trial begins with the study's model.
    """

    def __init__(self, grid: Grid, mass: Sequence[Values], recoveries: Callable[[Plans], Values] | None = None) -> None:
        self._grid = grid
        self._mass = mass
        self._recoveries = recoveries

    def fit(self, plans: Plans, values: Values, at_most: NDArray[np.bool_] | None = None) -> Self:
        """Fit to what is known of some plans.

        Args:
            plans: At least two.
            values: Their values (plans,).
            at_most: Which of these (plans,) only bound the quality from above; by default none does.
        """
        self._middle, self._scale = float(values.mean()), float(values.std()) or 1.0
        self._smooth, layers = self._features(plans)
        self._offset = layers.mean(axis=0)
        self._layers = layers - self._offset
        target = (values - self._middle) / self._scale
        self._condition(target)
        if at_most is not None and at_most.any():
            self._condition(self._lowered(target, at_most))
            target = self._lowered(target, at_most)
        self._weights = cho_solve((self._factor, True), target)
        return self

    def _condition(self, target: Values) -> None:
        """Fit the kernel's parameters to standardised values, and factor their covariance, noise included."""
        self._log = _fitted(self._smooth, self._layers, target)
        noise = np.exp(self._log[3]) * np.eye(len(target))
        self._factor = np.linalg.cholesky(self._kernel(self._smooth, self._layers) + noise)

    def _lowered(self, target: Values, at_most: NDArray[np.bool_]) -> Values:
        """Put each bound's value where all others expect it, given that it is not above the bound."""
        inverse = cho_solve((self._factor, True), np.eye(len(target)))
        believed = target.copy()
        for number in np.tile(np.flatnonzero(at_most), SWEEPS):
            spread = 1 / np.sqrt(inverse[number, number])
            mean = believed[number] - float(inverse[number] @ believed) * spread**2
            z = (target[number] - mean) / spread
            believed[number] = mean - spread * np.exp(-(z**2) / 2 - log_ndtr(z)) / np.sqrt(2 * np.pi)
        return believed

    def predict(self, plans: Plans) -> tuple[Values, Values]:
        """Mean and standard deviation (plans,) of the quality that no noise touches."""
        smooth, layers = self._features(plans)
        layers = layers - self._offset
        shared = self._kernel(smooth, layers)
        explained = solve_triangular(self._factor, shared.T, lower=True)
        own = np.exp(self._log[0]) + np.exp(self._log[2]) * (layers**2).sum(axis=1)
        variance = np.maximum(own - (explained**2).sum(axis=0), 1e-10)
        return self._middle + self._scale * (shared @ self._weights), self._scale * np.sqrt(variance)

    def _features(self, plans: Plans) -> tuple[Values, Values]:
        """For the smooth part (plans, 4 or 5 + other dimensions), and for the layers' part (plans, dimensions)."""
        kept = np.stack([curve[units] for curve, units in zip(self._mass, plans.T, strict=True)], axis=1)
        heads, neurons, other = (self._grid.kinds == kind for kind in (HEADS, NEURONS, OTHER))
        sums = np.stack([kept[:, heads].sum(axis=1), kept[:, neurons].sum(axis=1)], axis=1)
        ratios = (plans / self._grid.units)[:, other]
        trained = np.empty((len(plans), 0))
        if self._recoveries is not None:
            trained = np.log1p(self._recoveries(plans))[:, None] / 3
        return np.concatenate([sums, np.log(sums + 0.05) / 3, ratios, trained], axis=1), kept

    def _kernel(self, smooth: Values, layers: Values) -> Values:
        """Covariance of some plans with those that the model was fitted to."""
        return _kernel(_distances(smooth, self._smooth), layers @ self._layers.T, self._log)


class Cost:
    """A ridge regression on heads, neurons, blocks that are there, and other dimensions.

    Args:
        grid: The space.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def fit(self, plans: Plans, values: Values) -> Self:
        """Fit to the values (plans,) of at least one plan."""
        features = self._features(plans)
        self._middle, self._offset = float(values.mean()), features.mean(axis=0)
        centred = features - self._offset
        gram = centred.T @ centred + 1e-4 * np.eye(features.shape[1])
        self._slopes = np.linalg.solve(gram, centred.T @ (values - self._middle))
        return self

    def predict(self, plans: Plans) -> tuple[Values, Values]:
        """Mean (plans,); the standard deviation is 0: next to that of a quality it does not matter."""
        mean = self._middle + (self._features(plans) - self._offset) @ self._slopes
        return mean, np.zeros(len(plans))

    def _features(self, plans: Plans) -> Values:
        parts = []
        for kind in (HEADS, NEURONS):
            own = self._grid.kinds == kind
            whole = max(1, int(self._grid.units[own].sum()))
            parts += [plans[:, own].sum(axis=1) / whole, (plans[:, own] > 0).mean(axis=1) if own.any() else own.sum()]
        other = self._grid.kinds == OTHER
        columns = [np.broadcast_to(part, len(plans)) for part in parts]
        return np.concatenate([np.stack(columns, axis=1), (plans / self._grid.units)[:, other]], axis=1)


def _distances(left: Values, right: Values) -> Values:
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None] - 2 * left @ right.T
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)))


def _kernel(distances: Values, products: Values, log: Values) -> Values:
    """Matérn 3/2 over the distances, and the linear kernel of the layers' part."""
    scaled = np.sqrt(3.0) * distances / np.exp(log[1])
    return np.asarray(np.exp(log[0]) * (1 + scaled) * np.exp(-scaled) + np.exp(log[2]) * products)


def _fitted(smooth: Values, layers: Values, target: Values) -> Values:
    """The kernel's parameters, as logs, at the maximum of their posterior."""
    chosen = np.unique(np.linspace(0, len(target) - 1, FITTED).astype(int))
    distances, products = _distances(smooth[chosen], smooth[chosen]), layers[chosen] @ layers[chosen].T
    seen, identity = target[chosen], np.eye(len(chosen))

    def loss(log: Values) -> float:
        factor = np.linalg.cholesky(_kernel(distances, products, log) + (np.exp(log[3]) + 1e-8) * identity)
        misfit = float(seen @ cho_solve((factor, True), seen)) / 2 + float(np.log(np.diag(factor)).sum())
        return misfit + float((((log - PRIOR_MEAN) / PRIOR_SPREAD) ** 2).sum()) / 2

    bounds = [(mean - 3 * spread, mean + 3 * spread) for mean, spread in zip(PRIOR_MEAN, PRIOR_SPREAD, strict=True)]
    return np.asarray(minimize(loss, PRIOR_MEAN, method="L-BFGS-B", bounds=bounds, options={"maxiter": 20}).x)
