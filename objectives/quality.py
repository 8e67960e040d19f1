"""How well does a model do its task: the metrics of one split's scores, computed by scikit-learn and scipy."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from objectives.measurement import Measurement
from objectives.objective import Direction, Subject

REGRESSION = ("pearson", "spearman")
"""Names of the metrics of a regression."""

METRICS = ("accuracy", "f1", "matthews", *REGRESSION)
"""Names of the metrics; f1 is for two labels, the last two are for labels that are numbers."""

_SOURCE = "selection split"


@dataclass(frozen=True)
class Quality:
    """One task metric.

    Attributes:
        name: `accuracy` (share of rows classified correctly), `f1` (harmonic mean of precision and recall of class 1
            of two; 0 where neither is defined) or `matthews` (correlation between prediction and truth, from -1 to 1;
            0 where one class is all that is predicted or all that is true); of a regression `pearson` (linear
            correlation between prediction and truth, from -1 to 1) or `spearman` (that of their ranks), each 0 where
            either is the same number everywhere.

    Raises:
        ValueError: If there is no metric of that name.

    Reference:
        Matthews 1975, "Comparison of the predicted and observed secondary structure of T4 phage lysozyme", for two
        classes; Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient", for
        more. Spearman 1904, "The Proof and Measurement of Association between Two Things"; equal numbers share the
        mean of their ranks.
    """

    name: str
    unit: ClassVar[str] = ""
    direction: ClassVar[Direction] = "maximize"
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.name not in METRICS:
            raise ValueError(f"unknown metric {self.name!r}; choose one of {', '.join(METRICS)}")

    def measure(self, subject: Subject) -> Measurement:
        """Compute the metric from the scores on the selection split.

        Raises:
            ValueError: If the model has not been scored, the scores are not finite or do not fit the labels, f1 is
                asked for with other than two labels, or the metric is not for labels of this kind.
        """
        if subject.logits is None or subject.labels is None:
            raise ValueError(f"{self.name} needs logits and labels, and the model has none: score it first")
        return _metric(self.name, subject.logits, subject.labels)


def all_metrics(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, Measurement]:
    """Compute every metric that is defined for the labels.

    Args:
        logits: Shape (rows, labels), float; (rows, 1) of a regression.
        labels: Shape (rows,), integer: the true classes; float: the true numbers of a regression.

    Returns:
        Measurements by name; f1 only where there are two labels.

    Raises:
        ValueError: If the scores are not finite or do not fit the labels.
    """
    fitting = [name for name in METRICS if (name in REGRESSION) == labels.is_floating_point()]
    return {name: _metric(name, logits, labels) for name in fitting if name != "f1" or logits.shape[-1] == 2}


def _metric(name: str, logits: torch.Tensor, labels: torch.Tensor) -> Measurement:
    _check(logits, labels)
    if (name in REGRESSION) != labels.is_floating_point():
        kind = "numbers" if labels.is_floating_point() else "classes"
        known = [other for other in METRICS if (other in REGRESSION) == labels.is_floating_point()]
        raise ValueError(f"{name} of labels that are {kind}: for these use {', '.join(known)}")
    if name == "f1" and logits.shape[1] != 2:
        raise ValueError(f"f1 with {logits.shape[1]} labels: it is for two labels, use accuracy or matthews")
    true = labels.cpu().numpy()
    if labels.is_floating_point():
        value = _correlation(name, true.astype(np.float64), logits[:, 0].cpu().double().numpy())
    else:
        value = _score(name, true, logits.argmax(dim=1).cpu().numpy())
    return Measurement(value, Quality.unit, _SOURCE, samples=len(true))


def _correlation(name: str, true: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    from scipy import stats  # here, because importing it takes as long as all else

    if name == "spearman":
        true, predicted = stats.rankdata(true), stats.rankdata(predicted)
    true, predicted = true - true.mean(), predicted - predicted.mean()
    size = float(np.linalg.norm(true) * np.linalg.norm(predicted))
    if size == 0.0:
        return 0.0  # undefined (0/0), like Matthews: nothing is told apart
    return float(np.clip(true @ predicted / size, -1.0, 1.0))


def _score(name: str, true: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    from sklearn import metrics  # here, because importing it doubles the start-up time of every command

    if name == "accuracy":
        return float(metrics.accuracy_score(true, predicted))
    if name == "f1":
        return float(metrics.f1_score(true, predicted, pos_label=1, average="binary", zero_division=0.0))
    if len(np.unique(true)) == 1 or len(np.unique(predicted)) == 1:
        return 0.0  # undefined (0/0); scikit-learn defines it so too, but warns where both are one and the same class
    return float(metrics.matthews_corrcoef(true, predicted))


def _check(logits: torch.Tensor, labels: torch.Tensor) -> None:
    shapes = f"logits of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)}"
    if logits.ndim != 2 or labels.ndim != 1 or len(logits) != len(labels) or not len(labels):
        raise ValueError(f"{shapes}: they must be (rows, labels) and (rows,), with the same rows and at least one")
    if not torch.isfinite(logits).all():
        raise ValueError(f"{shapes}: the logits hold NaN or infinity, so nothing is classified; look at the recovery")
    if labels.is_floating_point() and logits.shape[1] != 1:
        raise ValueError(f"{shapes}: labels that are numbers belong to logits of shape (rows, 1)")
