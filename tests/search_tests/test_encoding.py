import re
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from transformers import AutoTokenizer, BertJapaneseTokenizer

from search.bert.encoding import (
    Encoded,
    collate,
    drawn_batches,
    encode,
    load_tokenizer,
    rules_of,
    scoring_batches,
    training_batches,
)
from search.bert.splitting import Rows
from search.errors import UserError

SINGLE = Rows((("it 's fun .",), ("",), ("a long , long , long film",)), (1, 0, 0))
PAIRS = Rows((("good film", "bad"), ("one two three four five six", "seven eight nine ten eleven")), (1, 0))


@pytest.fixture(scope="module")
def tokenizer(minilm: Path) -> Any:
    return load_tokenizer(str(minilm))


def of_lengths(lengths: list[int]) -> Encoded:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    ids = torch.arange(1, int(offsets[-1]) + 1, dtype=torch.int32)
    return Encoded(ids, torch.zeros(len(ids), dtype=torch.uint8), offsets, torch.arange(len(lengths)))


def same(one: Encoded, two: Encoded) -> bool:
    return all(torch.equal(tensor, two.to_tensors()[name]) for name, tensor in one.to_tensors().items())


@pytest.mark.parametrize(("rows", "max_tokens"), [(SINGLE, 128), (SINGLE, 5), (PAIRS, 128), (PAIRS, 8)])
def test_batches_equal_those_of_the_tokenizer(tokenizer: Any, rows: Rows, max_tokens: int) -> None:
    encoded = encode(rows, tokenizer, max_tokens=max_tokens)
    columns = [list(column) for column in zip(*rows.texts, strict=True)]
    expected = tokenizer(
        *columns,
        truncation="longest_first",
        max_length=max_tokens,
        padding="longest",
        return_tensors="pt",
        return_token_type_ids=True,
    )
    batch = collate(encoded, range(len(rows)), pad_id=tokenizer.pad_token_id, device="cpu")
    assert {name: tensor.dtype for name, tensor in batch.items()} == dict.fromkeys(batch, torch.int64)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(batch[name], expected[name]), name
    assert batch["labels"].tolist() == list(rows.labels)


def test_a_row_of_which_nothing_is_left_is_refused(minilm: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    backend = load_tokenizer(str(minilm)).backend_tokenizer
    backend.post_processor = None
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
    with pytest.raises(UserError, match=re.escape("makes no token of the texts ('',): it adds no special tokens")):
        encode(Rows((("fine",), ("",)), (1, 0)), bare, max_tokens=8)


def test_long_data_is_encoded_in_order(tokenizer: Any) -> None:
    rows = Rows(tuple(("film " * (number % 7),) for number in range(2300)), tuple(range(2300)))
    encoded = encode(rows, tokenizer, max_tokens=6)
    assert encoded.lengths.tolist() == [min(number % 7 + 2, 6) for number in range(2300)]
    assert encoded.labels.tolist() == list(range(2300))
    assert (encoded.ids.dtype, encoded.types.dtype, encoded.offsets.dtype) == (torch.int32, torch.uint8, torch.int64)


def test_encoding_survives_safetensors(tokenizer: Any) -> None:
    encoded = encode(PAIRS, tokenizer, max_tokens=16)
    assert same(Encoded.from_tensors(load(save(encoded.to_tensors()))), encoded)


def test_a_batch_is_padded_to_its_own_longest_row() -> None:
    batch = collate(of_lengths([2, 3, 1, 9]), [2, 1], pad_id=99, device="cpu")
    assert batch["input_ids"].tolist() == [[6, 99, 99], [3, 4, 5]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert batch["labels"].tolist() == [2, 1]


def epoch(batches: Iterator[list[int]], rows: int, batch_size: int) -> list[list[int]]:
    return list(islice(batches, -(-rows // batch_size)))


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=400), batch_size=st.integers(1, 9), seed=st.integers(0, 5)
)
def test_training_batches_hold_every_row_once_in_each_epoch(lengths: list[int], batch_size: int, seed: int) -> None:
    encoded = of_lengths(lengths)
    batches = training_batches(encoded, batch_size=batch_size, seed=seed)
    for _ in range(3):
        seen = epoch(batches, len(lengths), batch_size)
        assert sorted(row for batch in seen for row in batch) == list(range(len(lengths)))
        assert sorted((len(batch) for batch in seen), reverse=True)[:-1] == [batch_size] * (len(seen) - 1)


def test_training_batches_follow_the_seed_and_change_from_epoch_to_epoch() -> None:
    encoded = of_lengths([1 + number % 30 for number in range(200)])
    one, same_seed, other = (list(islice(training_batches(encoded, batch_size=8, seed=s), 50)) for s in (3, 3, 4))
    assert one == same_seed
    assert one != other
    first, second = ({frozenset(batch) for batch in batches} for batches in (one[:25], one[25:]))
    assert first != second  # other batches, not the same ones in another order


def test_training_batches_hold_rows_of_like_length_in_no_order() -> None:
    lengths = [1 + number * 7919 % 60 for number in range(1600)]
    first = epoch(training_batches(of_lengths(lengths), batch_size=8, seed=0), 1600, 8)
    assert sorted(row for batch in first for row in batch) == list(range(1600))  # several chunks of 50 batches
    spreads = [max(lengths[row] for row in batch) - min(lengths[row] for row in batch) for batch in first]
    assert sum(spreads) / len(spreads) < 3  # 46 without buckets
    longest = [max(lengths[row] for row in batch) for batch in first]
    assert longest[:50] != sorted(longest[:50])


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=100), batch_size=st.integers(1, 9))
def test_scoring_batches_hold_every_row_once_longest_first(lengths: list[int], batch_size: int) -> None:
    batches = scoring_batches(of_lengths(lengths), batch_size=batch_size)
    order = [row for batch in batches for row in batch]
    assert order == sorted(range(len(lengths)), key=lambda row: -lengths[row])
    assert all(len(batch) == batch_size for batch in batches[:-1])


@pytest.mark.parametrize(("lengths", "batch_size"), [([], 4), ([1], 0)])
def test_batches_need_rows_and_a_size(lengths: list[int], batch_size: int) -> None:
    encoded = of_lengths(lengths)
    with pytest.raises(ValueError, match="both must be at least 1"):
        training_batches(encoded, batch_size=batch_size, seed=0)
    with pytest.raises(ValueError, match="both must be at least 1"):
        scoring_batches(encoded, batch_size=batch_size)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": torch.zeros(3)}, "ids is torch.float32"),
        ({"types": torch.zeros(2, dtype=torch.uint8)}, "types has 2 tokens and ids has 3"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "offsets has 3 places for 3 rows"),
        ({"offsets": torch.tensor([0, 1, 4])}, "offsets do not rise from 0 to the 3 tokens"),
        ({"offsets": torch.tensor([0, 3, 3])}, "each row has at least one"),
    ],
)
def test_encoded_rows_fit_together(changes: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoded.from_tensors(of_lengths([1, 2]).to_tensors() | changes)


def test_tensors_must_be_those_of_encoded_rows() -> None:
    tensors = of_lengths([1, 2]).to_tensors()
    del tensors["types"]
    with pytest.raises(ValueError, match=r"tensors are \['ids', 'labels', 'offsets'\]"):
        Encoded.from_tensors(tensors)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"holds no tokenizer: none of tokenizer.json, vocab.txt, vocab.json .*only config.json;"
    ):
        load_tokenizer(str(tmp_path))


