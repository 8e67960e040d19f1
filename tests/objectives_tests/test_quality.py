"""Parity with metrics worked out by hand from the confusion counts."""

import math

import pytest
import torch
from scipy import stats

from objectives import Subject, all_metrics
from objectives.quality import Quality


def scores(predicted: list[int], labels: int = 2) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predicted), labels).float()


def confusion(*, true_positive: int, false_positive: int, false_negative: int, true_negative: int) -> Subject:
    counts = [(1, 1, true_positive), (1, 0, false_positive), (0, 1, false_negative), (0, 0, true_negative)]
    predicted = [guess for guess, _, count in counts for _ in range(count)]
    true = [label for _, label, count in counts for _ in range(count)]
    return Subject(torch.nn.Identity(), scores(predicted), torch.tensor(true))


@pytest.mark.parametrize("counts", [(40, 5, 10, 45), (1, 30, 2, 7), (9, 0, 0, 1), (0, 3, 4, 5)])
def test_metrics_equal_their_formulas(counts: tuple[int, int, int, int]) -> None:
    tp, fp, fn, tn = counts
    subject = confusion(true_positive=tp, false_positive=fp, false_negative=fn, true_negative=tn)
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    expected = {
        "accuracy": (tp + tn) / sum(counts),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "matthews": (tp * tn - fp * fn) / root,
    }
    for name, value in expected.items():
        measurement = Quality(name).measure(subject)
        assert measurement.value == pytest.approx(value, abs=1e-12)
        assert (measurement.source, measurement.samples, measurement.unit) == ("selection split", sum(counts), "")
    assert {name: entry.value for name, entry in all_metrics(subject.logits, subject.labels).items()} == pytest.approx(
        expected
    )


def test_three_labels_have_no_f1() -> None:
    logits, labels = scores([0, 1, 2, 2], labels=3), torch.tensor([0, 1, 2, 1])
    measured = all_metrics(logits, labels)
    assert set(measured) == {"accuracy", "matthews"}
    assert measured["accuracy"].value == 0.75
    assert measured["matthews"].value == pytest.approx((3 * 4 - 5) / math.sqrt((16 - 6) * (16 - 6)))
    with pytest.raises(ValueError, match="f1 with 3 labels"):
        Quality("f1").measure(Subject(torch.nn.Identity(), logits, labels))


@pytest.mark.parametrize(("predicted", "true"), [([0, 0], [0, 0]), ([0, 0], [0, 1]), ([0, 1], [0, 0])])
def test_what_is_undefined_is_0_without_a_warning(predicted: list[int], true: list[int]) -> None:
    measured = all_metrics(scores(predicted), torch.tensor(true))
    assert measured["f1"].value == 0.0
    assert measured["matthews"].value == 0.0


def test_the_highest_logit_is_the_prediction_in_half_precision_too() -> None:
    logits = torch.tensor([[-3.0, -1.0], [0.5, 0.25]], dtype=torch.bfloat16)
    assert all_metrics(logits, torch.tensor([1, 0]))["accuracy"].value == 1.0


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(number: float) -> None:
    with pytest.raises(ValueError, match=r"NaN or infinity.*look at the recovery"):
        all_metrics(torch.tensor([[0.0, number]]), torch.tensor([1]))


@pytest.mark.parametrize(
    ("logits", "labels"), [((3, 2), (2,)), ((3,), (3,)), ((3, 2), (3, 1)), ((0, 2), (0,))], ids=str
)
def test_scores_that_do_not_fit_are_refused(logits: tuple[int, ...], labels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"they must be \(rows, labels\) and \(rows,\)"):
        all_metrics(torch.zeros(logits), torch.zeros(labels, dtype=torch.long))


def test_an_unknown_metric_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown metric 'f2'; choose one of accuracy, f1, matthews"):
        Quality("f2")


# --- a regression


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_those_of_scipy(ties: bool) -> None:
    dice = torch.Generator().manual_seed(1)
    labels = torch.rand(40, generator=dice) * 5
    logits = (labels + torch.randn(40, generator=dice))[:, None]
    if ties:
        labels, logits = labels.round(), logits.round()
    measured = all_metrics(logits, labels)
    assert set(measured) == {"pearson", "spearman"}
    true, said = labels.double().numpy(), logits[:, 0].double().numpy()
    assert measured["pearson"].value == pytest.approx(stats.pearsonr(true, said).statistic, abs=1e-12)
    assert measured["spearman"].value == pytest.approx(stats.spearmanr(true, said).statistic, abs=1e-12)
    assert Quality("pearson").measure(Subject(torch.nn.Identity(), -logits, labels)).value == pytest.approx(
        -measured["pearson"].value
    )
    assert (measured["spearman"].samples, measured["spearman"].unit) == (40, "")


def test_what_is_the_same_everywhere_correlates_with_nothing() -> None:
    rising = torch.tensor([1.0, 2.0, 3.0])
    for logits, labels in ((torch.ones(3, 1), rising), (rising[:, None], torch.ones(3))):
        assert {name: one.value for name, one in all_metrics(logits, labels).items()} == {"pearson": 0, "spearman": 0}
    for one in all_metrics(2 * rising[:, None] + 7, rising).values():
        assert one.value == pytest.approx(1.0, abs=1e-12)


def test_metrics_of_classes_and_of_numbers_are_not_mixed_up() -> None:
    numbers = Subject(torch.nn.Identity(), torch.tensor([[0.5], [2.0]]), torch.tensor([1.0, 3.0]))
    classes = Subject(torch.nn.Identity(), scores([0, 1]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="accuracy of labels that are numbers: for these use pearson, spearman"):
        Quality("accuracy").measure(numbers)
    with pytest.raises(ValueError, match="pearson of labels that are classes: for these use accuracy, f1, matthews"):
        Quality("pearson").measure(classes)
    with pytest.raises(ValueError, match=r"labels that are numbers belong to logits of shape \(rows, 1\)"):
        all_metrics(torch.zeros(2, 2), torch.tensor([1.0, 3.0]))
