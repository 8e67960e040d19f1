"""Which heads and neurons stay, and how a model is cut down to them: smaller matrices, no masks.

    dense weights --(take the rows and columns that stay)--> small weights --> the pruned model of the family

Head i of a layer owns the channels i*d to (i+1)*d - 1: rows of query, key and value, columns of the attention's output
projection. Neuron j owns row j of the intermediate projection and column j of the output projection.
Word embeddings are cut in another basis: a rank r keeps the first r of the directions that `factorise` found.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from search.bert.families import family_of
from search.bert.pruned import BiasOnly, NoHeads, plan_of, shape_of
from search.plan import Plan

__all__ = ["BiasOnly", "Kept", "NoHeads", "cut", "shape_of"]


@dataclass(frozen=True)
class Kept:
    """Which heads and neurons stay, layer by layer.

    Attributes:
        heads: Indices of the heads that stay, ascending, one tuple per layer.
        neurons: Indices of the neurons that stay, ascending, one tuple per layer.
        rank: Rank of the word embeddings; None leaves them as they are.

    Raises:
        ValueError: If the two differ in length, are empty, or an index is negative or out of order, or the rank is less
            than 1.
    """

    heads: tuple[tuple[int, ...], ...]
    neurons: tuple[tuple[int, ...], ...]
    rank: int | None = None

    def __post_init__(self) -> None:
        _ = self.plan  # a plan checks the number of layers
        for kind, layers in (("heads", self.heads), ("neurons", self.neurons)):
            for number, indices in enumerate(layers):
                if list(indices) != sorted(set(indices)) or min(indices, default=0) < 0:
                    raise ValueError(f"{kind} of layer {number} are {indices}: indices must ascend from 0, each once")

    @property
    def plan(self) -> Plan:
        """How many stay."""
        return Plan(heads=tuple(map(len, self.heads)), neurons=tuple(map(len, self.neurons)), rank=self.rank)


def cut(model: PreTrainedModel, kept: Kept, *, directions: Tensor | None = None) -> PreTrainedModel:
    """Make the smaller model. The one given is neither changed nor shared: no tensor of the two has common storage.

    Args:
        model: A dense or already pruned classifier.
        kept: What stays of it; the indices count the heads and neurons that `model` has.
        directions: Orthonormal columns (E, E), as `factorise.directions` finds them; needed where `kept` has a rank.
            E is the width of the embeddings.

    Returns:
        A new model in evaluation mode, with the data type, device and attention implementation of `model`. Its logits
        are those of `model` with the missing heads and neurons zeroed, and with the word embeddings projected on the
        first directions. Word embeddings that `model` has factorised stay so.

    Raises:
        ValueError: If `kept` names a layer, head or neuron that `model` does not have, or a rank above the
            width of the embeddings, without directions, or of word embeddings that are factorised already.
    """
    _check_has(plan_of(model.config), kept)
    config = copy.deepcopy(model.config)
    config.heads_per_layer, config.neurons_per_layer = list(kept.plan.heads), list(kept.plan.neurons)
    weights = _weights_that_stay(model, kept)
    if kept.rank is not None:
        config.embedding_rank = kept.rank
        _factorise(weights, family_of(model).layout.words, plan_of(model.config), kept.rank, directions)
    with torch.device("meta"):  # structure only: nothing is initialised, no random number is drawn
        small: PreTrainedModel = family_of(model).model(config)
    small.load_state_dict(weights, strict=True, assign=True)
    _copy_buffers(model, small)
    small.eval()  # type: ignore[no-untyped-call]
    return small


def _check_has(present: Plan, kept: Kept) -> None:
    if len(kept.heads) != len(present.heads):
        raise ValueError(f"cutting {len(kept.heads)} layers of a model of {len(present.heads)}: both must be equal")
    kinds = (("heads", kept.heads, present.heads), ("neurons", kept.neurons, present.neurons))
    for kind, indices, counts in kinds:
        for number, (wanted, count) in enumerate(zip(indices, counts, strict=True)):
            if wanted and wanted[-1] >= count:
                raise ValueError(f"{kind} of layer {number} keep index {wanted[-1]}: the model has {count} there")


def _weights_that_stay(model: PreTrainedModel, kept: Kept) -> dict[str, Tensor]:
    """Copy the weights by name, without the rows and columns that go; those of an empty block are left out."""
    weights = {name: weight.detach() for name, weight in model.state_dict().items()}
    head_size, layout = shape_of(model).head_size, family_of(model).layout
    for number, (heads, neurons) in enumerate(zip(kept.heads, kept.neurons, strict=True)):
        layer = f"{layout.layers}.{number}"
        attention = [f"{layer}.{path}" for path in layout.into_attention]
        channels = [head * head_size + offset for head in heads for offset in range(head_size)]
        _narrow(weights, attention, f"{layer}.{layout.attention_output}", channels)
        _narrow(weights, [f"{layer}.{layout.up}"], f"{layer}.{layout.down}", neurons)
    return {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in weights.items()}


def _factorise(weights: dict[str, Tensor], words: str, present: Plan, rank: int, directions: Tensor | None) -> None:
    """Put a table of that rank and its projection in place of the word embeddings."""
    if present.rank is not None:
        raise ValueError(f"word embeddings of rank {present.rank} to rank {rank}: cut the model that has them whole")
    if directions is None:
        raise ValueError(f"word embeddings to rank {rank} without directions: give those of factorise.directions")
    table = weights.pop(f"{words}.weight")
    if rank > table.shape[1]:
        raise ValueError(f"word embeddings to rank {rank}: the embeddings are {table.shape[1]} wide")
    first = directions[:, :rank].to(table).clone(memory_format=torch.contiguous_format)
    weights[f"{words}.table.weight"] = table @ first
    weights[f"{words}.projection.weight"] = first


def _narrow(weights: dict[str, Tensor], into: list[str], out: str, units: Sequence[int]) -> None:
    """Keep these rows of the projections into a block, and these columns of the projection out of it."""
    if not units:
        for name in [f"{out}.weight", *(f"{part}.{kind}" for part in into for kind in ("weight", "bias"))]:
            weights.pop(name, None)  # absent where the block is empty already
        return
    index = torch.tensor(units, device=weights[f"{out}.weight"].device)
    for part in into:
        weights[f"{part}.weight"] = weights[f"{part}.weight"].index_select(0, index)
        weights[f"{part}.bias"] = weights[f"{part}.bias"].index_select(0, index)
    weights[f"{out}.weight"] = weights[f"{out}.weight"].index_select(1, index)


def _copy_buffers(source: PreTrainedModel, target: PreTrainedModel) -> None:
    """Copy the buffers, which no state dict holds (the numbers of the positions, the default token types)."""
    for name, buffer in source.named_buffers():
        owner, _, attribute = name.rpartition(".")
        setattr(target.get_submodule(owner), attribute, buffer.detach().clone(memory_format=torch.contiguous_format))
