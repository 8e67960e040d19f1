"""The additive table: what it adds up, what it is fitted to, how far it is off, and the objective that reads it."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from objectives import Objective, Subject
from objectives.additive import Agreement, Kept, Table, agreement, fit
from objectives.products import widths
from objectives.tabled import Tabled
from search.plan import Plan, Shape
from search.tables import design

TRUTH = Table(3.0, ((1, 0.5), (4, 1.0), (8, 2.0), (12, 4.0)), ((64, 0.25), (512, 1.0), (1536, 3.0)))
HEADS, NEURONS = [count for count, _ in TRUTH.heads], [count for count, _ in TRUTH.neurons]
MODELS = [Kept(plan.heads, plan.neurons) for plan in design(6, HEADS, NEURONS)]


def test_a_cost_is_the_base_and_an_entry_for_each_block() -> None:
    assert TRUTH.cost(Kept((12, 8, 1), (1536, 512, 64))) == 3.0 + (4.0 + 2.0 + 0.5) + (3.0 + 1.0 + 0.25)
    assert TRUTH.cost(Kept((0, 0, 0), (0, 0, 0))) == 3.0
    assert TRUTH.cost(Kept((6,), (1024,))) == 3.0 + 1.5 + 2.0  # half-way between two entries
    assert TRUTH.cost(Kept((0,), (32,))) == 3.0 + 0.125  # below the first one, towards nothing


@pytest.mark.parametrize(("kept", "said"), [(Kept((13,), (0,)), "13 heads"), (Kept((0,), (1537,)), "1537 neurons")])
def test_more_than_the_table_knows_is_refused(kept: Kept, said: str) -> None:
    with pytest.raises(ValueError, match=f"a layer with {said}"):
        TRUTH.cost(kept)


def test_it_is_plain_values_and_back() -> None:
    assert Table.from_dict(TRUTH.to_dict()) == TRUTH


def test_the_fit_finds_the_table_behind_exact_costs() -> None:
    found = fit(MODELS, [TRUTH.cost(model) for model in MODELS], heads=HEADS, neurons=NEURONS)
    assert found.base == pytest.approx(TRUTH.base)
    for mine, true in ((found.heads, TRUTH.heads), (found.neurons, TRUTH.neurons)):
        assert [count for count, _ in mine] == [count for count, _ in true]
        assert [cost for _, cost in mine] == pytest.approx([cost for _, cost in true])


def test_noise_of_the_single_measurements_is_averaged_and_entries_never_fall() -> None:
    dice, errors, noisy = random.Random(0), list[float](), list[float]()
    for _ in range(50):
        noise = [dice.gauss(1.0, 0.05) for _ in MODELS]
        costs = [TRUTH.cost(model) * share for model, share in zip(MODELS, noise, strict=True)]
        found = fit(MODELS, costs, heads=HEADS, neurons=NEURONS)
        for entries in (found.heads, found.neurons):
            rising = [0.0, *(cost for _, cost in entries)]
            assert rising == sorted(rising)
        plan = Kept(tuple(dice.randrange(13) for _ in range(6)), tuple(64 * dice.randrange(25) for _ in range(6)))
        errors.append(abs(found.cost(plan) / TRUTH.cost(plan) - 1))
        noisy += [abs(share - 1) for share in noise]
    assert sorted(errors)[25] < 0.8 * sorted(noisy)[len(noisy) // 2]


@pytest.mark.parametrize(("models", "costs"), [([], []), (MODELS[:2], [1.0]), (MODELS[:2], [1.0, 0.0])])
def test_costs_that_cannot_be_explained_are_refused(models: list[Kept], costs: list[float]) -> None:
    with pytest.raises(ValueError, match="as many of both are needed, all above 0"):
        fit(models, costs, heads=HEADS, neurons=NEURONS)


def test_agreement_counts_errors_and_order() -> None:
    found = agreement([1.1, 2.0, 2.7, 4.0], [1.0, 2.0, 3.0, 4.0])
    assert (found.models, found.median, found.tau) == (4, pytest.approx(0.05), 1.0)
    assert found.most == pytest.approx(0.1)
    assert agreement([3.0, 2.0, 1.0], [1.0, 2.0, 3.0]).tau == -1.0
    assert agreement([1.0, 1.0], [1.0, 2.0]).tau is None  # no order to compare
    with pytest.raises(ValueError, match="at least 2 of each"):
        agreement([1.0], [1.0])


def test_the_objective_reads_the_real_modules_and_says_what_it_is(build: Callable[..., Any], shape: Shape) -> None:
    table = Table(0.1, ((3, 0.2),), ((20, 0.4),))
    by_table = Tabled("latency_ms", "ms", table, "eager torch", 50.0, Agreement(20, 0.02, 0.1, 0.95), {"batch": 8})
    assert isinstance(by_table, Objective)
    model = build(Plan(heads=(3, 0), neurons=(0, 10)))
    assert widths(model) == ((3, 0), (0, 10))
    found = by_table.measure(Subject(model))
    assert found.value == pytest.approx(50 * (0.1 + 0.2 + 0.2))
    assert found == by_table.measure(Subject(model))
    assert (found.unit, found.source, found.conditions) == ("ms", "table of eager torch", {"batch": 8})
    assert found.interval == pytest.approx((22.5, 27.5))
    assert found.details == {"table_error": 0.02, "table_error_95": 0.1, "table_tau": 0.95}
    assert widths(build()) == ((shape.heads,) * 2, (shape.neurons,) * 2)


def test_a_factor_is_above_0() -> None:
    with pytest.raises(ValueError, match="latency_ms by a table with the factor 0"):
        Tabled("latency_ms", "ms", TRUTH, "eager torch", 0)
