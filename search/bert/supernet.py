"""The super-network: one dense-shaped model, trained so that every plan cut from it works at once.

Heads and neurons of each layer are put in the order of their importance, so that what `choose` keeps for any plan is a
prefix. Each step trains several plans on the same sentences, and their gradients add up:

    one layer's heads, the most important first          which plans
    ██             the smallest                          always
    ███████        a random one: size, tilt, deviations  as many as asked for

The sandwich rule trains the largest plan in every step too, because the others learn from its outputs. Here they learn
from the teacher's, which are known: without it a step takes less than half as long, and the slices are no worse.

A slice is no copy: transformers' own narrow layers run on views of the dense weights. In the end the order is undone:
the super-network is an ordinary dense checkpoint, and a trial cuts it as it would cut the teacher.
"""

import copy
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from objectives.layout import Layout
from search.bert.choose import ranking
from search.bert.encoding import Encoded, collate, training_batches
from search.bert.families import family_of
from search.bert.importance import Batch, Scores
from search.bert.ladder import tilted
from search.bert.pruned import shape_of, words_of
from search.bert.recovery import distillation
from search.bert.resuming import load_state, save_state
from search.bert.training import CHECK_EVERY, OnStep, autocast, parameter_groups, rate
from search.definition import SupernetSettings
from search.errors import TrialError
from search.plan import Plan
from search.space import Space

DEVIATION = 0.25
"""A random plan's ratios differ by up to this share of its size, or by up to one unit, from those of its tilt."""

SAVE_EVERY_S = 60.0
"""Seconds of training after which its state is kept, so that an interruption costs no more than that."""

INTO = ("weight", "bias")
"""Parameters of a projection into a block: both have a row for each channel."""


