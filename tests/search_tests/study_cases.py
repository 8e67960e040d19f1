"""Studies of any size as plain records, for what only reads them: a formula with noise stands for the measuring."""

import random

from search.definition import Definition
from search.plan import Plan, Shape, encoder_parameters, total_parameters
from search.records import ObjectiveInfo, Record, StudyRecord
from search.space import Space

SHAPE = Shape(
    layers=6, heads=12, head_size=32, hidden=384, neurons=1536, vocabulary=30522, positions=512, token_types=2, labels=2
)
OBJECTIVES = (
    ObjectiveInfo("accuracy", "", "maximize"),
    ObjectiveInfo("parameters", "", "minimize"),
    ObjectiveInfo("latency_ms", "ms", "minimize"),
    ObjectiveInfo("energy_mj", "mJ", "minimize"),
)
NASTY = "<b>&lt;</b></script><script>window.broken=1</script><img src=x onerror=window.broken=1>&amp;'\"`${x}"
"""A name that breaks a page which does not escape it."""


def synthetic(trials: int, *, seed: int = 0, objectives=OBJECTIVES, shape=SHAPE, name: str = "synthetic", **fields):
    """A study of so many trials: the dense model, a ladder, then random plans; some infeasible, failed or answered."""
    definition = Definition.model_validate(
        {
            "name": "synthetic",
            "data": "reviews.csv",
            "model": "minilm",
            "constraints": {"latency_ms": {"at_most": 140.0}},
            "engine": {"trials": max(trials, 1)},
            **fields,
        }
    )
    space, chance = Space.of(definition.space, shape), random.Random(seed)
    ladder = [("dense", 1.0), *(("ladder", share) for share in (0.875, 0.75, 0.5, 0.25, 0.125))]
    records = []
    for trial in range(trials):
        role, share = ladder[trial] if trial < len(ladder) else ("search", chance.random())
        ratios = space.uniform(share)
        if role == "search":
            ratios = {d.name: d.snap(min(1, max(0, share + chance.gauss(0, 0.25)))) for d in space.dimensions}
        records.append(_trial(trial, role, space.plan(ratios), ratios, chance, objectives, shape))
    return StudyRecord(name, definition, tuple(objectives), shape, tuple(records))


def _trial(trial, role, plan, ratios, chance, objectives, shape):
    if role == "search" and chance.random() < 0.03:
        return Record(trial, "failed", plan=plan, ratios=ratios, failure="the loss is not finite")
    share = encoder_parameters(plan, shape) / encoder_parameters(Plan.dense(shape), shape)
    early = sum(heads / (layer + 1) for layer, heads in enumerate(plan.heads)) / (2.45 * shape.heads)
    accuracy = round(600 * min(1, 0.5 + 0.4 * (0.7 * share**0.4 + 0.3 * early) + chance.gauss(0, 0.01))) / 600
    latency = 4 + 150 * share * chance.uniform(0.95, 1.1)
    measured = {
        "accuracy": (accuracy, {"samples": 600}),
        "parameters": (float(total_parameters(plan, shape)), {}),
        "latency_ms": (latency, {"low": 0.97 * latency, "high": 1.05 * latency, "samples": 20}),
        "energy_mj": (0.02 * latency + 0.1, {"low": 0.019 * latency + 0.1, "high": 0.021 * latency + 0.1}),
    }
    values = {o.name: measured[o.name][0] if o.name in measured else 1 + share for o in objectives}
    quantities = {
        name: {"value": value, "unit": "", "source": "formula", **more} for name, (value, more) in measured.items()
    }
    over = latency - 140.0
    return Record(
        trial,
        "complete",
        plan=plan,
        ratios=ratios,
        values=values,
        quantities=quantities,
        feasible=over <= 0 or role == "dense",
        violations={"latency_ms": over if role != "dense" else -1.0},
        seconds={"cut": 0.2, "measure": 2.0, "recover": 20 * share, "score": 1.5},
        role=role,
        conditions={"device": "cpu (CPU)", "threads": 2, "torch": "2.13", "energy_source": "model"},
        energy_j=30.0,
    )
