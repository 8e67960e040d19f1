"""The named dimensions of a study, and the way from ratios to a plan and back.

    parameters in the study database          plan                    cut model
    layer.3.heads   = 0.5    ──► 6 of 12 heads ──────────► query, key, value 768 × 384
    layer.3.neurons = 0.25   ──► 768 of 3072 neurons ────► feed-forward 768 × 768
    embedding.rank  = 0.25   ──► rank 192 of 768 ────────► word embeddings 30522 × 192 times 192 × 768
    schedule.steps  = 0.5    ──► half-way between the fewest and the most steps of the recovery
    precision       = 1      ──► deployed in the last of the number types that the space names

Every ratio lies on the grid of whole heads, neuron blocks or blocks of the rank, so that different parameters are
different plans. The exception: all ranks that would save no parameters mean the embeddings as they are. The schedule's
ratios lie on a grid of nine, and say where between the ends of its range a value lies.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from search.definition import Range, RateRange, RecoverySettings, SpaceSettings, StepRange
from search.errors import UserError
from search.plan import Plan, Shape, word_parameters

RANK = "embedding.rank"
"""Name of the dimension of the word embeddings; only there where a definition asks for it."""

SCHEDULE = "schedule."
"""What the names of the schedule's dimensions begin with; only there where a definition asks for them."""

PRECISION = "precision"
"""Name of the dimension of the number type; only there where a definition names several."""

SCHEDULE_UNITS = 8
"""A schedule's range is divided into so many steps."""