def test_rules_are_what_decides_of_tokens_and_nothing_else(minilm: Path, tmp_path: Path) -> None:
    first, elsewhere = (load_tokenizer(str(path)) for path in (minilm, shutil.copytree(minilm, tmp_path / "copy")))
    first(["a b", "c"], padding=True, truncation=True, max_length=3)  # which its backend remembers
    assert rules_of(first) == rules_of(elsewhere)
    elsewhere.truncation_side = "left"
    assert rules_of(first) != rules_of(elsewhere)


def test_a_tokenizer_in_python_has_the_rules_of_its_settings(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "vocab.txt").write_bytes((tmp_path / "vocab.txt").read_bytes())
    kinds = [
        rules_of(BertJapaneseTokenizer.from_pretrained(folder, subword_tokenizer_type=kind))
        for folder, kind in ((tmp_path, "wordpiece"), (tmp_path / "two", "wordpiece"), (tmp_path, "character"))
    ]
    assert kinds[0] == kinds[1] != kinds[2]
    assert kinds[0]["class"] == "BertJapaneseTokenizer"


def test_a_broken_tokenizer_is_explained(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"the tokenizer of model '.*' cannot be loaded \("):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all"])
def test_a_missing_folder_is_not_looked_up_on_the_hub(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_args, **_options: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match=f"model is '{name}': no such folder"):
        load_tokenizer(name)


def test_a_hub_that_fails_is_explained_and_runs_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail(*names: object, **options: object) -> None:
        calls.append((names, options))
        raise OSError("We couldn't connect to\n'https://huggingface.co'")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(
        UserError, match=r"'bert-base-uncased' .*\(OSError: We couldn't connect to 'https.*--model PATH"
    ):
        load_tokenizer("bert-base-uncased")
    assert calls == [(("bert-base-uncased",), {"trust_remote_code": False})]


def test_drawn_rows_cover_the_lengths_as_the_split_does() -> None:
    """As many training batches cover few lengths, each of them many times: they are sorted in chunks."""
    rows = of_lengths([number % 50 + 3 for number in range(4000)])
    batches = drawn_batches(rows, 512, batch_size=32, seed=3)
    drawn = [row for batch in batches for row in batch]
    assert [len(batch) for batch in batches] == [32] * 16
    assert len(set(drawn)) == 512
    assert set(rows.lengths[drawn].tolist()) == set(range(3, 53))
    assert abs(rows.lengths[drawn].double().mean().item() - 27.5) < 3 * 14.4 / 512**0.5
    assert rows.lengths[drawn].tolist() == sorted(rows.lengths[drawn].tolist(), reverse=True)
    before = [row for batch in islice(training_batches(rows, batch_size=32, seed=3), 16) for row in batch]
    assert len(set(rows.lengths[before].tolist())) < 40
    assert batches == drawn_batches(rows, 512, batch_size=32, seed=3) != drawn_batches(rows, 512, batch_size=32, seed=4)
    assert sorted(row for batch in drawn_batches(rows, 9999, batch_size=32, seed=3) for row in batch) == [*range(4000)]
