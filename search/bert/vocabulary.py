"""A vocabulary of only what the training rows use, and of the characters that spell everything else.

    vocabulary ──► used by a training row, special, or a single character ──► kept, in their order ──► renumbered
                                                                               │
    word embeddings (V, H) ──► the rows of the tokens that are kept ◄──────────┘

WordPiece takes the longest piece that it knows, from left to right. A training row's pieces are all kept, and there are
only fewer others: so the training rows are tokenised as before, piece by piece. A word that no training row has is
spelt in smaller pieces, in the end its characters; it is unknown only where one of its characters is.

Reference:
    Abdaoui et al. 2020, "Load What You Need: Smaller Versions of Multilingual BERT": rows of unused tokens removed.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from search.bert.encoding import Encoded, load_tokenizer
from search.bert.families import family_of
from search.bert.families.narrow import put
from search.bert.pruned import words_of
from search.errors import UserError

CONTINUES = "##"
"""What WordPiece puts before a piece that continues a word."""

FILE = "vocabulary.json"
"""File with the numbers of the tokens that were kept, beside the tokenizer."""


@dataclass(frozen=True)
class Reduction:
    """What was kept of a vocabulary.

    Attributes:
        kept: Numbers of the tokens that were kept, ascending, in the vocabulary that was reduced.
        before: Tokens of that vocabulary.
        spelt: Share of the selection split's tokens that were not kept: these are spelt in smaller pieces now.
    """

    kept: tuple[int, ...]
    before: int
    spelt: float

    def __str__(self) -> str:
        return (
            f"{len(self.kept):,} of {self.before:,} tokens kept; {100 * self.spelt:.1f} % of the selection split's "
            "tokens are spelt in smaller pieces"
        )

    def write(self, folder: Path) -> None:
        """Keep it in a folder."""
        (folder / FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Reduction":
        """What `write` kept."""
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return cls(tuple(values["kept"]), values["before"], values["spelt"])


def reduction(tokenizer: PreTrainedTokenizerBase, train: Encoded, selection: Encoded) -> Reduction:
    """Choose what to keep of a vocabulary.

    Kept are the tokens of the training rows, the special and the added ones, single characters with their
    continuations, and tokens that these characters cannot spell, so that no word that was known becomes unknown.

    Args:
        tokenizer: The checkpoint's WordPiece tokenizer.
        train: The training split, as it tokenises it.
        selection: The selection split, as it tokenises it; only the figure comes from it.

    Raises:
        UserError: If the tokenizer is not a WordPiece.
    """
    vocabulary = _layout(tokenizer)["model"]["vocab"]
    kept = set(train.ids.tolist()) | set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    kept |= {number for piece, number in vocabulary.items() if not _is_spelt(piece, vocabulary)}
    selected = selection.ids.long()
    known = torch.isin(selected, torch.tensor(sorted(kept)))
    return Reduction(tuple(sorted(kept)), len(tokenizer), 1.0 - known.double().mean().item())


def _is_spelt(piece: str, vocabulary: dict[str, int]) -> bool:
    """Whether a piece of several characters can be written with pieces of one."""
    continues = piece.startswith(CONTINUES) and piece != CONTINUES
    characters = piece.removeprefix(CONTINUES) if continues else piece
    first = (CONTINUES if continues else "") + characters[0]
    return len(characters) > 1 and all(one in vocabulary for one in (first, *(CONTINUES + c for c in characters[1:])))


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, kept: tuple[int, ...], folder: Path) -> PreTrainedTokenizerBase:
    """Write the tokenizer of the reduced vocabulary, and load it back.

    Args:
        tokenizer: The checkpoint's WordPiece tokenizer; left as it is.
        kept: Numbers of the tokens that stay, ascending; their places in here are their new numbers.
        folder: Where to; `AutoTokenizer.from_pretrained` loads it from there.

    Raises:
        UserError: If the tokenizer is not a WordPiece.
    """
    new = {old: number for number, old in enumerate(kept)}
    layout = _layout(tokenizer)
    layout["model"]["vocab"] = {p: new[n] for p, n in layout["model"]["vocab"].items() if n in new}
    for token in layout["added_tokens"]:
        token["id"] = new[token["id"]]
    for token in ((layout["post_processor"] or {}).get("special_tokens") or {}).values():
        token["ids"] = [new[number] for number in token["ids"]]
    for name in ("cls", "sep"):  # the form of a BertProcessing
        if name in (layout["post_processor"] or {}):
            piece, number = layout["post_processor"][name]
            layout["post_processor"][name] = [piece, new[number]]
    layout["padding"] = layout["truncation"] = None  # each call says what it wants
    tokenizer.save_pretrained(folder)
    for stale in ("vocab.txt", "added_tokens.json"):
        (folder / stale).unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("added_tokens_decoder", None)  # it names the old numbers; tokenizer.json has the new ones
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(layout, ensure_ascii=False), encoding="utf-8")
    return load_tokenizer(str(folder))


def _layout(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What tokenizer.json holds."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    layout: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
    model = layout.get("model", {})
    if model.get("type") != "WordPiece" or model.get("continuing_subword_prefix") != CONTINUES:
        raise UserError(
            f"space.vocabulary is 'train' and the checkpoint's tokenizer is a {model.get('type') or 'slow one'}; only "
            f"a WordPiece with {CONTINUES!r} can be reduced, use 'all'"
        )
    return layout


@torch.no_grad()
def keep_tokens(model: PreTrainedModel, kept: tuple[int, ...]) -> None:
    """Take the word embeddings of all other tokens out of a dense model, in place.

    Args:
        model: A classifier whose word embeddings are one table.
        kept: Numbers of the tokens that stay, ascending; the padding token is among them.

    Raises:
        UserError: If positions are numbered from that of the padding token on (RoBERTa), and its number would change.
    """
    table: Tensor = words_of(model).get_parameter("weight")
    padding = model.config.pad_token_id
    positions: Any = model.get_submodule(family_of(model).layout.positions)
    if positions.padding_idx is not None and kept.index(padding) != padding:
        raise UserError(
            f"space.vocabulary is 'train', and the checkpoint's positions are numbered from that of the padding token, "
            f"which would move from {padding} to {kept.index(padding)}; use 'all'"
        )
    model.config.pad_token_id = None if padding is None else kept.index(padding)
    model.config.vocab_size = len(kept)
    words = nn.Embedding(len(kept), table.shape[1], padding_idx=model.config.pad_token_id, device="meta")
    words.weight = nn.Parameter(table[torch.tensor(kept, device=table.device)])
    put(model, family_of(model).layout.words, words)