@dataclass(frozen=True)
class Dimension:
    """One ratio that the search chooses.

    Attributes:
        name: `layer.3.heads`, `layer.3.neurons`, `embedding.rank`, `schedule.learning_rate` or `precision`.
        low: Smallest ratio on the grid.
        high: Largest ratio on the grid.
        units: Number of units (heads, neuron blocks, or blocks of the rank) that a ratio of 1 keeps.
        usual: The ratio that plans have which nobody chose it for; None where that follows their size.
    """

    name: str
    low: float
    high: float
    units: int
    usual: float | None = None

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
    """All dimensions of a study: two for each layer, the rank of the word embeddings and the schedule where they vary.

    Attributes:
        shape: Sizes of the dense model.
        neuron_block: Neurons per block.
        dimensions: Heads and neurons of layer 0, of layer 1, and so on; then the rank; the schedule; the precision.
        embedding_block: The rank is a multiple of this.
        ranges: What the schedule's ratios lie between, by the recovery's field.
        precisions: Number types that models are deployed in; the first is the usual one.
    """

    shape: Shape
    neuron_block: int
    dimensions: tuple[Dimension, ...]
    embedding_block: int = 32
    ranges: Mapping[str, RateRange | StepRange | Range] = field(default_factory=dict)
    precisions: tuple[str, ...] = ("fp32",)

    @classmethod
    def of(cls, settings: SpaceSettings, shape: Shape, recovery: RecoverySettings | None = None) -> "Space":
        """Lay the definition's ranges over a model.

        Args:
            settings: Ranges and block size.
            shape: Sizes of the dense model.
            recovery: The usual schedule, which the ladder is recovered with; None takes the default one.

        Returns:
            The space. The last neuron block is smaller where the block size does not divide the neurons.

        Raises:
            UserError: If a layer does not exist, a block is larger than what it divides, or a range holds no point of
                the grid.
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
        if settings.factorises:
            dimensions.append(_rank_dimension(settings, shape))
        ranges = settings.schedule.chosen
        for name, range_ in ranges.items():
            usual = _place(range_, getattr(recovery or RecoverySettings(), name))
            units = SCHEDULE_UNITS if range_.low < range_.high else 1
            snapped = Dimension(f"{SCHEDULE}{name}", 0.0, 1.0 if units > 1 else 0.0, units)
            dimensions.append(replace(snapped, usual=snapped.snap(usual)))
        precisions = settings.precision
        if len(precisions) > 1:
            dimensions.append(Dimension(PRECISION, 0.0, 1.0, len(precisions) - 1, usual=0.0))
        return cls(shape, settings.neuron_block, tuple(dimensions), settings.embedding_block, ranges, precisions)

    def plan(self, ratios: Mapping[str, float]) -> Plan:
        """The plan that the ratios mean.

        Args:
            ratios: One ratio for each dimension, by name.

        Returns:
            Heads and neurons kept, layer by layer, and the rank of the word embeddings: None where it is not a
            dimension, or would save no parameters.

        Raises:
            KeyError: If a dimension has no ratio.
        """
        units = {d.name: round(d.snap(ratios[d.name]) * d.units) for d in self.dimensions}
        blocks = [units[f"layer.{layer}.neurons"] for layer in range(self.shape.layers)]
        return Plan(
            heads=tuple(units[f"layer.{layer}.heads"] for layer in range(self.shape.layers)),
            neurons=tuple(min(count * self.neuron_block, self.shape.neurons) for count in blocks),
            rank=self._rank(units[RANK]) if RANK in units else None,
        )

    def _rank(self, blocks: int) -> int | None:
        rank = min(blocks * self.embedding_block, self.shape.embedding_width)
        return rank if word_parameters(rank, self.shape) < word_parameters(None, self.shape) else None

    def schedule(self, ratios: Mapping[str, float]) -> dict[str, float | int]:
        """The schedule that the ratios mean: values of the recovery's fields, those that are dimensions.

        Args:
            ratios: One ratio for each dimension, by name.

        Raises:
            KeyError: If a dimension has no ratio.
        """
        return {name: _value(range_, ratios[f"{SCHEDULE}{name}"]) for name, range_ in self.ranges.items()}

    def precision(self, ratios: Mapping[str, float]) -> str:
        """The number type that the ratios mean.

        Args:
            ratios: One ratio for each dimension, by name.

        Raises:
            KeyError: If it is a dimension and has no ratio.
        """
        last = len(self.precisions) - 1
        return self.precisions[round(ratios[PRECISION] * last)] if last else self.precisions[0]

    def uniform(self, ratio: float) -> dict[str, float]:
        """The same ratio in every dimension, snapped to each grid and bounds; the schedule is the usual one."""
        return {d.name: d.snap(ratio) if d.usual is None else d.usual for d in self.dimensions}

    def log10_size(self) -> float:
        """Number of plans, as a power of ten."""
        return sum(math.log10(d.choices) for d in self.dimensions)


def _value(range_: RateRange | StepRange | Range, ratio: float) -> float | int:
    """What lies at a ratio of the way between the ends of a range."""
    low, high = range_.low, range_.high
    if isinstance(range_, RateRange):
        return float(f"{low * (high / low) ** ratio:.6g}")
    value = low + (high - low) * ratio
    return round(value) if isinstance(range_, StepRange) else round(value, 9)


def _place(range_: RateRange | StepRange | Range, value: float) -> float:
    """Where between the ends of a range a value lies, from 0 to 1."""
    low, high = range_.low, range_.high
    if low == high:
        return 0.0
    logarithmic = isinstance(range_, RateRange)
    place = math.log(value / low) / math.log(high / low) if logarithmic else (value - low) / (high - low)
    return min(max(place, 0.0), 1.0)


def _rank_dimension(settings: SpaceSettings, shape: Shape) -> Dimension:
    if settings.embedding_block > shape.embedding_width:
        raise UserError(
            f"space.embedding_block is {settings.embedding_block}; the embeddings are {shape.embedding_width} wide; "
            "use a smaller block"
        )
    if word_parameters(settings.embedding_block, shape) >= word_parameters(None, shape):
        raise UserError(
            f"space.embedding_block is {settings.embedding_block}; embeddings of that rank or more save no "
            "parameters of this model; use a smaller block"
        )
    units = math.ceil(shape.embedding_width / settings.embedding_block)
    low = max(settings.embedding.low, 1 / units)  # embeddings of rank 0 would say nothing
    return _dimension(RANK, settings.embedding.model_copy(update={"low": low}), units)


def _dimension(name: str, bounds: Range, units: int) -> Dimension:
    fewest, most = math.ceil(bounds.low * units - 1e-9), math.floor(bounds.high * units + 1e-9)
    if fewest > most:
        raise UserError(
            f"{name} may keep {bounds.low} to {bounds.high}, which holds no multiple of 1/{units}; widen the range"
        )
    return Dimension(name=name, low=fewest / units, high=most / units, units=units)
