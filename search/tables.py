"""The additive table of a study among its artifacts: what models cost by the heads and neurons that they keep.

    plans whose layers are all alike ──► cut, measured in random order ──► fitted ──► table.json
    random plans ─────────────────────► cut, measured among them ───────► compared with what the table says

Made once per device and study, where the study asks for it; from then on the table answers instead of clock or counter.
Latencies are kept as shares of the dense model's: the study's database knows what that took when the study began.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from objectives import Measurement, Objective, Subject
from objectives.additive import Agreement, Kept, Table, agreement, fit
from objectives.latency import Latency
from objectives.tabled import Tabled
from search.artifacts import Artifacts, OnWait
from search.bert.choose import choose
from search.bert.importance import Scores
from search.bert.surgery import cut
from search.costs import noted
from search.definition import LATENCY, Definition
from search.errors import UserError
from search.keys import TABLE
from search.plan import Plan, Shape
from search.space import Space

FILE = "table.json"

ENERGY = "energy_mj"

ROUNDS = 3
"""How often each entry is measured, each time beside another one of the other kind."""

SPREAD = 0.25
"""How far the ratios of a random plan lie from its size, at most."""

PER_TRIAL = ("clock_mhz",)
"""Conditions that are those of a moment."""


@dataclass(frozen=True)
class Answer:
    """What a table says of one quantity.

    Attributes:
        table: Costs of blocks.
        unit: Unit of the quantity.
        relative: Whether the costs are shares of the dense model's latency.
        source: Source of the figures that it was fitted to.
        conditions: What these depend on.
        agreement: How well it agrees with direct measurements; None where that was not looked at.
    """

    table: Table
    unit: str
    relative: bool
    source: str
    conditions: dict[str, Any]
    agreement: Agreement | None

    def objective(self, name: str, reference_ms: Mapping[str, float]) -> Tabled:
        """The quantity as a trial takes it.

        Args:
            name: Its name.
            reference_ms: Latencies of the dense model when the study was created, by quantity.
        """
        factor = reference_ms[name] if self.relative else 1.0
        return Tabled(name, self.unit, self.table, self.source, factor, self.agreement, self.conditions)


def asked_for(definition: Definition, energy_source: str) -> tuple[str, ...]:
    """Names of the quantities that a study takes from a table; modelled energy is exact, and needs none."""
    latencies = {LATENCY: definition.latency, **definition.named_latencies}
    names = [name for name, settings in latencies.items() if settings.source == "table"]
    return (*names, ENERGY) if definition.energy.table and energy_source != "model" else tuple(names)


def key(definition: Definition, shape: Shape, *, energy_source: str, machine: str) -> dict[str, Any]:
    """Everything that determines a study's table, as far as a clock can be determined.

    Args:
        definition: The study's definition.
        shape: Sizes of the dense model.
        energy_source: The source that energy is measured with.
        machine: Device and threads.
    """
    dump = definition.model_dump(mode="json")
    return {
        "study": definition.name,
        "machine": machine,
        "shape": asdict(shape),
        "quantities": list(asked_for(definition, energy_source)),
        "latencies": {LATENCY: dump["latency"], **dump["latencies"]},
        "energy": {**dump["energy"], "source": energy_source},
        "table": dump["measuring"]["table"],
        "space": dump["space"],
        "seed": definition.engine.seed,
    }


def made(
    definition: Definition,
    artifacts: Artifacts,
    teacher: PreTrainedModel,
    scores: Scores,
    space: Space,
    objectives: Mapping[str, Objective],
    determined: Mapping[str, Any],
    *,
    on_step: Callable[[str, int, int], None],
    on_wait: OnWait,
) -> dict[str, Answer]:
    """The table, measured now if it was not before.

    Args:
        definition: The study's definition.
        artifacts: Where it is kept.
        teacher: The dense model; left as it is.
        scores: Importance of its heads and neurons, which has no influence on the cost.
        space: The study's dimensions.
        objectives: What measures each of the quantities directly; latencies have the dense model as their reference.
        determined: The table's `key`.
        on_step: Told the name of the stage, the plans measured and the plans in all.
        on_wait: Told while another process makes it.

    Returns:
        What it says, by quantity.

    Raises:
        MeasurementUnavailable: If something cannot be measured.
        UserError: If it cannot be kept.
    """
    settings, seed = definition.measuring.table, definition.engine.seed
    names = determined["quantities"]

    def make(folder: Path) -> None:
        heads, neurons = knots(space, settings.entries)
        plans = [*design(space.shape.layers, heads, neurons), *random_plans(space, settings.plans, seed=seed)]
        order = list(range(len(plans)))
        random.Random(seed).shuffle(order)  # what drifts shall not look like size
        found: dict[str, dict[int, Measurement]] = {name: {} for name in names}
        for done, number in enumerate(order):
            on_step(TABLE, done, len(order))
            subject = Subject(cut(teacher, choose(plans[number], scores)))
            for name in names:
                found[name][number] = objectives[name].measure(subject)
        checked = settings.plans
        content = {
            name: _fitted(
                objectives[name], plans, [found[name][at] for at in range(len(plans))], checked, heads, neurons
            )
            for name in names
        }
        (folder / FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")

    return read(artifacts.made(TABLE, dict(determined), noted(make, artifacts.counter), on_wait=on_wait))


def found(artifacts: Artifacts, digest_: str) -> dict[str, Answer]:
    """The table that a study has been measured by.

    Raises:
        UserError: If it is not among the artifacts: another one would not be the same.
    """
    folder = artifacts.found(TABLE, digest_)
    if folder is None:
        raise UserError(
            f"the study takes measurements from the table {TABLE}-{digest_[:20]}, which is not in "
            f"'{artifacts.folder}'; name with --artifacts where the study was prepared, or choose another name "
            "(--name): a table made anew would not be the same"
        )
    return read(folder)


def read(folder: Path) -> dict[str, Answer]:
    """What the table in an artifact's folder says, by quantity."""
    content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return {
        name: Answer(
            table=Table.from_dict(entry["table"]),
            unit=entry["unit"],
            relative=entry["relative"],
            source=entry["source"],
            conditions=entry["conditions"],
            agreement=Agreement(**entry["agreement"]) if entry["agreement"] else None,
        )
        for name, entry in content.items()
    }


