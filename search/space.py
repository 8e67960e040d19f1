"""The named dimensions of a study, and the way from ratios to a plan and back.

    parameters in the study database          plan                    cut model
    layer.3.heads   = 0.5    ──► 6 of 12 heads ──────────► query, key, value 768 × 384
    layer.3.neurons = 0.25   ──► 768 of 3072 neurons ────► feed-forward 768 × 768

Every ratio lies on the grid of whole heads or whole neuron blocks, so that different parameters are different plans.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from search.definition import Range, SpaceSettings
from search.errors import UserError
from search.plan import Plan, Shape


@dataclass(frozen=True)
class Dimension:
    """One ratio that the search chooses.

    Attributes:
        name: `layer.3.heads` or `layer.3.neurons`.
        low: Smallest ratio on the grid.
        high: Largest ratio on the grid.
        units: Number of units (heads, or neuron blocks) that a ratio of 1 keeps.
    """

    name: str
    low: float
    high: float
    units: int

    def snap(self, ratio: float) -> float:
        """The ratio of this dimension's grid that is nearest to a ratio, within the bounds."""
        return min(max(round(ratio * self.units), self.fewest), self.most) / self.units

    @property
    def fewest(self) -> int:
        """Fewest units that may be kept."""
        return round(self.low * self.units)

    @property
    def most(self) -> int:
        """Most units that may be kept."""
        return round(self.high * self.units)

    @property
    def choices(self) -> int:
        """How many ratios there are to choose from."""
        return self.most - self.fewest + 1


@dataclass(frozen=True)
class Space:
    """All dimensions of a study, two for each layer.

    Attributes:
        shape: Sizes of the dense model.
        neuron_block: Neurons per block.
        dimensions: Heads and neurons of layer 0, of layer 1, and so on.
    """

    shape: Shape
    neuron_block: int
    dimensions: tuple[Dimension, ...]

    @classmethod
    def of(cls, settings: SpaceSettings, shape: Shape) -> "Space":
        """Lay the definition's ranges over a model.

        Args:
            settings: Ranges and block size.
            shape: Sizes of the dense model.

        Returns:
            The space. The last neuron block is smaller where the block size does not divide the neurons.

        Raises:
            UserError: If a layer does not exist, a block is larger than a layer, or a range holds no point of the grid.
        """
        for layer in settings.layers:
            if not 0 <= layer < shape.layers:
                raise UserError(
                    f"space.layers names layer {layer}; the model has the layers 0 to {shape.layers - 1}; "
                    "use one of these"
                )
        if settings.neuron_block > shape.neurons:
            raise UserError(
                f"space.neuron_block is {settings.neuron_block}; a layer has {shape.neurons} neurons; "
                "use a smaller block"
            )
        blocks = math.ceil(shape.neurons / settings.neuron_block)
        dimensions = []
        for layer in range(shape.layers):
            own = settings.layers.get(layer)
            heads = own.heads if own and own.heads else settings.heads
            neurons = own.neurons if own and own.neurons else settings.neurons
            dimensions.append(_dimension(f"layer.{layer}.heads", heads, shape.heads))
            dimensions.append(_dimension(f"layer.{layer}.neurons", neurons, blocks))
        return cls(shape=shape, neuron_block=settings.neuron_block, dimensions=tuple(dimensions))

    def plan(self, ratios: Mapping[str, float]) -> Plan:
        """The plan that the ratios mean.

        Args:
            ratios: One ratio for each dimension, by name.

        Returns:
            Heads and neurons kept, layer by layer.

        Raises:
            KeyError: If a dimension has no ratio.
        """
        units = [round(d.snap(ratios[d.name]) * d.units) for d in self.dimensions]
        return Plan(
            heads=tuple(units[0::2]),
            neurons=tuple(min(blocks * self.neuron_block, self.shape.neurons) for blocks in units[1::2]),
        )

    def uniform(self, ratio: float) -> dict[str, float]:
        """The same ratio in every dimension, snapped to each grid and bounds."""
        return {d.name: d.snap(ratio) for d in self.dimensions}

    def log10_size(self) -> float:
        """Number of plans, as a power of ten."""
        return sum(math.log10(d.choices) for d in self.dimensions)


def _dimension(name: str, bounds: Range, units: int) -> Dimension:
    fewest, most = math.ceil(bounds.low * units - 1e-9), math.floor(bounds.high * units + 1e-9)
    if fewest > most:
        raise UserError(
            f"{name} may keep {bounds.low} to {bounds.high}, which holds no multiple of 1/{units}; widen the range"
        )
    return Dimension(name=name, low=fewest / units, high=most / units, units=units)
