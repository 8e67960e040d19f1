"""How a model that was just made dense gets the widths that its config names: narrower layers, freshly initialised."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from search.bert.families.blocks import BiasOnly, FactorisedEmbedding
from search.bert.families.family import Family
from search.plan import Plan, Shape


def narrow(model: PreTrainedModel, family: Family) -> None:
    """Put smaller parts in place of the dense ones, as the model's config says.

    Args:
        model: A dense model of the family that is just being made.
        family: Where its parts are.

    Raises:
        ValueError: If the config's lists or rank do not fit its dense shape.
    """
    shape = family.shape(model.config)
    plan = planned(model.config, shape)
    layers: Any = model.get_submodule(family.layout.layers)
    for layer, heads, neurons in zip(layers, plan.heads, plan.neurons, strict=True):
        if heads < shape.heads:
            _narrow_attention(layer, heads, shape, family)
        if neurons < shape.neurons:
            _narrow_feed_forward(layer, neurons, shape, family)
    if plan.rank is not None:
        sizes = (shape.vocabulary, plan.rank, shape.embedding_width)
        put(model, family.layout.words, FactorisedEmbedding(*sizes, model.config.pad_token_id))


def planned(config: PreTrainedConfig, shape: Shape) -> Plan:
    """Read what each layer holds.

    Args:
        config: Config of a dense or a pruned classifier.
        shape: Sizes of the dense model.

    Returns:
        Heads and neurons, layer by layer, and the rank; the dense plan where the config says nothing.

    Raises:
        ValueError: If the config's lists or rank do not fit the dense shape.
    """
    dense = Plan.dense(shape)
    heads = getattr(config, "heads_per_layer", None)
    neurons = getattr(config, "neurons_per_layer", None)
    plan = Plan(
        heads=dense.heads if heads is None else tuple(heads),
        neurons=dense.neurons if neurons is None else tuple(neurons),
        rank=getattr(config, "embedding_rank", None),
    )
    check_fits(plan, shape)
    return plan


def check_fits(plan: Plan, shape: Shape) -> None:
    """Refuse a plan that keeps more than there is.

    Args:
        plan: Heads and neurons kept, layer by layer.
        shape: Sizes of the dense model.

    Raises:
        ValueError: If the number of layers differs, a layer keeps more than the dense layer holds, or the rank exceeds
            the width of the embeddings.
    """
    if len(plan.heads) != shape.layers:
        raise ValueError(f"a plan for {len(plan.heads)} layers on a model of {shape.layers}: both must be equal")
    if max(plan.heads) > shape.heads or max(plan.neurons) > shape.neurons:
        raise ValueError(f"the plan '{plan}' exceeds the {shape.heads} heads or {shape.neurons} neurons of a layer")
    if plan.rank is not None and plan.rank > shape.embedding_width:
        raise ValueError(f"word embeddings of rank {plan.rank}: the embeddings are {shape.embedding_width} wide")


def put(module: nn.Module, path: str, part: nn.Module) -> None:
    """Put a part at a path of a module, in place of what is there."""
    owner, _, name = path.rpartition(".")
    setattr(module.get_submodule(owner), name, part)


def _narrow_attention(layer: nn.Module, heads: int, shape: Shape, family: Family) -> None:
    layout, width = family.layout, heads * shape.head_size
    block = layer.get_submodule(layout.attention)
    if heads == 0:
        bias = _bias(layer, layout.attention_output)
        put(layer, layout.attention, family.without_heads(block))
        put(layer, layout.attention_output, BiasOnly(bias))
        return
    for name, size in (("num_attention_heads", heads), ("n_heads", heads), ("all_head_size", width)):
        if hasattr(block, name):
            setattr(block, name, size)
    for path in layout.into_attention:
        put(layer, path, nn.Linear(shape.hidden, width))
    put(layer, layout.attention_output, nn.Linear(width, shape.hidden))


def _narrow_feed_forward(layer: nn.Module, neurons: int, shape: Shape, family: Family) -> None:
    layout = family.layout
    if neurons == 0:
        bias = _bias(layer, layout.down)
        put(layer, layout.feed_forward, family.without_neurons(layer.get_submodule(layout.feed_forward)))
        put(layer, layout.down, BiasOnly(bias))
        return
    put(layer, layout.up, nn.Linear(shape.hidden, neurons))
    put(layer, layout.down, nn.Linear(neurons, shape.hidden))


def _bias(layer: nn.Module, path: str) -> Tensor:
    return layer.get_submodule(path).get_parameter("bias").detach()
