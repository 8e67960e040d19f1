"""Tiny models with random weights, whole and cut the way the search cuts them."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from objectives import Conditions
from search.plan import Plan, Shape

SHAPE = Shape(
    layers=2, heads=3, head_size=4, hidden=12, neurons=20, vocabulary=50, positions=16, token_types=2, labels=2
)


class NoHeads(nn.Module):
    """Stands where the attention of a layer without heads was."""

    def forward(self, hidden_states: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor, None]:
        return hidden_states, None


class NoNeurons(nn.Module):
    """Stands where the intermediate of a layer without neurons was."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states


class BiasOnly(nn.Module):
    """What is left of an output projection without inputs."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.bias.expand_as(hidden_states)


def make_model(shape: Shape) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.neurons,
        max_position_embeddings=shape.positions,
        type_vocab_size=shape.token_types,
        num_labels=shape.labels,
    )
    return BertForSequenceClassification(config).eval()


def cut(model: BertForSequenceClassification, shape: Shape, plan: Plan) -> BertForSequenceClassification:
    for layer, heads, neurons in zip(model.bert.encoder.layer, plan.heads, plan.neurons, strict=True):
        width = heads * shape.head_size
        if heads:
            for name in ("query", "key", "value"):
                setattr(layer.attention.self, name, nn.Linear(shape.hidden, width))
            layer.attention.output.dense = nn.Linear(width, shape.hidden)
        else:
            layer.attention.self = NoHeads()
            layer.attention.output.dense = BiasOnly(shape.hidden)
        if neurons:
            layer.intermediate.dense = nn.Linear(shape.hidden, neurons)
            layer.output.dense = nn.Linear(neurons, shape.hidden)
        else:
            layer.intermediate = NoNeurons()
            layer.output.dense = BiasOnly(shape.hidden)
    return model.eval()


@pytest.fixture
def shape() -> Shape:
    return SHAPE


@pytest.fixture
def build() -> Callable[..., BertForSequenceClassification]:
    """Makes the tiny model, or one of another shape, cut to a plan where one is given."""

    def make(plan: Plan | None = None, shape: Shape = SHAPE) -> BertForSequenceClassification:
        model = make_model(shape)
        return model if plan is None else cut(model, shape, plan)

    return make


@pytest.fixture
def conditions() -> Conditions:
    return Conditions(batch=2, tokens=5, threads=None, warmup=1, repeats=3)