def knots(space: Space, entries: int | None) -> tuple[list[int], list[int]]:
    """Numbers of heads and of neurons that get an entry, evenly spaced from one unit to all.

    Args:
        space: The study's dimensions.
        entries: How many of each; None takes every number of heads and of neuron blocks.

    Example:
        >>> from search.definition import SpaceSettings
        >>> bert_base = Shape(12, 12, 64, 768, 3072, 30522, 512, 2, 2)
        >>> knots(Space.of(SpaceSettings(), bert_base), 4)
        ([1, 5, 8, 12], [64, 1088, 2048, 3072])
    """
    shape, block = space.shape, space.neuron_block
    blocks = _spaced(-(-shape.neurons // block), entries)
    return _spaced(shape.heads, entries), [min(count * block, shape.neurons) for count in blocks]


def design(layers: int, heads: Sequence[int], neurons: Sequence[int]) -> list[Plan]:
    """Plans whose layers are all alike, so that an entry counts once per layer, beside several of the other kind.

    Args:
        layers: Layers of the model.
        heads: Numbers of heads that get an entry.
        neurons: Numbers of neurons that get an entry.

    Returns:
        The dense plan, the empty one, those without heads and without neurons, and `ROUNDS` rounds through all entries;
        each plan once.
    """
    most = max(len(heads), len(neurons))
    pairs = [(heads[-1], neurons[-1]), (0, 0), (heads[-1], 0), (0, neurons[-1])]
    for round_ in range(ROUNDS):
        shift = round_ * len(neurons) // ROUNDS
        for at in range(most):
            mine = round(at * (len(heads) - 1) / (most - 1)) if most > 1 else 0
            other = round(at * (len(neurons) - 1) / (most - 1)) if most > 1 else 0
            pairs.append((heads[mine], neurons[(other + shift) % len(neurons)]))
    return [Plan((head,) * layers, (neuron,) * layers) for head, neuron in dict.fromkeys(pairs)]


def random_plans(space: Space, count: int, *, seed: int) -> list[Plan]:
    """Plans as a search proposes them: a size first, then how each block deviates from it.

    Independent ratios would all give about half the size, and an order among like sizes is one of noise.

    Args:
        space: The study's dimensions.
        count: How many.
        seed: Seed of the draws.
    """
    dice = random.Random(seed)
    plans = []
    for _ in range(count):
        size = dice.random()
        drawn = {d.name: d.snap(min(max(size + dice.uniform(-SPREAD, SPREAD), 0.0), 1.0)) for d in space.dimensions}
        plans.append(space.plan(drawn))
    return plans


def _fitted(
    objective: Objective,
    plans: Sequence[Plan],
    measured: Sequence[Measurement],
    checked: int,
    heads: Sequence[int],
    neurons: Sequence[int],
) -> dict[str, Any]:
    """A table as it is kept: fitted to all but the last `checked` plans, and compared with these."""
    relative = isinstance(objective, Latency)
    kept = [Kept(plan.heads, plan.neurons) for plan in plans]
    costs = [one.details["ratio"] if relative else one.value for one in measured]
    fitted_to = len(plans) - checked
    table = fit(kept[:fitted_to], costs[:fitted_to], heads=heads, neurons=neurons)
    said = [table.cost(one) for one in kept]
    compared = agreement(said[fitted_to:], costs[fitted_to:]) if checked > 1 else None
    return {
        "table": table.to_dict(),
        "unit": objective.unit,
        "relative": relative,
        "source": measured[0].source,
        "conditions": {name: value for name, value in measured[0].conditions.items() if name not in PER_TRIAL},
        "agreement": None if compared is None else asdict(compared),
        "plans": [
            {"plan": str(plan), "measured": cost, "table": by_table, "role": "fitted" if at < fitted_to else "checked"}
            for at, (plan, cost, by_table) in enumerate(zip(plans, costs, said, strict=True))
        ],
    }


def _spaced(units: int, entries: int | None) -> list[int]:
    if entries is None or entries >= units:
        return list(range(1, units + 1))
    return [round(1 + (units - 1) * number / (entries - 1)) for number in range(entries)]
