"""A reduced vocabulary: the training rows stay as they are, other words are spelt, and the model has its rows only."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerFast

from search.bert.checkpoint import load, load_dense, save
from search.bert.encoding import Encoded, encode, load_tokenizer
from search.bert.pruned import PrunedBertForSequenceClassification, plan_of, shape_of
from search.bert.splitting import Rows
from search.bert.surgery import Kept, cut
from search.bert.training import score
from search.bert.vocabulary import Reduction, keep_tokens, reduction, write_tokenizer
from search.errors import UserError
from search.plan import encoder_parameters, total_parameters

TRAIN = (
    "A gripping, unflinching story; the photography is gorgeous!",
    "The film's naïve plot (1999) is unwatchable, 50% too long.",
    "好 film — pretty 🙂 much.",
)
SELECTION = ("A mesmerizing documentary about photography.", "the plot is gorgeous")


def rows(texts: tuple[str, ...]) -> Rows:
    return Rows(texts=tuple((text,) for text in texts), labels=(0,) * len(texts))


@pytest.fixture(scope="module")
def tokenizer(minilm: Path) -> Any:
    return load_tokenizer(str(minilm))


@pytest.fixture(scope="module")
def reduced(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Reduction, Any, Path]:
    folder = tmp_path_factory.mktemp("reduced")
    train, selection = (encode(rows(texts), tokenizer, max_tokens=64) for texts in (TRAIN, SELECTION))
    found = reduction(tokenizer, train, selection)
    found.write(folder)
    return found, write_tokenizer(tokenizer, found.kept, folder), folder


def test_training_rows_keep_their_pieces(tokenizer: Any, reduced: tuple[Reduction, Any, Path]) -> None:
    found, small, _ = reduced
    before, after = (encode(rows(TRAIN), one, max_tokens=64) for one in (tokenizer, small))
    assert [found.kept[number] for number in after.ids.tolist()] == before.ids.tolist()
    assert torch.equal(after.offsets, before.offsets)
    assert [small.tokenize(text) for text in TRAIN] == [tokenizer.tokenize(text) for text in TRAIN]


def test_what_is_kept(tokenizer: Any, reduced: tuple[Reduction, Any, Path]) -> None:
    found, small, _ = reduced
    pieces = set(small.get_vocab())
    assert {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##z", "photography", "unwatch"} - pieces <= {"unwatch"}
    assert not {"mesmerizing", "documentary", "##able", "[unused5]"} & pieces - set(tokenizer.tokenize(TRAIN[1]))
    assert found.before == 30_522
    assert len(small) == len(found.kept) == len(pieces) < 2_100
    assert sorted(small.get_vocab().values()) == list(range(len(small)))


def test_unseen_words_are_spelt_and_unknown_only_where_a_character_is(
    tokenizer: Any, reduced: tuple[Reduction, Any, Path]
) -> None:
    _, small, _ = reduced
    assert "mesmerizing" not in small.get_vocab()
    pieces = small.tokenize("mesmerizing documentary")
    assert "".join(piece.removeprefix("##") for piece in pieces) == "mesmerizingdocumentary"
    assert len(pieces) > len(tokenizer.tokenize("mesmerizing documentary"))
    for text in ("🙃", "x🙃"):
        assert small.tokenize(text) == tokenizer.tokenize(text) == ["[UNK]"]


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30))
def test_nothing_that_was_known_becomes_unknown(
    tokenizer: Any, reduced: tuple[Reduction, Any, Path], text: str
) -> None:
    before, after = tokenizer.tokenize(text), reduced[1].tokenize(text)
    assert after.count("[UNK]") == before.count("[UNK]")
    joined = ["".join(piece.removeprefix("##") for piece in pieces) for pieces in (before, after)]
    assert joined[0] == joined[1]


def test_pieces_that_characters_cannot_spell_are_kept(tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b", "ab", "##bb", "##xb", "xa"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    from transformers import BertTokenizer

    full = BertTokenizer(vocab=str(tmp_path / "vocab.txt"))
    seen = encode(rows(("a",)), full, max_tokens=8)
    kept = {pieces[number] for number in reduction(full, seen, seen).kept}
    assert set(pieces) - kept == {"ab", "##bb"}  # a and ##b spell the one, ##b and ##b the other; ##x is no piece


def test_the_share_that_is_spelt_is_counted(tokenizer: Any, reduced: tuple[Reduction, Any, Path]) -> None:
    found, small, _ = reduced
    selection = encode(rows(SELECTION), tokenizer, max_tokens=64)
    lost = [piece for text in SELECTION for piece in tokenizer.tokenize(text) if piece not in small.get_vocab()]
    assert lost
    assert found.spelt == pytest.approx(len(lost) / len(selection.ids))
    assert str(found) == (
        f"{len(found.kept):,} of 30,522 tokens kept; {100 * found.spelt:.1f} % of the selection split's tokens are "
        "spelt in smaller pieces"
    )


def test_it_comes_back_from_its_folder(tmp_path: Path, reduced: tuple[Reduction, Any, Path]) -> None:
    found, small, folder = reduced
    assert Reduction.read(folder) == found
    again = AutoTokenizer.from_pretrained(folder)
    again.save_pretrained(tmp_path)
    third = AutoTokenizer.from_pretrained(tmp_path)
    pairs = (list(SELECTION), list(TRAIN[:2]))
    for one in (again, third):
        assert one.get_vocab() == small.get_vocab()
        assert one(*pairs)["input_ids"] == small(*pairs)["input_ids"]
        assert one.pad_token_id == small.pad_token_id
        assert one.model_max_length == small.model_max_length
    for place in (folder, tmp_path):  # what reads tokenizer.json without transformers
        plain = Tokenizer.from_file(str(place / "tokenizer.json"))
        assert plain.encode(SELECTION[0], TRAIN[0]).ids == small(SELECTION[0], TRAIN[0])["input_ids"]
    ids = again(*pairs)["input_ids"][0]
    vocabulary = small.get_vocab()
    assert (ids[0], ids[-1], ids.count(vocabulary["[SEP]"])) == (vocabulary["[CLS]"], vocabulary["[SEP]"], 2)


def test_a_word_piece_of_another_class_is_reduced(tmp_path: Path) -> None:
    pieces = ["a", "##a", "ab", "[UNK]", "[CLS]", "[SEP]", "[PAD]", "b", "##b", "new"]
    backend = Tokenizer(models.WordPiece(vocab={p: n for n, p in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 5), ("[CLS]", 4))
    named = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    full = PreTrainedTokenizerFast(tokenizer_object=backend, **named)
    seen = encode(rows(("b",)), full, max_tokens=8)
    small = write_tokenizer(full, reduction(full, seen, seen).kept, tmp_path)
    kept = ["a", "##a", "[UNK]", "[CLS]", "[SEP]", "[PAD]", "b", "##b", "new"]  # ##e and ##w are no pieces
    assert small.convert_ids_to_tokens(range(len(small))) == kept
    assert small.convert_ids_to_tokens(small("ab new")["input_ids"]) == ["[CLS]", "a", "##b", "new", "[SEP]"]
    assert small.pad_token_id == 5


def test_other_tokenizers_are_refused(reduced: tuple[Reduction, Any, Path]) -> None:
    seen = encode(rows(TRAIN), reduced[1], max_tokens=64)
    pairs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    with pytest.raises(UserError, match=r"space\.vocabulary is 'train' .* tokenizer is a BPE; .* use 'all'"):
        reduction(pairs, seen, seen)


def logits(model: PrunedBertForSequenceClassification, given: Encoded, pad: int) -> torch.Tensor:
    return score(model, given, pad_id=pad, batch_size=8, precision="fp32")


def test_the_model_says_the_same_of_the_training_rows(
    minilm: Path, tokenizer: Any, reduced: tuple[Reduction, Any, Path], tmp_path: Path
) -> None:
    found, small, _ = reduced
    dense, model = load_dense(minilm, labels=2, seed=1), load_dense(minilm, labels=2, seed=1)
    keep_tokens(model, found.kept)
    before = logits(dense, encode(rows(TRAIN), tokenizer, max_tokens=64), tokenizer.pad_token_id)
    after = logits(model, encode(rows(TRAIN), small, max_tokens=64), small.pad_token_id)
    assert torch.equal(before, after)
    assert shape_of(model).vocabulary == len(small)
    assert sum(p.numel() for p in dense.parameters()) - sum(p.numel() for p in model.parameters()) == (
        (30_522 - len(small)) * 384
    )
    save(model, tmp_path)
    assert torch.equal(logits(load(tmp_path), encode(rows(TRAIN), small, max_tokens=64), small.pad_token_id), after)


def test_the_padding_token_keeps_its_row(minilm: Path) -> None:
    model = load_dense(minilm, labels=2)
    model.config.pad_token_id = 7
    row = model.bert.embeddings.word_embeddings.weight[7].detach().clone()
    keep_tokens(model, (2, 5, 7, 9))
    assert model.config.pad_token_id == model.bert.embeddings.word_embeddings.padding_idx == 2
    assert torch.equal(model.bert.embeddings.word_embeddings.weight[2], row)
    assert model.bert.embeddings.word_embeddings.weight.requires_grad


def empty(config: BertConfig) -> PrunedBertForSequenceClassification:
    """A model of real size whose weights are all alike, which takes no time."""
    with torch.device("meta"):
        model = PrunedBertForSequenceClassification(config).eval()
    torch.nn.Module.to_empty(model, device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.01) if tensor.is_floating_point() else tensor.zero_()
    return model


def test_bert_base_with_the_vocabulary_of_a_task_below_25_million(glue: Path, tokenizer: Any) -> None:
    """The packaged tokenizer has the vocabulary of bert-base-uncased; about a fifth of the encoder stays."""
    lines = (glue / "CoLA" / "train.tsv").read_text(encoding="utf-8").splitlines()
    train = encode(rows(tuple(line.split("\t")[3] for line in lines)), tokenizer, max_tokens=64)
    found = reduction(tokenizer, train, train)
    assert found.spelt == 0.0
    model = empty(BertConfig())
    keep_tokens(model, found.kept)
    small = cut(model, Kept((tuple(range(3)),) * 12, (tuple(range(512)),) * 12))
    plan, shape = plan_of(small.config), shape_of(small)
    assert shape.vocabulary == len(found.kept) < 8_000
    assert sum(parameter.numel() for parameter in small.parameters()) == total_parameters(plan, shape) < 25e6
    assert encoder_parameters(plan, shape) > 0.19 * 85_054_464
    both = cut(model, Kept((tuple(range(4)),) * 12, (tuple(range(640)),) * 12, 128), directions=torch.eye(768))
    assert sum(parameter.numel() for parameter in both.parameters()) < 25e6
    assert encoder_parameters(plan_of(both.config), shape) > 0.25 * 85_054_464
