"""Recovered models among the artifacts, where plans are cut from the nearest finished trial (`recovery.start`).

    candidate ─► the tensors that differ from those of the raw cut ─► candidate-…/weights.safetensors
    candidate-… ─► put into the raw cut of its plan ─► cut further, to a plan that it contains

What recovery does not train, the large table of the word embeddings above all, is not written.
"""

import uuid
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from search.artifacts import Artifacts, digest
from search.bert.choose import choose
from search.bert.importance import Scores
from search.bert.surgery import Kept
from search.plan import Plan

KIND = "candidate"
FILE = "weights.safetensors"

Raw = Callable[[Plan], PreTrainedModel]
"""The raw cut of a plan, from the model of the study."""


def keep(artifacts: Artifacts, model: PreTrainedModel, plan: Plan, raw: Raw) -> str:
    """Keep a recovered model.

    Args:
        artifacts: Where.
        model: The model.
        plan: What it keeps.
        raw: Makes the raw cut.

    Returns:
        The digest that it is found by. It is new each time: what is kept is what was scored.

    Raises:
        UserError: If it cannot be kept.
    """
    before = raw(plan).state_dict()
    trained = {
        name: tensor.contiguous().cpu()
        for name, tensor in model.state_dict().items()
        if not torch.equal(tensor, before[name])
    }

    def make(folder: Path) -> None:
        save_file(trained, folder / FILE)

    key = {"plan": str(plan), "name": uuid.uuid4().hex}
    artifacts.made(KIND, key, make)
    return digest(key)


def found(artifacts: Artifacts, digest_: str, plan: Plan, raw: Raw) -> PreTrainedModel | None:
    """A model that was kept; None where the artifacts do not have it, or have another one's tensors.

    Args:
        artifacts: Where it is kept.
        digest_: The digest that `keep` gave.
        plan: What it keeps.
        raw: Makes the raw cut.
    """
    folder = artifacts.found(KIND, digest_)
    if folder is None:
        return None
    model = raw(plan)
    given, trained = model.state_dict(), load_file(folder / FILE)
    fits = all(name in given and given[name].shape == tensor.shape for name, tensor in trained.items())
    if not fits:
        return None
    model.load_state_dict({**given, **trained})
    return model


def within(outer: Plan, inner: Plan, scores: Scores) -> Kept:
    """What stays of a model that was cut to `outer` when it is cut further to `inner`, in the numbers of that model.

    Args:
        outer: What the model keeps.
        inner: What shall be kept; `outer` contains it.
        scores: Importance of the dense model's heads and neurons, by which both are chosen.

    Raises:
        ValueError: If `outer` does not contain it.
    """
    if not outer.contains(inner):
        raise ValueError(f"cutting {inner} from {outer}: the first keeps something that the second does not have")
    before, after = choose(outer, scores), choose(inner, scores)
    rank = None if outer.rank == inner.rank else inner.rank
    return Kept(_places(before.heads, after.heads), _places(before.neurons, after.neurons), rank)


def _places(before: tuple[tuple[int, ...], ...], after: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Where the units of `after` stand among those of `before`, layer by layer."""
    places = [{unit: place for place, unit in enumerate(units)} for units in before]
    return tuple(tuple(known[unit] for unit in units) for known, units in zip(places, after, strict=True))
