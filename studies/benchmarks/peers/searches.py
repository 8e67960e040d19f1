"""Fronts at matched compute: each way goes on, size after size or proposal after proposal, until it is used up.

    size after size   as our ladder does: the smallest first, then whatever halves the widest gap (all ways but the two
                      searches)
    ours              of `search_efficiency.py` the default, a ladder of tilted plans and then NSGA-II; and
                      supernet-recovered, slices of a super-network and the surrogate sampler
    Syne Tune         MO-REA proposes; its trials are what its user would write (magnitude, cross-entropy), or ours

What the last model takes over the compute is kept. What a way reads once for all sizes is charged once. Proposing a
plan is charged to nobody.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from bench import Bench
from environments import Peer
from kept import Kept
from search_efficiency import POPULATION, Point
from transformers import PreTrainedModel

from search.bert.choose import choose
from search.bert.ladder import in_order
from search.bert.surgery import cut
from search.preparation import Prepared

SIZES = (
    *(0.03, 0.05, 0.07, 0.09, 0.1, 0.12, 0.125, 0.15, 0.18, 0.21, 0.24, 0.25, 0.28, 0.3, 0.35, 0.39, 0.42, 0.46, 0.5),
    *(0.56, 0.62, 0.68, 0.75, 0.85),
)
"""Shares of the encoder to try; our ladder's smallest plan has 0.029."""

TRIALS = {"cross-entropy": "magnitude", "default": "fisher"}
"""Importance that goes with the training of Syne Tune's trials."""


def point(result: dict[str, Any]) -> Point:
    """A finished model as a point of a front."""
    return Point(result["compute_s"], result["encoder_share"], result["selection"], result["accuracy"])


def until_used_up(make: Callable[[float], dict[str, Any] | None], *, spent_s: float, budget_s: float) -> list[Point]:
    """Models of one size after the other while there is compute.

    Args:
        make: Makes the model of a share; None where it cannot.
        spent_s: What the preparation took.
        budget_s: Compute in all.
    """
    points: list[Point] = []
    for share in in_order(SIZES, from_largest=False):
        if spent_s + sum(point.compute_s for point in points) >= budget_s:
            break
        result = make(share)
        if result is not None:
            points.append(point(result))
    return points


def syne_tune(
    bench: Bench,
    prepared: Prepared,
    peer: Peer,
    kept: Kept,
    recovery: str,
    *,
    seed: int,
    spent_s: float,
    budget_s: float,
) -> list[dict[str, Any]]:
    """The trials of MO-REA. After an interruption it proposes the same again, and is told what is known of it."""
    space = prepared.space
    scores, importance_s = bench.scores(TRIALS[recovery], seed)
    found: list[dict[str, Any]] = []
    spent_s += importance_s
    while spent_s + sum(one["compute_s"] for one in found) < budget_s:
        asked = peer.ask({"ask": {d.name: d.units for d in space.dimensions}, "seed": seed, "population": POPULATION})
        plan = space.plan({d.name: asked["units"][d.name] / d.units for d in space.dimensions})
        key = {"search": "syne-tune", "trial": len(found), "seed": seed, "recovery": recovery, "plan": str(plan)}
        small = partial(cut, prepared.teacher, choose(plan, scores))
        result = kept.get(key, partial(_trial, bench, small, recovery, seed))
        peer.ask({"tell": [1 - result["selection"], result["encoder_share"]]})
        found.append(result)
    return found


def _trial(bench: Bench, small: Callable[[], PreTrainedModel], recovery: str, seed: int) -> dict[str, Any]:
    return bench.scored(small(), recovery, seed)


def best_within(trials: Iterable[dict[str, Any]], share: float) -> dict[str, Any] | None:
    """The trial of at most this share of the encoder that the selection split likes best; None where there is none."""
    small = [one for one in trials if one["encoder_share"] <= share + 1e-9]
    return max(small, key=lambda one: (one["selection"], -one["encoder_share"]), default=None)
