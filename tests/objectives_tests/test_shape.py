"""Parameters and MACs of real modules against the closed forms of plans."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from objectives import Subject, parts
from objectives.layout import BERT
from objectives.macs import Macs
from objectives.size import EncoderParameters, EncoderShare, Parameters
from search.plan import Plan, Shape, encoder_macs, encoder_parameters, total_parameters

BERT_BASE = Shape(12, 12, 64, 768, 3072, 30522, 512, 2, 2)
PLANS = [
    Plan(heads=(3, 3), neurons=(20, 20)),
    Plan(heads=(2, 1), neurons=(7, 16)),
    Plan(heads=(0, 3), neurons=(5, 0)),
    Plan(heads=(0, 0), neurons=(0, 0)),
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_cut_model_counts_what_its_plan_says(plan: Plan, build: Callable[..., Any], shape: Shape) -> None:
    subject = Subject(build(plan))
    subject.model(input_ids=torch.zeros((1, 5), dtype=torch.long))  # it is a model that runs
    assert Parameters().measure(subject).value == total_parameters(plan, shape)
    assert EncoderParameters().measure(subject).value == encoder_parameters(plan, shape)
    assert EncoderShare(5000).measure(subject).value == encoder_parameters(plan, shape) / 5000
    for tokens in (1, 5, 128):
        assert Macs(tokens).measure(subject).value == encoder_macs(plan, shape, tokens=tokens)


def test_bert_base_counts_what_is_published(build: Callable[..., Any]) -> None:
    with torch.device("meta"):
        subject = Subject(build(shape=BERT_BASE))
    assert Parameters().measure(subject).value == 109_483_778
    assert EncoderParameters().measure(subject).value == 85_054_464
    assert EncoderShare(85_054_464).measure(subject).value == 1.0
    assert Macs(128).measure(subject).value == 11_173_625_856  # 12 · (4·128·768² + 2·128²·768 + 2·128·768·3072)


def test_a_shared_parameter_counts_once() -> None:
    first = nn.Linear(3, 3)
    second = nn.Linear(3, 3)
    second.weight = first.weight
    assert Parameters().measure(Subject(nn.Sequential(first, second))).value == 9 + 3 + 3


@pytest.mark.parametrize("objective", [EncoderParameters(), EncoderShare(1), Macs(5)])
def test_another_architecture_is_refused(objective: Any) -> None:
    with pytest.raises(TypeError, match=r"Linear has no 'bert\.encoder(\.layer)?': give a model built like BertFor"):
        objective.measure(Subject(nn.Linear(2, 2)))


def test_a_matrix_that_cannot_be_counted_is_not_passed_over(build: Callable[..., Any]) -> None:
    model = build()
    model.bert.encoder.layer[0].intermediate.dense = nn.Embedding(2, 2)
    with pytest.raises(TypeError, match=r"intermediate\.dense is a Embedding, which cannot be counted"):
        Macs(5).measure(Subject(model))


def test_a_cut_through_a_head_is_refused(build: Callable[..., Any]) -> None:
    model = build()
    model.bert.encoder.layer[1].attention.self.query = nn.Linear(12, 6)
    with pytest.raises(ValueError, match="width 6 with heads of size 4: cut whole heads only"):
        Macs(5).measure(Subject(model))


def test_sizes_below_1_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens is 0"):
        Macs(0)
    with pytest.raises(ValueError, match="dense_encoder_parameters is 0"):
        EncoderShare(0)


TINY = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.mark.parametrize(
    ("model", "config", "tokens"),
    [
        (AlbertForSequenceClassification, AlbertConfig, 20),
        (XLMRobertaForSequenceClassification, XLMRobertaConfig, 18),  # positions begin after that of the padding
    ],
)
def test_a_model_of_another_kind_takes_as_many_tokens_as_its_config_says(model: Any, config: Any, tokens: int) -> None:
    made = model(config(**TINY, max_position_embeddings=20)).eval()
    assert parts.longest(made) == tokens
    ids = torch.full((1, tokens), 7)
    assert made(input_ids=ids).logits.shape == (1, 2)
    with pytest.raises((RuntimeError, IndexError)):
        made(input_ids=torch.cat([ids, ids], dim=1)[:, : tokens + 1])
    made.layout = BERT  # which then says where the parts are
    with pytest.raises(TypeError, match=r"has no 'bert\.embeddings\.position_embeddings'"):
        parts.longest(made)
