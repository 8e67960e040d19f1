"""The best-scored heads and neurons stay, and what a smaller plan keeps is a subset of what a larger one keeps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from search.bert.choose import choose
from search.bert.importance import Scores
from search.plan import Plan

SCORES = Scores(
    heads=torch.tensor([[0.3, 0.1, 0.2], [5.0, 7.0, 6.0]], dtype=torch.float64),
    neurons=torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 3.0]], dtype=torch.float64),
)


@pytest.mark.parametrize(
    ("heads", "neurons", "kept_heads", "kept_neurons"),
    [
        ((1, 2), (2, 2), ((0,), (1, 2)), ((0, 1), (1, 3))),
        ((2, 1), (3, 3), ((0, 2), (1,)), ((0, 1, 2), (1, 2, 3))),
        ((0, 3), (4, 0), ((), (0, 1, 2)), ((0, 1, 2, 3), ())),
    ],
)
def test_the_best_of_each_layer_stay_and_ties_go_to_the_lower_index(heads, neurons, kept_heads, kept_neurons):
    kept = choose(Plan(heads, neurons), SCORES)
    assert (kept.heads, kept.neurons) == (kept_heads, kept_neurons)


pairs = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted)
scores = st.lists(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=20, max_size=20), min_size=4, max_size=4
).map(lambda rows: Scores(*torch.tensor(rows, dtype=torch.float64).split(2)))


@given(scores=scores, bounds=st.lists(pairs, min_size=4, max_size=4))
def test_a_smaller_plan_keeps_a_subset_and_ties_go_to_the_lower_index(scores, bounds):
    small, large = ([pair[i] for pair in bounds] for i in range(2))
    plans = [Plan(heads=tuple(counts[:2]), neurons=tuple(counts[2:])) for counts in (small, large)]
    less, more = (choose(plan, scores) for plan in plans)
    assert [less.plan, more.plan] == plans
    for inner, outer, row in zip(
        less.heads + less.neurons, more.heads + more.neurons, [*scores.heads, *scores.neurons], strict=True
    ):
        assert set(inner) <= set(outer)
        ranked = sorted(range(20), key=lambda i, row=row: (-row[i].item(), i))
        assert outer == tuple(sorted(ranked[: len(outer)]))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan((4, 0), (0, 0)), r"the plan keeps \(4, 0\) heads: the scores are of 2 layers with 3 each"),
        (Plan((0, 0), (0, 5)), r"the plan keeps \(0, 5\) neurons: the scores are of 2 layers with 4 each"),
        (Plan((0,), (0,)), r"the plan keeps \(0,\) heads: the scores are of 2 layers with 3 each"),
    ],
)
def test_a_plan_that_exceeds_the_shape_is_refused(plan, message):
    with pytest.raises(ValueError, match=message):
        choose(plan, SCORES)
