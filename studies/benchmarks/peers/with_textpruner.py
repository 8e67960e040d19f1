"""TextPruner 1.1.post2: iterative pruning by first-order importance, uneven heads and even feed-forward layers.

- Settings: those with the best accuracies in the tables of its README: `head_even_masking=False`,
  `ffn_even_masking=True`, 16 iterations (4, as in its usage example, with --quick), importance from the labelled rows.
- It is training-free. Here its models are fine-tuned like those of the other peers, which only helps them.
- transformers 5 dropped `prune_heads`, which it calls: `prune_heads` below puts it back.
"""

from pathlib import Path
from typing import Any

from exchange import batches, even, hand_over, serve, teacher, timed


def prune_heads(bert: Any, gone: dict[int, list[int]]) -> None:
    """Cut heads out of an encoder, as the method of that name did in transformers 4.

    Args:
        bert: A `BertModel`.
        gone: Heads to cut by layer.
    """
    import torch
    from transformers.pytorch_utils import prune_linear_layer

    for number, heads in gone.items():
        attention = bert.encoder.layer[number].attention
        own, width = attention.self, attention.self.attention_head_size
        kept = [head for head in range(own.num_attention_heads) if head not in heads]
        channels = torch.tensor([head * width + offset for head in kept for offset in range(width)])
        for name in ("query", "key", "value"):
            setattr(own, name, prune_linear_layer(getattr(own, name), channels))
        attention.output.dense = prune_linear_layer(attention.output.dense, channels, dim=1)
        own.num_attention_heads, own.all_head_size = len(kept), len(channels)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Prune to the share that is asked for."""
    from textpruner import GeneralConfig, TransformerPruner, TransformerPruningConfig
    from transformers import BertModel

    if not hasattr(BertModel, "prune_heads"):
        BertModel.prune_heads = prune_heads
    model = teacher(request)
    heads, neurons = even(request["share"], model.config)
    Path(request["out"]).mkdir(parents=True, exist_ok=True)
    settings = TransformerPruningConfig(
        target_ffn_size=neurons,
        target_num_of_heads=heads,
        pruning_method="iterative",
        n_iters=request["iterations"],
        head_even_masking=False,
        ffn_even_masking=True,
    )
    pruner = TransformerPruner(model, settings, GeneralConfig(use_device="cpu", output_dir=request["out"]))
    loader = batches(request)
    _, seconds = timed(lambda: pruner.prune(dataloader=loader, save_model=False))
    hand_over(model, request)
    return {"seconds": seconds}


if __name__ == "__main__":
    serve(answer)
