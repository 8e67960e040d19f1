"""What is left of each block, solved once more: least squares on a few hundred sentences, no gradient.

A cut block misses what its heads or neurons said. Its output projection W·x + b gets new weights, so that the sum that
goes into the block's LayerNorm is as near as it can be to that of the dense block:

    dense model    hidden ──► attention ──►(+)──► LayerNorm ──► feed-forward ──►(+)──► LayerNorm ──► next layer
                                            │ target                            │ target
    cut model      hidden ──► attention ──►(+)──► LayerNorm ──► feed-forward ──►(+)──► LayerNorm ──► next layer
                              └ W, b solved ┘                   └ W, b solved ┘

Block after block: the cut model's own hidden states go in, so that a block also makes up for what the blocks before it
got wrong. Both models run once, layer by layer side by side; only the hidden states between two layers are kept.

Sentences lie one after the other without padding; those of equal length go through the attention together, so that no
attention mask is needed:

    tokens    [CLS] it 's fun . [SEP] │ [CLS] no laughs . [SEP] │ ...
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from objectives.layout import Layout
from search.bert.encoding import Encoded, collate
from search.bert.families import embedded, entering, family_of, layers_of
from search.bert.families.blocks import BiasOnly
from search.bert.importance import Batch

RIDGE = 1e-2
"""Default weight of the ridge term, as a share of the mean variance of the projection's inputs."""

SENTENCES_AT_ONCE = 64
"""Sentences that go through the attention together."""

TOKENS_AT_ONCE = 4096
"""Tokens whose products are computed together: bounds the memory of their float64 copies."""


@torch.no_grad()
def refit(
    model: PreTrainedModel,
    teacher: PreTrainedModel,
    batches: Iterable[Batch],
    *,
    ridge: float = RIDGE,
) -> None:
    """Re-fit each block's output projection, weight and bias, in place.

    Let x be what enters the projection W·x + b in the cut model, and r what the cut block's sum (projection and
    residual path) then lacks to the dense block's at the same token. The change D of W and c of b minimise

        Σ_tokens |r - D·x - c|² + λ·|D|²,        λ = ridge · tokens · (mean variance of the entries of x)

    so the ridge term holds the weights near those of the dense model, not near zero: where nothing is lacking, nothing
    changes. Sums over tokens are kept in float64. A block that vanished has only its bias: c is the mean of r.

    On the given sentences no block's error, computed with the inputs that it then has, exceeds what it was before its
    weights were changed: they stay as they were where rounding would make it so.

    Args:
        model: The cut model, on any device; in evaluation mode. Everything but the output projections stays.
        teacher: The dense model that it was cut from, on the same device, in evaluation mode; only read.
        batches: Sentences of the task: `input_ids`, `attention_mask` and perhaps `token_type_ids`. Padding is passed
            over. How they are divided into batches, and their order, move the weights by rounding only.
        ridge: Weight of the ridge term, above 0, without unit.

    Raises:
        ValueError: If `ridge` is not above 0, there are no sentences, a model is in training mode, or the two differ
            in layers or hidden size.

    Reference:
        Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers", mask tuning: linear least squares
        on the output of each layer; here for the whole projection instead of one factor per unit.
        Park et al. 2024, "Accurate Retraining-free Pruning for Pretrained Encoder-based Language Models" (K-prune),
        knowledge reconstruction: output projections solved block by block, on the pruned model's own inputs.
    """
    if not ridge > 0:
        raise ValueError(f"ridge is {ridge}: it must be above 0")
    _check_pair(model, teacher)
    mine, dense = _Sentences.of(model, batches := list(batches)), _Sentences.of(teacher, batches)
    layout = family_of(model).layout
    for pair in zip(layers_of(model), layers_of(teacher), strict=True):
        mine, dense = _attention(*pair, layout, mine, dense, ridge)
        mine, dense = _feed_forward(*pair, layout, mine, dense, ridge)


def fitting_batches(
    rows: Encoded, count: int, *, pad_id: int, seed: int, device: torch.device | str
) -> Iterator[dict[str, Tensor]]:
    """Some rows to fit on, each at most once and each as likely as any other.

    Args:
        rows: The training split.
        count: Rows to draw; all of them where there are fewer.
        pad_id: Number of the padding token.
        seed: Seed of the drawing.
        device: Where the batches go.

    Returns:
        Batches as `collate` makes them.
    """
    drawn = np.random.default_rng(seed).permutation(len(rows))[:count]
    for start in range(0, len(drawn), SENTENCES_AT_ONCE):
        yield collate(rows, drawn[start : start + SENTENCES_AT_ONCE].tolist(), pad_id=pad_id, device=device)


@dataclass(frozen=True, eq=False)
class _Sentences:
    """Hidden states of all sentences at one place of a model.

    Attributes:
        hidden: Hidden states (tokens, H), sentence after sentence, without padding.
        groups: Places in `hidden` of sentences of equal length (sentences, length), each sentence in one group.
    """

    hidden: Tensor
    groups: tuple[Tensor, ...]

    @classmethod
    def of(cls, model: PreTrainedModel, batches: list[Batch]) -> Self:
        """The embeddings of the sentences of `batches`."""
        hidden, lengths = [], []
        for batch in batches:
            inputs = {name: batch[name].to(model.device) for name in ("input_ids", "token_type_ids") if name in batch}
            mask = batch["attention_mask"].to(model.device) > 0
            hidden.append(embedded(model, inputs)[mask])
            lengths += mask.sum(dim=1).tolist()
        if not hidden:
            raise ValueError("a re-fit on 0 sentences: at least 1 is needed")
        return cls(torch.cat(hidden), tuple(_groups(lengths, model.device)))

    def through_attention(self, layer: nn.Module, layout: Layout) -> Tensor:
        """What self-attention makes of them (tokens, channels)."""
        paths = layout.attention, layout.attention_output
        parts = [entering(layer, *paths, self.hidden[places]) for places in self.groups]
        result = self.hidden.new_empty(len(self.hidden), parts[0].shape[-1])
        for places, part in zip(self.groups, parts, strict=True):
            result[places] = part
        return result

    def now(self, hidden: Tensor) -> Self:
        """The same sentences at another place."""
        return type(self)(hidden, self.groups)


