"""Classifiers of every family with random weights, small enough for slow oracles, whole checkpoints included."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from search.bert.checkpoint import save
from search.bert.families import FAMILIES

LAYERS, HEADS, HEAD_SIZE, NEURONS, TOKENS, LONGEST = 3, 4, 4, 6, 60, 14

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
"""Special tokens of the tokenizer; RoBERTa's padding is number 1, as in its checkpoints."""


def config(kind, *, labels=3, attention="sdpa", **fields):
    """A tiny config of a family; ELECTRA's embeddings are narrower than its hidden states."""
    sizes = {
        "vocab_size": TOKENS,
        "hidden_size": HEADS * HEAD_SIZE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": NEURONS,
        "max_position_embeddings": LONGEST,
        "num_labels": labels,
        "initializer_range": 0.5,
        "pad_token_id": 0,
    }
    if kind == "distilbert":
        sizes["hidden_dim"] = sizes.pop("intermediate_size")
    if kind == "electra":
        sizes["embedding_size"] = 10
    if kind == "roberta":
        sizes |= {"pad_token_id": 1, "max_position_embeddings": LONGEST + 2, "type_vocab_size": 1}
    made = FAMILIES[kind].config(**{**sizes, **fields})
    made._attn_implementation = attention
    return made


def tiny(kind, *, dtype=torch.float64, seed=0, **fields):
    """Every head and neuron matters, and every bias shows: weights are large, and biases not zero as at the start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FAMILIES[kind].model(config(kind, **fields)).to(dtype).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.5)
    return model


def sentences(model, *sizes, types=True):
    """Batches of these sizes out of one fixed list of sentences of 2 to 7 tokens, padded on the right."""
    dice = torch.Generator().manual_seed(1)
    rows, width, padding = sum(sizes), 7, model.config.pad_token_id
    mask = (torch.arange(width) < torch.randint(2, width + 1, (rows, 1), generator=dice)).long()
    mask[0] = 1
    data = {
        "input_ids": torch.randint(2, TOKENS, (rows, width), generator=dice) * mask + padding * (1 - mask),
        "attention_mask": mask,
        "labels": torch.randint(model.config.num_labels, (rows,), generator=dice),
    }
    if types:
        data["token_type_ids"] = torch.randint(0, 2, (rows, width), generator=dice) * mask
    return [dict(zip(data, parts, strict=True)) for parts in zip(*(data[n].split(sizes) for n in data), strict=True)]


def write_checkpoint(kind, folder: Path, words, *, layers=2, heads=2, head_size=8, neurons=32, **fields):
    """An encoder that was never trained, with a tokenizer of these words and of single letters."""
    pieces = [PIECES[1], PIECES[0], *PIECES[2:]] if kind == "roberta" else PIECES
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [*pieces, *letters, *(f"##{letter}" for letter in letters), *sorted(set(words) - set(letters))]
    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]", continuing_subword_prefix="##"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    second = 0 if kind == "roberta" else 1
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] $B:{second} [SEP]:{second}",
        special_tokens=[(piece, numbers[piece]) for piece in ("[CLS]", "[SEP]")],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    sizes = {
        "vocab_size": len(vocabulary),
        "hidden_size": heads * head_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_dim" if kind == "distilbert" else "intermediate_size": neurons,
        "max_position_embeddings": 34,
        "initializer_range": 0.2,
        **fields,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save(getattr(tiny(kind, dtype=torch.float32, **sizes), FAMILIES[kind].model.base_model_prefix), folder)
    return folder
