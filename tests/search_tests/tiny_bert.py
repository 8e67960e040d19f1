"""A BERT classifier with random weights, small enough for slow oracles."""

import torch
from transformers import BertConfig, BertForSequenceClassification


def tiny_bert(*, layers, heads, head_size, neurons, tokens=40, attention="sdpa", dtype=torch.float64):
    """Every head and neuron matters, and every bias shows: weights are large, and biases not zero as at the start."""
    config = BertConfig(
        vocab_size=tokens,
        hidden_size=heads * head_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=neurons,
        max_position_embeddings=12,
        num_labels=3,
        initializer_range=0.5,
    )
    config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(config).to(dtype).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
    return model
