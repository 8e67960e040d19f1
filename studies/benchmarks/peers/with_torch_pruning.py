"""Torch-Pruning 1.6.1: global pruning of whole heads and of neurons over its dependency graph.

- `magnitude`: importance and settings of its example for BERT (`examples/transformers/prune_hf_bert.py`): L2 norm, mean
  over the group, global, whole heads.
- `taylor`: the same with its `GroupTaylorImportance`, gradients of the labelled rows.
- Unlike in the example the width of the hidden states stays: of a classifier that is pruned before it is trained again,
  it is what hurts most, and all others here leave it too.
- It takes a ratio of heads and neurons. Where rounding leaves more parameters than are allowed, it is asked again for a
  little less; the time of the last one counts. The gradients are the same for all sizes, and charged once.
"""

from typing import Any

from exchange import batches, encoder_size, hand_over, serve, teacher, timed

TRIES = 8
STEP = 0.004
"""What is added to the ratio from one try to the next: less than a head of the packaged checkpoint."""


def backward(model: Any, loader: list[dict[str, Any]]) -> None:
    """Leave the gradients of the mean loss in a model."""
    for batch in loader:
        (model(**batch).loss / len(loader)).backward()


def prune(model: Any, ratio: float, importance: Any, example: dict[str, Any]) -> None:
    """Cut a share of all heads, and of all neurons, out of a classifier."""
    import torch_pruning
    from transformers.models.bert.modeling_bert import BertLayer, BertSelfAttention

    attentions = [module for module in model.modules() if isinstance(module, BertSelfAttention)]
    layers = [module for module in model.modules() if isinstance(module, BertLayer)]
    stays = [model.bert.embeddings, model.bert.pooler, model.classifier]
    stays += [layer.attention.output.dense for layer in layers] + [layer.output.dense for layer in layers]
    pruner = torch_pruning.pruner.BasePruner(
        model,
        example,
        importance=importance,
        global_pruning=True,
        pruning_ratio=ratio,
        num_heads={getattr(a, name): a.num_attention_heads for a in attentions for name in ("query", "key", "value")},
        prune_head_dims=False,
        prune_num_heads=True,
        head_pruning_ratio=ratio,
        ignored_layers=stays,
        output_transform=lambda output: output.logits.sum(),
    )
    pruner.step()
    for attention in attentions:
        attention.num_attention_heads = pruner.num_heads[attention.query]
        attention.all_head_size = attention.query.out_features


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Prune to the share that is asked for."""
    from torch_pruning.pruner.importance import GroupTaylorImportance, MagnitudeImportance

    loader, source = batches(request), teacher(request)
    whole, gradients_s = encoder_size(source), 0.0
    if request["importance"] == "taylor":
        _, gradients_s = timed(lambda: backward(source, loader))
    example = {name: value[:1] for name, value in loader[0].items() if name != "labels"}
    for number in range(TRIES):
        model = teacher(request)
        for own, other in zip(model.parameters(), source.parameters(), strict=True):
            own.grad = None if other.grad is None else other.grad.clone()
        taylor = request["importance"] == "taylor"
        importance = GroupTaylorImportance() if taylor else MagnitudeImportance(p=2, group_reduction="mean")
        ratio = min(1 - request["share"] + number * STEP, 1.0)
        _, seconds = timed(lambda m=model, r=ratio, i=importance: prune(m, r, i, example))
        share = encoder_size(model) / whole
        if share <= request["share"]:
            hand_over(model, request)
            return {"seconds": gradients_s + seconds, "once": gradients_s}
    raise ValueError(f"an encoder of {share:.3f} is the smallest that came of a ratio of {ratio:.3f}")


if __name__ == "__main__":
    serve(answer)