def _groups(lengths: list[int], device: torch.device) -> Iterable[Tensor]:
    """Places of the tokens of sentences of equal length, at most SENTENCES_AT_ONCE together."""
    of_sentences = torch.tensor(lengths)
    ends = of_sentences.cumsum(0)
    for length in sorted(set(lengths)):
        starts = (ends - of_sentences)[of_sentences == length]
        for start in range(0, len(starts), SENTENCES_AT_ONCE):
            yield (starts[start : start + SENTENCES_AT_ONCE, None] + torch.arange(length)).to(device)


def _check_pair(model: PreTrainedModel, teacher: PreTrainedModel) -> None:
    for name, one in (("cut model", model), ("teacher", teacher)):
        if one.training:
            raise ValueError(f"the {name} is in training mode: call eval() first, dropout would be fitted")
    layers, hidden = model.config.num_hidden_layers, model.config.hidden_size
    if (layers, hidden) != (teacher.config.num_hidden_layers, teacher.config.hidden_size):
        raise ValueError(
            f"the cut model has {layers} layers of {hidden} and the teacher {teacher.config.num_hidden_layers} of "
            f"{teacher.config.hidden_size}: the teacher must be the model that was cut"
        )


def _attention(
    layer: nn.Module, reference: nn.Module, layout: Layout, mine: _Sentences, dense: _Sentences, ridge: float
) -> tuple[_Sentences, _Sentences]:
    """Re-fit the attention block of a layer, and go on to its feed-forward block."""
    out, norm = layout.attention_output, layout.attention_norm
    target = reference.get_submodule(out)(dense.through_attention(reference, layout)) + dense.hidden
    inputs = mine.through_attention(layer, layout)
    found = _fitted_sum(layer.get_submodule(out), inputs, mine.hidden, target, ridge)
    return mine.now(layer.get_submodule(norm)(found)), dense.now(reference.get_submodule(norm)(target))


def _feed_forward(
    layer: nn.Module, reference: nn.Module, layout: Layout, mine: _Sentences, dense: _Sentences, ridge: float
) -> tuple[_Sentences, _Sentences]:
    """Re-fit the feed-forward block of a layer, and go on to the next layer."""
    block, down, norm = layout.feed_forward, layout.down, layout.norm
    target = reference.get_submodule(down)(entering(reference, block, down, dense.hidden)) + dense.hidden
    inputs = entering(layer, block, down, mine.hidden)
    found = _fitted_sum(layer.get_submodule(down), inputs, mine.hidden, target, ridge)
    return mine.now(layer.get_submodule(norm)(found)), dense.now(reference.get_submodule(norm)(target))


def _fitted_sum(projection: Any, inputs: Tensor, residual: Tensor, target: Tensor, ridge: float) -> Tensor:
    """Re-fit one projection, where that brings the block's sum nearer to `target`.

    Args:
        projection: The output projection, `nn.Linear` or `BiasOnly`; changed in place.
        inputs: What enters it (tokens, width).
        residual: What the residual path adds (tokens, H).
        target: The dense block's sum (tokens, H).
        ridge: Weight of the ridge term.

    Returns:
        The block's sum (tokens, H) with the weights that it has now.
    """
    before: Tensor = projection(inputs) + residual
    lacking = target - before
    if not lacking.any():
        return before
    old = [parameter.clone() for parameter in projection.parameters()]
    if isinstance(projection, BiasOnly):
        projection.bias.add_(_exact(lacking).mean(dim=0).to(projection.bias))
    else:
        weight, bias = _change(inputs, lacking, ridge)
        projection.weight.add_(weight.to(projection.weight))
        projection.bias.add_(bias.to(projection.bias))
    after: Tensor = projection(inputs) + residual
    if _error(target - after) < _error(lacking):
        return after
    for parameter, values in zip(projection.parameters(), old, strict=True):  # also where the solution is not finite
        parameter.copy_(values)
    return before


def _error(lacking: Tensor) -> Tensor:
    return _exact(lacking).square().sum()


def _exact(values: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none (Apple's GPUs)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def _change(inputs: Tensor, lacking: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Solve for the change of weight and bias: least squares on centred inputs, so that the bias has no ridge term.

    Args:
        inputs: x (tokens, width).
        lacking: r (tokens, H).
        ridge: Weight of the ridge term.

    Returns:
        D (H, width) and c (H,), float64.
    """
    width = inputs.shape[1]
    middle, offset = _exact(inputs).mean(dim=0), _exact(lacking).mean(dim=0)
    squares = middle.new_zeros(width, width)
    products = middle.new_zeros(width, lacking.shape[1])
    for start in range(0, len(inputs), TOKENS_AT_ONCE):
        some = slice(start, start + TOKENS_AT_ONCE)
        centred = _exact(inputs[some]) - middle
        squares.addmm_(centred.T, centred)
        products.addmm_(centred.T, _exact(lacking[some]) - offset)
    diagonal = squares.diagonal()
    diagonal += ridge * diagonal.mean()
    factor, _ = torch.linalg.cholesky_ex(squares)  # without a check: inputs that never vary give NaN, and are left
    weight = torch.cholesky_solve(products, factor).T
    return weight, offset - weight @ middle