def train_supernet(
    model: PreTrainedModel,
    rows: Encoded,
    teacher_logits: Tensor,
    scores: Scores,
    space: Space,
    settings: SupernetSettings,
    *,
    precision: str,
    pad_id: int,
    seed: int,
    state: Path | None = None,
    on_step: OnStep,
) -> float:
    """Train a copy of the dense teacher as a super-network, in place.

    There is no dropout, and the word embeddings stay as they are, as in the recovery. The same arguments give the same
    weights on a CPU, interrupted or not; on a GPU, where attention's gradients are added up in no fixed order, nearly.

    Args:
        model: The copy, on the device to train on; in evaluation mode, and left so.
        rows: The training split.
        teacher_logits: The teacher's logits on it (rows, labels).
        scores: Importance of the teacher's heads and neurons; trials must choose by the same.
        space: The study's dimensions, which random plans are drawn from.
        settings: Steps, plans and rates.
        precision: `auto`, `fp32` or `bf16`.
        pad_id: Number of the padding token.
        seed: Seed of the batches' order and of the random plans.
        state: File that the state of the training is kept in, and that an earlier one is continued from; None keeps
            nothing. It is left there.
        on_step: Told after each step.

    Returns:
        Seconds that the training took, those before interruptions included.

    Raises:
        TrialError: If the loss stops being a finite number.

    Reference:
        Yu & Huang 2019, "Universally Slimmable Networks and Improved Training Techniques", sections 3.1 and 3.3
        (sandwich rule, distillation; the largest plan is left out here); Hou et al. 2020, "DynaBERT", section 2.1
        (units sorted by importance).
    """
    embeddings = words_of(model)
    embeddings.requires_grad_(False)
    order = {"heads": ranking(scores.heads), "neurons": ranking(scores.neurons)}
    reorder(model, order)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), lr=settings.learning_rate, fused=True)
    first, before = load_state(state, model, optimizer) if state is not None else (0, 0.0)
    start = saved = time.perf_counter()
    loss = distillation(teacher_logits.to(model.device), weight=settings.distillation, temperature=settings.temperature)
    batches = islice(training_batches(rows, batch_size=settings.batch_size, seed=seed), first, None)
    for step in range(first, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate(step, steps=settings.steps, warmup=settings.warmup)
        numbers = next(batches)
        batch = collate(rows, numbers, pad_id=pad_id, device=model.device)
        labels = batch.pop("labels")
        optimizer.zero_grad(set_to_none=True)
        value = torch.zeros((), device=model.device)
        for plan in plans_of_step(space, scores, settings, seed=seed, step=step):
            with autocast(model.device, precision):
                logits = slice_logits(model, plan, batch)
            part = loss(logits.float(), labels, numbers)
            part.backward()  # type: ignore[no-untyped-call]
            value += part.detach()
        for parameter in model.parameters():  # of a block that no plan of this step keeps: AdamW counts steps for each
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        last = step + 1 == settings.steps
        if (last or step % CHECK_EVERY == 0) and not torch.isfinite(value):
            raise TrialError(f"the loss became {value.item()} at step {step + 1} of {settings.steps}")
        if state is not None and not last and time.perf_counter() - saved >= SAVE_EVERY_S:
            save_state(state, model, optimizer, steps=step + 1, seconds=before + time.perf_counter() - start)
            saved = time.perf_counter()
        on_step(step + 1, settings.steps)
    reorder(model, {kind: ranked.argsort(dim=1) for kind, ranked in order.items()})
    embeddings.requires_grad_(True)
    return before + time.perf_counter() - start


def plans_of_step(space: Space, scores: Scores, settings: SupernetSettings, *, seed: int, step: int) -> list[Plan]:
    """The plans that one step trains: the smallest, and the random ones of this step.

    Args:
        space: The study's dimensions.
        scores: Importance of all heads and neurons.
        settings: How many random plans, and the smallest size.
        seed: Seed of all steps.
        step: Number of the step.
    """
    dice = np.random.default_rng((seed, step))
    drawn = [draw_plan(space, scores, smallest=settings.drawn_from, dice=dice) for _ in range(settings.plans)]
    smallest = space.plan(tilted(space, scores, size=settings.smallest, tilt=0.0))
    return [smallest, *drawn]


def draw_plan(space: Space, scores: Scores, *, smallest: float, dice: np.random.Generator) -> Plan:
    """Draw a plan whose size has a uniform logarithm: each halving of the model is seen as often as the one before.

    Independent ratios for each layer would crowd around half of the model. So the size comes first, then the tilt of
    the ladder, and then a deviation of each ratio. Large slices work nearly untrained and are dear to train, small ones
    neither: that is why sizes are not uniform.

    Args:
        space: The study's dimensions.
        scores: Importance of all heads and neurons.
        smallest: Smallest size, above 0.
        dice: Where chance comes from.
    """
    size, tilt = float(np.exp(dice.uniform(np.log(smallest), 0.0))), dice.uniform()
    ratios = tilted(space, scores, size=size, tilt=tilt)
    for dimension in space.dimensions:
        most = max(DEVIATION * size, 1 / dimension.units)
        ratios[dimension.name] += dice.uniform(-most, most)
    return space.plan(ratios)


def slice_logits(model: PreTrainedModel, plan: Plan, batch: Batch) -> Tensor:
    """What the first heads and neurons of each layer say, on views of the weights.

    Args:
        model: A dense model whose units are in the order of their importance.
        plan: How many of them, layer by layer.
        batch: `input_ids`, `attention_mask` and perhaps `token_type_ids`, on the device of the model.

    Returns:
        Logits (batch, labels): those of the model that is cut so. Their gradients reach the slice alone; there is no
        dropout.
    """
    config = copy.deepcopy(model.config)
    config.heads_per_layer, config.neurons_per_layer = list(plan.heads), list(plan.neurons)
    with torch.device("meta"):  # structure only
        narrow = family_of(model).model(config)
    narrow.eval()  # type: ignore[no-untyped-call]
    weights = {**_slices(model, plan), **dict(model.named_buffers())}
    logits: Tensor = functional_call(narrow, weights, kwargs=dict(batch), strict=True).logits
    return logits


def _slices(model: PreTrainedModel, plan: Plan) -> dict[str, Tensor]:
    """Views of the weights of a slice by name; those of an empty block are left out."""
    weights: dict[str, Tensor] = dict(model.named_parameters())
    head_size, layout = shape_of(model).head_size, family_of(model).layout
    for layer, (heads, neurons) in enumerate(zip(plan.heads, plan.neurons, strict=True)):
        channels = {"heads": heads * head_size, "neurons": neurons}
        for kind, name, axis in _divided(layout, layer):
            weight = weights.pop(name)
            if channels[kind]:
                weights[name] = weight.narrow(axis, 0, channels[kind])
    return weights


@torch.no_grad()
def reorder(model: PreTrainedModel, order: Mapping[str, Tensor]) -> None:
    """Put the heads and neurons of each layer in another order, in place; the model computes what it did.

    Args:
        model: A dense model.
        order: Which unit comes where: `heads` (layers, heads) and `neurons` (layers, neurons).
    """
    offsets, layout = torch.arange(shape_of(model).head_size), family_of(model).layout
    for layer in range(shape_of(model).layers):
        channels = {
            "heads": (order["heads"][layer][:, None] * len(offsets) + offsets).flatten().to(model.device),
            "neurons": order["neurons"][layer].to(model.device),
        }
        for kind, name, axis in _divided(layout, layer):
            weight = model.get_parameter(name)
            weight.copy_(weight.index_select(axis, channels[kind]))


def _divided(layout: Layout, layer: int) -> Iterator[tuple[str, str, int]]:
    """Each weight of a layer that is divided among units: which units, its name, and the axis of their channels."""
    path = f"{layout.layers}.{layer}"
    for part in layout.into_attention:
        yield from (("heads", f"{path}.{part}.{parameter}", 0) for parameter in INTO)
    yield "heads", f"{path}.{layout.attention_output}.weight", 1
    yield from (("neurons", f"{path}.{layout.up}.{parameter}", 0) for parameter in INTO)
    yield "neurons", f"{path}.{layout.down}.weight", 1
