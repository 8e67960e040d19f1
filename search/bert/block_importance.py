"""How much each whole block matters: what the loss gains when it vanishes and only its bias stays.

    layer l, dense     hidden ──► attention ──► W·x + b ──►(+)──► LayerNorm ──► feed-forward ──► W·x + b ──►(+)──► ...
    without a block    hidden ───────────────────────► b ──►(+)──► LayerNorm ──► ...    as `families.blocks` does

It is measured, not approximated: the sum over a block's heads or neurons of scores that hold for small changes says
little about losing all of them at once. No gradient is needed. What comes before the block is the same as in the dense
model, so that only the layers from it on are computed again: as much as layers + 2 forward passes in all.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from transformers import PreTrainedModel

from search.bert.families import family_of, layers_of
from search.bert.importance import INPUTS, LOSSES, Batch, evaluating, losses_of
from search.bert.pruned import plan_of, shape_of
from search.errors import UserError, unknown_name
from search.plan import Plan

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments of a layer; the hidden states (batch, tokens, H) come first."""


@torch.no_grad()
def block_importance(model: PreTrainedModel, batches: Iterable[Batch], *, loss: str = "task") -> Tensor:
    """Measure what the loss gains when one block vanishes and all others stay.

    Args:
        model: The dense classifier, on any device and in any mode; left as it was.
        batches: Labelled sentences. How they are divided into batches moves the scores by rounding only.
        loss: `task`: the cross-entropy of the labels. `distillation`: KL(dense ‖ without the block), at temperature 1.
            In a regression, the squared error of the labels, and the squared difference to the dense model's output.

    Returns:
        Mean gain over the sentences, in nats or squared labels (layers, 2), attention then feed-forward, float64 on the
        CPU. Under `task` it is below 0 where the model is better without the block. Gains of several blocks do not add
        up.

    Raises:
        UserError: If there is no such loss.
        ValueError: If the model is pruned, or there are no sentences.

    Reference:
        Michel, Levy, Neubig 2019, "Are Sixteen Heads Really Better than One?": ablation, measured on the model; here
        for whole blocks.
    """
    if loss not in LOSSES:
        raise UserError(unknown_name("loss of the importance", loss, LOSSES))
    if plan_of(model.config) != Plan.dense(shape_of(model)):
        raise ValueError(f"the model holds {plan_of(model.config)}: importance is scored on the dense model")
    gains = torch.zeros(shape_of(model).layers, 2, dtype=torch.float64)
    sentences = 0
    with evaluating(model):
        for batch in batches:
            here = {name: values.to(model.device) for name, values in batch.items()}
            calls, dense = _dense_pass(model, here)
            for number, projections in enumerate(_projections(model)):
                for kind, projection in enumerate(projections):
                    with _hooked(projection.register_forward_pre_hook(_nothing)):
                        logits = _from_layer(model, calls, number)
                    gains[number, kind] += _GAINS[loss](logits, dense, here["labels"]).cpu().double().sum()
            sentences += len(here["labels"])
    if sentences == 0:
        raise ValueError("importance on 0 sentences: at least 1 is needed")
    return gains / sentences


def _of_task(logits: Tensor, dense: Tensor, labels: Tensor) -> Tensor:
    """Gain of the labels' loss (batch,), from two sets of logits (batch, labels)."""
    return losses_of(logits, labels) - losses_of(dense, labels)


def _of_distillation(logits: Tensor, dense: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG001 # as `_of_task`
    """KL(dense ‖ without the block), or the squared difference, of each sentence (batch,): 0 for the dense model."""
    if logits.shape[1] == 1:
        return (logits - dense).square()[:, 0]
    divergence = kl_div(log_softmax(logits, -1), log_softmax(dense, -1), reduction="none", log_target=True)
    return divergence.sum(dim=-1)


_GAINS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"task": _of_task, "distillation": _of_distillation}


def _projections(model: PreTrainedModel) -> list[tuple[nn.Module, nn.Module]]:
    """Output projections of the attention and of the feed-forward block, layer by layer."""
    paths = family_of(model).layout.attention_output, family_of(model).layout.down
    return [(layer.get_submodule(paths[0]), layer.get_submodule(paths[1])) for layer in layers_of(model)]


def _dense_pass(model: PreTrainedModel, batch: Batch) -> tuple[list[Call], Tensor]:
    """What the dense model calls each layer with, and its logits (batch, labels)."""
    calls: list[Call] = []

    def remember(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    handles = [layer.register_forward_pre_hook(remember, with_kwargs=True) for layer in layers_of(model)]
    with _hooked(*handles):
        logits = model(**{name: batch[name] for name in INPUTS if name in batch}).logits
    return calls, logits


def _from_layer(model: PreTrainedModel, calls: list[Call], first: int) -> Tensor:
    """Logits (batch, labels) of the model run from a layer on, with what that layer got in the dense pass."""
    hidden = calls[first][0][0]
    for layer, (args, kwargs) in list(zip(layers_of(model), calls, strict=True))[first:]:
        output = layer(hidden, *args[1:], **kwargs)
        hidden = output[0] if isinstance(output, tuple) else output
    return family_of(model).logits(model, hidden)


def _nothing(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """A hook with which only the bias of a projection is left."""
    return (torch.zeros_like(inputs[0]),)


@contextmanager
def _hooked(*handles: Any) -> Iterator[None]:
    """Take hooks away again."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
